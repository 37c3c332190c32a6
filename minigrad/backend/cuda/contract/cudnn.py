"""Convolutions by cuDNN, where it is installed: a convolution, or its gradient for x or for w.

The graph has one op, whose parameters say which of the three it is; cuDNN has an entry for each and
other kernels behind it. So the forms in which the gradient rule writes them are recognised. What is
not one of them, or what cuDNN declines, `conv` computes by kernels of our own.

[Note: cuDNN's precision] Sums are float32 (float64 for float64). Of float32 arguments no digit is
dropped unless `config.matmul_precision` allows TF32. Kernels whose results differ from run to run,
or by more than a plain sum's rounding (Winograd's with large tiles, FFT), are not used.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

from minigrad.backend.cuda.nests.loops import dense
from minigrad.backend.geometry import Pair, Window
from minigrad.backend.launch import Operand, Pointer, Program, contiguous_strides
from minigrad.config import config

LEAST_VERSION = 90000  # of the cuDNN library
TYPES = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT", "float64": "DOUBLE"}
INACCURATE = ("NONDETERMINISTIC", "FFT", "WINOGRAD_TILE_6x6", "WINOGRAD_TILE_13x13")
# Float32 as TF32 on tensor cores, or rounded to a shorter type.
REDUCED = ("TENSOR_CORE", "DOWN_CONVERT_INPUTS")
ALIGNMENT = 16  # bytes, of every tensor: what cuDNN assumes
FIRST, SECOND, RESULT = 1, 2, 3  # cuDNN's numbers of the tensors
ARGUMENTS = {
    "conv_fprop": ("image", "weight"),
    "conv_dgrad": ("loss", "filter"),
    "conv_wgrad": ("image", "loss"),
}


@cache
def module() -> Any:
    """The package `cudnn` with the library that it needs; None without them."""
    if importlib.util.find_spec("cudnn") is None:
        return None
    try:
        cudnn: Any = importlib.import_module("cudnn")  # not this file, as type checkers take it
        return cudnn if cudnn.backend_version() >= LEAST_VERSION else None
    except (ImportError, RuntimeError, OSError):  # the package is there, the library is not
        return None


@dataclass(frozen=True)
class CudnnOp:
    """One op of cuDNN in its own terms: two arguments and a result as (shape, strides)."""

    name: str
    dtype: str
    tensors: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    pre_padding: Pair
    post_padding: Pair
    stride: Pair
    dilation: Pair

    @property
    def text(self) -> str:
        """The op for people to read."""
        names = (*ARGUMENTS[self.name], "result")
        lines = [f"// cuDNN {self.name} of {self.dtype}"]
        lines += [
            f"// {n}: {s}, strides {t}" for n, (s, t) in zip(names, self.tensors, strict=True)
        ]
        lines.append(f"// padding {self.pre_padding} before, {self.post_padding} after")
        lines.append(f"// stride {self.stride}, dilation {self.dilation}")
        return "\n".join(lines) + "\n"


class CudnnKernel:
    """A launch of cuDNN. Its words are the addresses of both arguments, result and workspace."""

    setting = staticmethod(config.allows_tf32)

    def __init__(self, op: CudnnOp, graphs: dict[bool, Any]):
        self.name, self.source = f"cudnn_{op.name}_{op.dtype}", op.text
        self._graphs = graphs  # by whether TF32 is allowed
        self.workspace = max(g.get_workspace_size() for g in graphs.values())

    def __call__(self, runtime: Any, words: Sequence[int]) -> None:
        """Launch it on the addresses of its arguments."""
        graph = self._graphs.get(self.setting(), self._graphs[False])
        addresses = dict(zip((FIRST, SECOND, RESULT), words, strict=False))

        def launch() -> None:
            handle = _handle(runtime.index)
            module().set_stream(handle=handle, stream=runtime.stream_pointer)
            graph.execute(addresses, words[3], handle=handle)

        runtime.run_library(self.name, launch)


def convolve(
    program: Program, x: Operand, w: Operand, out: Operand, window: Window, groups: int,
    processors: int,
) -> bool:  # fmt: skip
    """Append a launch of cuDNN for `conv.conv2d`, or give False and change nothing.

    Shapes: x (N, C, H, W), w (O, C / groups, KH, KW) -> out (N, O, OH, OW), `out` not empty.
    """
    if x.dtype.name not in TYPES or 0 in (x.size, w.size) or module() is None:
        return False
    layer = _recognised(x, w, out, window, groups)
    if layer is None:
        return False
    operands, weights = [layer.first, layer.second, layer.result], None
    if layer.op != "conv_wgrad":  # weights are small: a copy is made unless they lie as it wants
        weights = layer.second
        shape = (prod(weights.shape[:-3]), *weights.shape[-3:])
        operands[1] = replace(weights, shape=shape, strides=contiguous_strides(shape), offset=0)
    tensors = [(o.shape, layout) for o in operands if (layout := _layout(o)) is not None]
    end, window = _end(layer), layer.window
    if len(tensors) < len(operands) or end is None:
        return False
    kernel = _planned(
        CudnnOp(
            layer.op, x.dtype.name, tuple(tensors), window.low, end, window.stride, window.dilation
        )
    )
    if kernel is None:
        return False
    if weights is not None:
        operands[1] = _contiguous(program, weights, processors)
    workspace = Pointer(program.scratch_slot(kernel.workspace)) if kernel.workspace else 0
    program.launch(kernel, (*(o.pointer for o in operands), workspace), 1)
    return True


@dataclass(frozen=True)
class _Layer:
    """A layer's convolution or one of its gradients: the arguments and result in cuDNN's order."""

    op: str
    first: Operand
    second: Operand
    result: Operand
    image: tuple[int, ...]  # rows and columns of the layer's input
    window: Window  # of the layer


def _recognised(x: Operand, w: Operand, out: Operand, window: Window, groups: int) -> _Layer | None:
    """Which op of cuDNN a convolution is; None if it is none."""
    size = x.shape[2:]
    larger = prod(window.size) > prod(out.shape[2:])
    spaced = window.input_dilation != (1, 1)
    flipped = any(s < 0 and n > 1 for n, s in zip(window.size, w.strides[2:], strict=True))
    if groups == 1 and not spaced and _images_are_channels(x, w, larger):
        layer = window.exchanged(size)
        return _Layer("conv_wgrad", _swapped(x), _swapped(w), _swapped(out), size, layer)
    if window.stride == (1, 1) and (flipped or spaced):
        filters = _unflipped(w, groups)
        return _Layer("conv_dgrad", x, filters, out, out.shape[2:], window.adjoint(size))
    # cuDNN has nothing for a gradient for weights that was not recognised above.
    if spaced or (larger and (groups > 1 or w.size >= x.size)):
        return None
    return _Layer("conv_fprop", x, w, out, size, window)


def _end(layer: _Layer) -> Pair | None:
    """The padding after an image that its windows reach; None where padding would crop."""
    ends = []
    for axis, n in zip(layer.window.axes, layer.image, strict=True):
        low = axis.padding[0]
        high = (axis.windows(n) - 1) * axis.stride + axis.reach + 1 - n - low
        if low < 0 or high <= -axis.stride:
            return None
        ends.append(max(high, 0))
    return ends[0], ends[1]


def _images_are_channels(x: Operand, w: Operand, larger: bool) -> bool:
    """Whether x and w are a layer's input and the gradient of its output: channels before images.

    In memory images come first. Where strides do not tell, filters as large as images do.
    """
    least = min(o.strides[1] - o.strides[0] for o in (x, w))
    return least > 0 or (least == 0 and larger)


def _swapped(o: Operand) -> Operand:
    """With the first two axes exchanged."""
    a, b, *size = o.shape
    s, t, *steps = o.strides
    return replace(o, shape=(b, a, *size), strides=(t, s, *steps))


def _unflipped(w: Operand, groups: int) -> Operand:
    """The filter that a layer has from the one that its gradient for x is convolved with.

    That one is flipped, and has its channels swapped within each group: (G * C, O, KH, KW) gives
    (G, O, C, KH, KW).
    """
    out, inner, *size = w.shape
    s, t, *steps = w.strides
    offset = w.offset + sum((n - 1) * step for n, step in zip(size, steps, strict=True))
    each = out // groups
    return replace(
        w,
        shape=(groups, inner, each, *size),
        strides=(each * s, t, s, -steps[0], -steps[1]),
        offset=offset,
    )


def _contiguous(program: Program, weights: Operand, processors: int) -> Operand:
    steps = contiguous_strides(weights.shape)
    same = zip(weights.shape, weights.strides, steps, strict=True)
    aligned = weights.offset * weights.dtype.itemsize % ALIGNMENT == 0
    if aligned and all(n == 1 or s == t for n, s, t in same):
        return weights
    return dense(program, weights, processors)


def _layout(o: Operand) -> tuple[int, ...] | None:
    """The strides of a dense operand, channels second or last; None for others."""
    _, c, h, w = o.shape
    if o.offset * o.dtype.itemsize % ALIGNMENT:
        return None
    for strides in ((c * h * w, h * w, w, 1), (c * h * w, 1, w * c, c)):
        if all(m == 1 or s == t for m, s, t in zip(o.shape, o.strides, strides, strict=True)):
            return strides
    return None


@cache
def _handle(index: int) -> Any:
    """A handle for the GPU that is current, number `index`."""
    return module().create_handle()


@cache
def _planned(op: CudnnOp) -> CudnnKernel | None:
    """The launch of an op, planned by cuDNN's heuristics; None where it declines."""
    cudnn = module()
    graphs = {}
    for tf32 in (False, True) if op.dtype == "float32" else (False,):
        with suppress(cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError):
            graphs[tf32] = _graph(cudnn, op, tf32)
    return CudnnKernel(op, graphs) if False in graphs else None


def _graph(cudnn: Any, op: CudnnOp, tf32: bool) -> Any:
    """A graph of the one op, ready to run."""
    kind = getattr(cudnn.data_type, TYPES[op.dtype])
    wide = cudnn.data_type.DOUBLE if op.dtype == "float64" else cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=kind, intermediate_data_type=wide, compute_data_type=wide)
    arguments = {
        name: graph.tensor(
            name=name, dim=list(shape), stride=list(strides), data_type=kind, uid=uid
        )
        for name, uid, (shape, strides) in zip(
            ARGUMENTS[op.name], (FIRST, SECOND), op.tensors, strict=False
        )
    }
    result = getattr(graph, op.name)(
        **arguments,
        pre_padding=list(op.pre_padding),
        post_padding=list(op.post_padding),
        stride=list(op.stride),
        dilation=list(op.dilation),
        compute_data_type=wide,
        name=op.name,
    )
    shape, strides = op.tensors[2]
    result.set_output(True).set_data_type(kind).set_uid(RESULT)
    result.set_dim(list(shape)).set_stride(list(strides))
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    excluded = INACCURATE + (REDUCED if op.dtype == "float32" and not tf32 else ())
    graph.deselect_numeric_notes([getattr(cudnn.numerical_note, name) for name in excluded])
    graph.check_support()
    graph.build_plans()
    return graph
