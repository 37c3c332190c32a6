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
from typing import Any

from minigrad.backend.cuda.nests.loops import dense
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
Pair = tuple[int, int]


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


def allows_tf32() -> bool:
    """Whether float32 may be multiplied as TF32."""
    return config.matmul_precision != "highest"


@dataclass(frozen=True)
class Problem:
    """One op of cuDNN in its own terms: two arguments and a result as (shape, strides)."""

    op: str
    dtype: str
    tensors: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    pre_padding: Pair
    post_padding: Pair
    stride: Pair
    dilation: Pair

    @property
    def text(self) -> str:
        """The op for people to read."""
        names = (*ARGUMENTS[self.op], "result")
        lines = [f"// cuDNN {self.op} of {self.dtype}"]
        lines += [
            f"// {n}: {s}, strides {t}" for n, (s, t) in zip(names, self.tensors, strict=True)
        ]
        lines.append(f"// padding {self.pre_padding} before, {self.post_padding} after")
        lines.append(f"// stride {self.stride}, dilation {self.dilation}")
        return "\n".join(lines) + "\n"


class Convolution:
    """A launch of cuDNN. Its words are the addresses of both arguments, result and workspace."""

    setting = staticmethod(allows_tf32)

    def __init__(self, problem: Problem, graphs: dict[bool, Any]):
        self.name = f"cudnn_{problem.op}_{problem.dtype}"
        self.problem, self.source = problem, problem.text
        self._graphs = graphs  # by whether TF32 is allowed
        self.workspace = max(g.get_workspace_size() for g in graphs.values())

    def __call__(self, runtime: Any, words: Sequence[int]) -> None:
        """Launch it on the addresses of its arguments."""
        graph = self._graphs.get(allows_tf32(), self._graphs[False])
        addresses = dict(zip((FIRST, SECOND, RESULT), words, strict=False))

        def launch() -> None:
            handle = _handle(runtime.index)
            module().set_stream(handle=handle, stream=runtime.stream_pointer)
            graph.execute(addresses, words[3], handle=handle)

        runtime.run_library(self.name, launch)


def convolve(
    program: Program,
    x: Operand,
    w: Operand,
    out: Operand,
    *,
    stride: Pair,
    padding: tuple[Pair, Pair],
    input_dilation: Pair,
    kernel_dilation: Pair,
    groups: int,
    processors: int,
) -> bool:
    """Append a launch of cuDNN for `conv.conv2d`, or give False and change nothing.

    Shapes: x (N, C, H, W), w (O, C / groups, KH, KW) -> out (N, O, OH, OW), none of them empty.
    """
    if x.dtype.name not in TYPES or 0 in (x.size, w.size) or module() is None:
        return False
    larger = w.shape[2] * w.shape[3] > out.shape[2] * out.shape[3]
    low = (padding[0][0], padding[1][0])
    is_flipped = any(s < 0 and n > 1 for n, s in zip(w.shape[2:], w.strides[2:], strict=True))
    if groups == 1 and input_dilation == (1, 1) and _images_are_channels(x, w, larger):
        op, arguments = "conv_wgrad", [_swapped(x), _swapped(w), _swapped(out)]
        image, filters, outputs = x.shape[2:], out.shape[2:], w.shape[2:]
        pre, forward_stride, dilation = low, kernel_dilation, stride
    elif stride == (1, 1) and (is_flipped or input_dilation != (1, 1)):
        op, arguments = "conv_dgrad", [x, _unflipped(w, groups), out]
        image, filters, outputs = out.shape[2:], w.shape[2:], x.shape[2:]
        reach = [(n - 1) * d for n, d in zip(filters, kernel_dilation, strict=True)]
        pre = (reach[0] - low[0], reach[1] - low[1])
        forward_stride, dilation = input_dilation, kernel_dilation
    elif larger and (groups > 1 or w.size >= x.size):
        return False  # a gradient for weights that is not recognised: cuDNN has nothing for that
    elif input_dilation == (1, 1):
        op, arguments = "conv_fprop", [x, w, out]
        image, filters, outputs = x.shape[2:], w.shape[2:], out.shape[2:]
        pre, forward_stride, dilation = low, stride, kernel_dilation
    else:
        return False
    post = [
        _post_padding(image[i], filters[i], outputs[i], forward_stride[i], dilation[i], pre[i])
        for i in range(2)
    ]
    weights = None if op == "conv_wgrad" else arguments[1]
    if weights is not None:  # small, so a copy is made where they do not lie as cuDNN wants them
        shape = (w.shape[1] * groups, w.shape[0] // groups) if op == "conv_dgrad" else w.shape[:2]
        weights_shape = (*shape, *w.shape[2:])
        strides = contiguous_strides(weights_shape)
        arguments[1] = replace(weights, shape=weights_shape, strides=strides, offset=0)
    tensors = [(o.shape, layout) for o in arguments if (layout := _layout(o)) is not None]
    ends = [p for p in post if p is not None]
    if len(tensors) < len(arguments) or len(ends) < len(post):
        return False
    problem = Problem(
        op, x.dtype.name, tuple(tensors), pre, (ends[0], ends[1]), forward_stride, dilation
    )
    kernel = _planned(problem)
    if kernel is None:
        return False
    if weights is not None:
        arguments[1] = _contiguous(program, weights, processors)
    workspace = Pointer(program.scratch_slot(kernel.workspace)) if kernel.workspace else 0
    program.launch(kernel, (*(o.pointer for o in arguments), workspace), 1)
    return True


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


def _post_padding(
    size: int, taps: int, outs: int, stride: int, dilation: int, pre: int
) -> int | None:
    """The padding after an image that gives so many outputs; None where it or `pre` would crop."""
    post = (outs - 1) * stride + (taps - 1) * dilation + 1 - size - pre
    return max(post, 0) if pre >= 0 and post > -stride else None


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
def _planned(problem: Problem) -> Convolution | None:
    """The launch of a problem, planned by cuDNN's heuristics; None where it declines."""
    cudnn = module()
    graphs = {}
    for tf32 in (False, True) if problem.dtype == "float32" else (False,):
        with suppress(cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError):
            graphs[tf32] = _graph(cudnn, problem, tf32)
    return Convolution(problem, graphs) if False in graphs else None


def _graph(cudnn: Any, problem: Problem, tf32: bool) -> Any:
    """A graph of the one op, ready to run."""
    kind = getattr(cudnn.data_type, TYPES[problem.dtype])
    wide = cudnn.data_type.DOUBLE if problem.dtype == "float64" else cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=kind, intermediate_data_type=wide, compute_data_type=wide)
    arguments = {
        name: graph.tensor(
            name=name, dim=list(shape), stride=list(strides), data_type=kind, uid=uid
        )
        for name, uid, (shape, strides) in zip(
            ARGUMENTS[problem.op], (FIRST, SECOND), problem.tensors, strict=False
        )
    }
    result = getattr(graph, problem.op)(
        **arguments,
        pre_padding=list(problem.pre_padding),
        post_padding=list(problem.post_padding),
        stride=list(problem.stride),
        dilation=list(problem.dilation),
        compute_data_type=wide,
        name=problem.op,
    )
    shape, strides = problem.tensors[2]
    result.set_output(True).set_data_type(kind).set_uid(RESULT)
    result.set_dim(list(shape)).set_stride(list(strides))
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    excluded = INACCURATE + (REDUCED if problem.dtype == "float32" and not tf32 else ())
    graph.deselect_numeric_notes([getattr(cudnn.numerical_note, name) for name in excluded])
    graph.check_support()
    graph.build_plans()
    return graph
