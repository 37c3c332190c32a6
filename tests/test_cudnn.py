"""Which of cuDNN's ops a convolution becomes, on a stand-in that computes them by definition."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import ClassVar

import pytest
from conv_definitions import Case, Layout, backward_data, values, with_torch
from host_cuda import HostRuntime
from test_cuda_conv import arriving, run

import minigrad as mg
from minigrad.backend.cuda.backend import device as cuda_device
from minigrad.backend.cuda.contract import cudnn
from minigrad.backend.launch import contiguous_strides
from minigrad.config import config
from minigrad.device import devices

SAME = ((1, 1), (1, 1))
SMALL = {
    "plain": Case((2, 3, 7, 8), (4, 3, 3, 3), padding=SAME),
    "stride 2": Case((2, 3, 8, 7), (4, 3, 3, 3), (2, 2), SAME),
    "a row and a column unused": Case((2, 3, 8, 8), (4, 3, 3, 3), (3, 2)),
    "asymmetric": Case((1, 2, 7, 8), (3, 2, 3, 2), (1, 2), ((0, 2), (1, 0))),
    "dilated": Case((2, 3, 9, 8), (2, 3, 3, 3), (1, 1), ((2, 2), (2, 2)), (1, 1), (2, 2)),
    "one by one": Case((2, 4, 5, 5), (4, 4, 1, 1)),
    "one by one, stride 2": Case((2, 4, 5, 5), (4, 4, 1, 1), (2, 2)),
}


class Names:
    """Any name is itself."""

    def __getattr__(self, name):
        return name


class NotSupported(Exception):
    pass


class Tensor:
    def __init__(self, dim=None, stride=None, data_type=None, uid=None):
        self.dim, self.stride, self.data_type, self.uid = dim, stride, data_type, uid

    def set_output(self, value):
        assert value is True
        return self

    def set_data_type(self, data_type):
        self.data_type = data_type
        return self

    def set_uid(self, uid):
        self.uid = uid
        return self

    def set_dim(self, dim):
        self.dim = dim
        return self

    def set_stride(self, stride):
        self.stride = stride
        return self

    def __iter__(self):
        return product(*map(range, self.dim))

    def at(self, address, index):
        assert address % 16 == 0
        offset = sum(i * s for i, s in zip(index, self.stride, strict=True))
        return ctypes.c_float.from_address(address + 4 * offset)


class Graph:
    """Records what it is asked for, and computes float32 convolutions where they are executed."""

    made: ClassVar[list[Graph]] = []
    declines: ClassVar[bool] = False

    def __init__(self, **types):
        self.types, self.op, self.steps, self.excluded = types, None, [], ()
        Graph.made.append(self)

    def tensor(self, *, name, dim, stride, data_type, uid):
        assert all(type(v) is int and v > 0 for v in (*dim, *stride)), (dim, stride)
        return Tensor(dim, stride, data_type, uid)

    def _conv(self, op, image, filters, outputs, result, kwargs):
        assert self.op is None
        self.op, self.image, self.filters, self.outputs = op, image, filters, outputs
        self.parameters = kwargs
        return result

    def conv_fprop(self, *, image, weight, **kwargs):
        result = Tensor()
        return self._conv("conv_fprop", image, weight, result, result, kwargs)

    def conv_dgrad(self, *, loss, filter, **kwargs):
        result = Tensor()
        return self._conv("conv_dgrad", result, filter, loss, result, kwargs)

    def conv_wgrad(self, *, image, loss, **kwargs):
        result = Tensor()
        return self._conv("conv_wgrad", image, result, loss, result, kwargs)

    def validate(self):
        self.steps.append("validate")
        p = self.parameters
        for i in range(2):
            pre, post = p["pre_padding"][i], p["post_padding"][i]
            assert min(pre, post) >= 0
            extent = (self.filters.dim[2 + i] - 1) * p["dilation"][i] + 1
            room = self.image.dim[2 + i] + pre + post - extent
            assert self.outputs.dim[2 + i] == room // p["stride"][i] + 1
        assert self.image.dim[0] == self.outputs.dim[0]
        assert self.filters.dim[0] == self.outputs.dim[1]
        assert self.image.dim[1] % self.filters.dim[1] == 0

    def build_operation_graph(self):
        self.steps.append("build_operation_graph")

    def create_execution_plans(self, modes):
        assert modes == ["A", "FALLBACK"]
        self.steps.append("create_execution_plans")

    def deselect_numeric_notes(self, notes):
        assert self.steps[-1] == "create_execution_plans"  # before, there is nothing to exclude
        self.excluded = notes

    def check_support(self):
        if Graph.declines:
            raise NotSupported
        self.steps.append("check_support")

    def build_plans(self):
        self.steps.append("build_plans")

    def get_workspace_size(self):
        return 0 if self.types["io_data_type"] == "DOUBLE" else 1000

    def execute(self, addresses, workspace, handle):
        assert self.steps[-1] == "build_plans"
        assert handle == {"stream": HostRuntime.stream_pointer}
        assert set(addresses) == {1, 2, 3}
        assert workspace
        ctypes.memset(workspace, 0xFF, 1000)
        p = self.parameters
        image, filters, outputs = (
            (t, addresses[t.uid]) for t in (self.image, self.filters, self.outputs)
        )
        target = {"conv_fprop": outputs, "conv_dgrad": image, "conv_wgrad": filters}[self.op]
        for index in target[0]:
            target[0].at(target[1], index).value = 0.0
        each = self.outputs.dim[1] * self.filters.dim[1] // self.image.dim[1]
        for (n, k, *place), (c, *tap) in product(
            self.outputs, product(*map(range, filters[0].dim[1:]))
        ):
            where = [
                place[i] * p["stride"][i] + tap[i] * p["dilation"][i] - p["pre_padding"][i]
                for i in range(2)
            ]
            if all(0 <= where[i] < self.image.dim[2 + i] for i in range(2)):
                cells = {
                    id(image): (n, k // each * self.filters.dim[1] + c, *where),
                    id(filters): (k, c, *tap),
                    id(outputs): (n, k, *place),
                }
                a, b = (
                    t[0].at(t[1], cells[id(t)]).value
                    for t in (image, filters, outputs)
                    if t is not target
                )
                target[0].at(target[1], cells[id(target)]).value += a * b


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    if devices()["cuda"] != "usable" or not isinstance(cuda_device(0).runtime, HostRuntime):
        pytest.skip("the stand-in for cuDNN computes in the memory of the stand-in for a GPU")

    def set_stream(*, handle, stream):
        handle["stream"] = stream

    module = SimpleNamespace(
        data_type=Names(), heur_mode=Names(), numerical_note=Names(), pygraph=Graph,
        cudnnGraphNotSupportedError=NotSupported, set_stream=set_stream,
        create_handle=dict,
    )  # fmt: skip
    monkeypatch.setattr(cudnn, "module", lambda: module)
    monkeypatch.setattr(Graph, "made", [])
    monkeypatch.setattr(Graph, "declines", False)
    caches = (cudnn._planned, cudnn._handle)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def check(case: Case) -> list[str]:
    x, w = values(case, 5)
    got, kernels = run(case, x, w, "float32")
    assert got == with_torch(case, x, w)
    return kernels


@pytest.mark.parametrize("direction", ["forward", "data", "weight"])
@pytest.mark.parametrize("name", SMALL)
def test_each_direction_is_its_own_op(name, direction):
    case = arriving(SMALL[name], direction)
    op = {"forward": "conv_fprop", "data": "conv_dgrad", "weight": "conv_wgrad"}[direction]
    if (name, direction) == ("one by one", "data"):
        op = "conv_fprop"  # nothing is flipped: it is one
    assert check(case)[-1] == f"cudnn_{op}_float32"
    assert {g.op for g in Graph.made} == {op}


def test_parameters_of_a_strided_layer():
    layer = SMALL["stride 2"]
    for direction in ("forward", "data", "weight"):
        check(arriving(layer, direction))
    for graph in Graph.made:
        assert graph.image.dim == [2, 3, 8, 7]
        assert graph.filters.dim == [4, 3, 3, 3]
        assert graph.outputs.dim == [2, 4, 4, 4]
        assert graph.outputs.stride == [64, 16, 4, 1]
        # Of eight rows the last meets no tap: one row of padding is before, none is needed after.
        assert graph.parameters["pre_padding"] == [1, 1]
        assert graph.parameters["post_padding"] == [0, 1]
        assert graph.parameters["stride"] == [2, 2]
        assert graph.parameters["dilation"] == [1, 1]


def test_groups_of_a_layer_and_of_its_gradient_for_x():
    layer = Case((2, 6, 6, 7), (4, 3, 3, 3), (2, 1), SAME, groups=2)
    assert check(layer) == ["cudnn_conv_fprop_float32"]
    # As the gradient rule writes it: channels swapped within each group, then flipped.
    data = replace(
        backward_data(replace(layer, groups=1), 6, 7),
        w=(6, 2, 3, 3),
        groups=2,
        layouts=(Layout(), Layout(flips=(2, 3)), Layout()),
    )
    assert check(data)[-1] == "cudnn_conv_dgrad_float32"
    # The images of all groups are one axis of a gradient for weights, which cuDNN does not have.
    weight = Case((3, 4, 6, 7), (4, 2, 6, 7), padding=SAME, groups=2)
    assert check(weight)[0].startswith("conv")


def test_filters_are_copied_where_they_do_not_lie_as_expected():
    layer = SMALL["plain"]
    assert check(layer) == ["cudnn_conv_fprop_float32"]
    flipped = replace(layer, stride=(2, 2), layouts=(Layout(), Layout(flips=(2,)), Layout()))
    assert check(flipped) == ["copy", "cudnn_conv_fprop_float32"]


@pytest.mark.parametrize(
    "case",
    [
        replace(SMALL["plain"], padding=((-1, 1), (1, 1))),
        replace(SMALL["plain"], input_dilation=(2, 2), stride=(2, 1)),
        replace(SMALL["plain"], layouts=(Layout((0, 1, 3, 2)), Layout(), Layout())),
        replace(SMALL["plain"], layouts=(Layout(gap=1), Layout(), Layout())),
    ],
    ids=["crops", "input dilation and stride", "columns outside of rows", "gaps"],
)
def test_what_cudnn_cannot_express_runs_on_our_kernels(case):
    assert all(k.startswith("conv") for k in check(case))
    assert not Graph.made


def test_what_cudnn_declines_runs_on_our_kernels():
    Graph.declines = True
    assert check(SMALL["plain"]) == ["conv_each"]
    asked = len(Graph.made)
    assert check(SMALL["plain"]) == ["conv_each"]
    assert len(Graph.made) == asked  # it is asked once


def test_a_problem_is_planned_once():
    check(SMALL["plain"])
    asked = len(Graph.made)
    check(SMALL["plain"])
    assert len(Graph.made) == asked


def test_channels_last_needs_no_copy():
    last = Layout((0, 2, 3, 1))
    assert check(replace(SMALL["plain"], layouts=(last, Layout(), last))) == [
        "cudnn_conv_fprop_float32"
    ]
    assert Graph.made[0].image.stride == [168, 1, 24, 3]


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_tf32_is_used_where_it_is_allowed(precision, monkeypatch):
    monkeypatch.setattr(config, "matmul_precision", precision)
    executed = []
    execute = Graph.execute
    monkeypatch.setattr(
        Graph, "execute", lambda self, *a, **k: (executed.append(self), execute(self, *a, **k))
    )
    check(SMALL["plain"])
    (graph,) = executed
    assert ("TENSOR_CORE" in graph.excluded) == (precision == "highest")
    assert "NONDETERMINISTIC" in graph.excluded
    assert graph.types["compute_data_type"] == "FLOAT"


def test_integers_never_ask():
    x, w = values(SMALL["plain"], 1)
    run(SMALL["plain"], x, w, "int32")
    assert not Graph.made


def test_the_names_exist_in_the_package(monkeypatch):
    """The real package's graph takes these calls, up to where it needs the library."""
    real = pytest.importorskip("cudnn")

    class Stub(real.pygraph):
        def validate(self):
            (node,) = self.nodes
            assert node.params["pre_padding"] == [1, 1]
            assert all(t.dim and t.stride for t in self.tensors.values())

        def build_operation_graph(self):
            pass

        create_execution_plans = deselect_numeric_notes = lambda self, arguments: None
        check_support = build_plans = build_operation_graph

        def get_workspace_size(self):
            return 0

    module = SimpleNamespace(
        **{n: getattr(real, n) for n in ("data_type", "heur_mode", "numerical_note")},
        cudnnGraphNotSupportedError=NotSupported,
        pygraph=Stub,
    )
    for name in ("execute", "set_stream", "create_handle", "backend_version"):
        assert hasattr(real, name) or hasattr(real.pygraph, name)
    assert issubclass(real.cudnnGraphNotSupportedError, Exception)
    for direction in ("forward", "data", "weight"):
        case = arriving(SMALL["plain"], direction)
        for dtype in ("float16", "bfloat16", "float32", "float64"):
            shapes = (case.x, case.w, case.out)
            tensors = tuple((s, contiguous_strides(s)) for s in shapes)
            op = {"forward": "conv_fprop", "data": "conv_dgrad", "weight": "conv_wgrad"}[direction]
            asked = cudnn.CudnnOp(op, dtype, tensors, (1, 1), (1, 1), (1, 1), (1, 1))
            assert cudnn._graph(module, asked, tf32=False).get_workspace_size() == 0
            assert op in asked.text


def test_a_program_that_runs_again_is_replayed():
    """Calls of a library are captured with the addresses that they had."""
    x = mg.reshape(mg.arange(64, dtype="float32", device="cuda"), (1, 1, 4, 16))
    w = mg.ones((2, 1, 3, 3), device="cuda")
    results = [mg.nn.conv2d(x, w).tolist() for _ in range(4)]
    assert results.count(results[0]) == 4
    assert results[0][0][0][0][0] == sum(r * 16 + c for r in range(3) for c in range(3))
