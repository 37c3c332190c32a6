"""Modules: registration, state, modes, conversion, text; and each layer against its definition."""

from __future__ import annotations

import copy
import itertools
import math

import pytest

import layers
import minigrad as mg
from layers import (
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    Buffer,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Identity,
    Linear,
    MaxPool2d,
    Module,
    ModuleList,
    Parameter,
    ReLU,
    Residual,
    Sequential,
    Tanh,
)


def normal(*shape, seed=0, dtype="float32"):
    return mg.random.normal(shape, dtype=dtype, generator=mg.random.Generator(seed))


def flat(t):
    return mg.reshape(t, (-1,)).tolist()


class Net(Module):
    def __init__(self):
        self.first = Linear(3, 2)
        self.blocks = Sequential(Linear(2, 2), ReLU(), BatchNorm1d(2))
        self.scale = Parameter(mg.ones((2,)))
        self.seen = Buffer(mg.zeros((2,)))
        self.width = 2

    def forward(self, x):
        return self.blocks(self.first(x)) * self.scale


# Registration.


def test_attributes_register_by_type():
    net = Net()
    assert [n for n, _ in net.named_parameters()] == [
        "scale", "first.weight", "first.bias", "blocks.0.weight", "blocks.0.bias",
        "blocks.2.weight", "blocks.2.bias",
    ]  # fmt: skip
    assert [n for n, _ in net.named_buffers()] == [
        "seen", "blocks.2.running_mean", "blocks.2.running_var", "blocks.2.num_batches_tracked",
    ]  # fmt: skip
    assert [n for n, _ in net.named_children()] == ["first", "blocks"]
    assert [n for n, _ in net.named_modules()] == [
        "", "first", "blocks", "blocks.0", "blocks.1", "blocks.2",
    ]  # fmt: skip
    assert len(list(net.modules())) == 6
    assert next(iter(net.children())) is net.first
    assert all(p.requires_grad for p in net.parameters())
    assert not any(b.requires_grad for b in net.buffers())


def test_shared_modules_and_parameters_are_listed_once():
    linear = Linear(2, 2)
    net = Sequential(linear, linear)
    assert len(list(net.parameters())) == 2
    other = Linear(2, 2)
    other.weight = linear.weight
    assert len(list(Sequential(linear, other).parameters())) == 3


def test_plain_tensors_are_an_error():
    net = Net()
    with pytest.raises(TypeError, match=r"Net\.extra: expected a Parameter or a Buffer"):
        net.extra = mg.ones((2,))
    with pytest.raises(TypeError, match="Wrap it"):
        net.scale = net.scale * 2


def test_hidden_modules_are_an_error():
    net = Net()
    with pytest.raises(TypeError, match="Use ModuleList"):
        net.extra = [Linear(2, 2)]
    with pytest.raises(TypeError, match="inside a dict"):
        net.extra = {"a": mg.ones((2,))}
    net.extra = [1, 2]


def test_in_place_operators_keep_the_parameter():
    net = Net()
    scale = net.scale
    net.scale -= 0.5 * mg.ones((2,))
    assert net.scale is scale
    assert net.scale.tolist() == [0.5, 0.5]
    assert net.scale.requires_grad


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Module: expected a forward method"):
        Module()(1)


# State.


def test_state_dict_round_trip():
    one, two = Net(), Net()
    x = normal(4, 3)
    one(x).tolist()
    assert two.load_state_dict(one.state_dict()) == ([], [])
    assert flat(one.eval()(x)) == flat(two.eval()(x))
    assert two.blocks[2].num_batches_tracked.item() == 1
    assert two.first.weight.requires_grad


def test_state_dict_is_a_snapshot():
    net = Net()
    state = net.state_dict()
    net.scale.assign(mg.zeros((2,)))
    assert state["scale"].tolist() == [1.0, 1.0]
    assert not state["scale"].requires_grad


def test_state_dict_takes_lists_and_casts():
    net = Net()
    net.load_state_dict({"scale": [2, 3]}, strict=False)
    assert net.scale.tolist() == [2.0, 3.0]
    assert net.scale.dtype is mg.float32


def test_load_reports_everything_at_once_and_changes_nothing():
    net = Net()
    state = {k: mg.zeros_like(v) for k, v in net.state_dict().items()}
    del state["first.bias"]
    state["other"] = mg.zeros((1,))
    state["first.weight"] = mg.zeros((3, 2))
    before = net.first.weight.tolist()
    with pytest.raises(ValueError, match="differs") as error:
        net.load_state_dict(state)
    for text in (
        "first.weight: expected shape (2, 3), got (3, 2)",
        "missing: first.bias",
        "unexpected: other",
    ):
        assert text in str(error.value)
    assert net.first.weight.tolist() == before
    assert net.scale.tolist() == [1.0, 1.0]
    del state["first.weight"]
    keys = net.load_state_dict(state, strict=False)
    assert keys.missing == ["first.weight", "first.bias"]
    assert keys.unexpected == ["other"]


def test_shapes_are_checked_even_when_not_strict():
    with pytest.raises(ValueError, match="scale: expected shape"):
        Net().load_state_dict({"scale": mg.ones((3,))}, strict=False)


def test_state_from_pytorch():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )
    ours = Sequential(Conv2d(3, 4, 3), BatchNorm2d(4), Flatten(), Linear(4, 2))
    ours.load_state_dict(theirs.state_dict())
    x = normal(2, 3, 3, 3)
    expected = theirs(torch.tensor(x.tolist())).detach()
    assert flat(ours(x)) == pytest.approx(expected.flatten().tolist(), abs=1e-5)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_deepcopy_is_independent():
    net = Net()
    twin = copy.deepcopy(net)
    twin.scale.assign(mg.zeros((2,)))
    assert net.scale.tolist() == [1.0, 1.0]
    assert isinstance(twin.scale, Parameter)
    assert isinstance(twin.seen, Buffer)


# Modes, gradients, conversion.


def test_train_and_eval_are_recursive():
    net = Net()
    assert net.training
    assert net.eval() is net
    assert not any(m.training for m in net.modules())
    assert net.train() is net
    assert all(m.training for m in net.modules())


def test_zero_grad_and_freezing():
    net = Net()
    mg.sum(net(normal(4, 3)) * normal(4, 2, seed=1)).backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    net.first.requires_grad_(False)
    mg.sum(net(normal(4, 3)) * normal(4, 2, seed=1)).backward()
    assert net.first.weight.grad is None
    assert net.blocks[0].weight.grad is not None
    net.first.requires_grad_(True)
    mg.sum(net(normal(4, 3)) * normal(4, 2, seed=1)).backward()
    assert net.first.weight.grad is not None


def test_to_another_type_keeps_the_objects():
    net = Net()
    scale = net.scale
    assert net.to(mg.float64) is net
    assert net.scale is scale
    assert {t.dtype for t in net.parameters()} == {mg.float64}
    assert net.blocks[2].num_batches_tracked.dtype is mg.int64
    assert all(p.requires_grad for p in net.parameters())
    assert net(normal(4, 3, dtype="float64")).dtype is mg.float64
    net.to("cpu", "float32")
    assert net.first.weight.dtype is mg.float32


def test_apply_visits_children_first():
    seen = []
    Net().apply(lambda m: seen.append(type(m).__name__))
    assert seen[-1] == "Net"
    assert seen.index("ReLU") < seen.index("Sequential")


def test_forward_hooks():
    linear, calls = Linear(2, 2), []
    handle = linear.register_forward_hook(lambda m, args, y: calls.append((m, args, y)))
    x = normal(1, 2)
    y = linear(x)
    assert calls[0][0] is linear
    assert calls[0][1][0] is x
    assert calls[0][2] is y
    handle.remove()
    handle.remove()
    linear(x)
    assert len(calls) == 1
    linear.register_forward_hook(lambda m, args, y: 2 * y)
    assert flat(linear(x)) == pytest.approx([2 * v for v in flat(y)])


# Text.


def test_repr_is_nested():
    net = Net()
    assert repr(net) == "\n".join(
        [
            "Net(",
            "  (first): Linear(in_features=3, out_features=2, bias=True)",
            "  (blocks): Sequential(",
            "    (0): Linear(in_features=2, out_features=2, bias=True)",
            "    (1): ReLU()",
            f"    (2): {net.blocks[2]!r}",
            "  )",
            ")",
        ]
    )
    text = repr(Conv2d(3, 6, 5, padding=2, groups=3, bias=False))
    expected = "3, 6, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), groups=3, bias=False"
    assert text == f"Conv2d({expected})"


def test_summary():
    net = Sequential(Conv2d(3, 4, 3), BatchNorm2d(4), ReLU(), Flatten(), Linear(16, 2))
    net[0].requires_grad_(False)
    text = net.summary((1, 3, 4, 4)).splitlines()
    assert text[0].split() == ["layer", "output", "shape", "parameters"]
    assert "0 (Conv2d)" in text[3]
    assert "(1, 4, 2, 2)" in text[3]
    assert text[3].endswith("112")
    assert "4 (Linear)" in text[7]
    assert text[7].endswith("34")
    assert text[-1] == "parameters: 42 trained, 112 frozen; buffer elements: 9"
    assert net.training


def test_summary_computes_nothing():
    net = Sequential(Linear(3, 2), BatchNorm1d(2))
    net.summary((1, 3))
    assert net[0].weight.node.storage is None
    assert net[1].num_batches_tracked.node.op.name == "const" or (
        net[1].num_batches_tracked.item() == 0
    )
    assert not net[0]._hooks


# Containers.


def test_sequential_is_a_list():
    net = Sequential(Linear(2, 3), ReLU(), Linear(3, 1))
    assert len(net) == 3
    assert isinstance(net[1], ReLU)
    assert net[-1] is net[2]
    assert [type(m).__name__ for m in net] == ["Linear", "ReLU", "Linear"]
    part = net[:2]
    assert isinstance(part, Sequential)
    assert part[0] is net[0]
    assert net.append(Tanh()) is net
    assert [n for n, _ in net.named_children()] == ["0", "1", "2", "3"]
    x = normal(4, 2)
    assert flat(net(x)) == flat(mg.nn.tanh(net[2](mg.nn.relu(net[0](x)))))
    with pytest.raises(IndexError):
        net[9]
    with pytest.raises(TypeError, match="Sequential: expected modules, got function"):
        Sequential(lambda x: x)


def test_module_list():
    modules = ModuleList([Linear(2, 2) for _ in range(3)])
    assert [n for n, _ in modules.named_parameters()][:2] == ["0.weight", "0.bias"]
    assert len(modules[1:]) == 2
    with pytest.raises(NotImplementedError):
        modules(1)


def test_residual():
    body, shortcut, x = Linear(3, 3), Linear(3, 3), normal(2, 3)
    assert flat(Residual(body)(x)) == flat(body(x) + x)
    assert flat(Residual(body, shortcut)(x)) == flat(body(x) + shortcut(x))
    assert [n for n, _ in Residual(body, shortcut).named_children()] == ["body", "shortcut"]


def test_concat():
    a, b, x = Conv2d(2, 1, 1), Conv2d(2, 3, 1), normal(2, 2, 3, 3)
    y = Concat(a, b, Identity())(x)
    assert y.shape == (2, 6, 3, 3)
    assert flat(y) == flat(mg.concat([a(x), b(x), x], axis=1))


def test_flatten():
    x = normal(2, 3, 4, 5)
    assert Flatten()(x).shape == (2, 60)
    assert Flatten(0)(x).shape == (120,)
    assert Flatten(1, 2)(x).shape == (2, 12, 5)
    assert flat(Flatten()(x)) == flat(x)


# Layers against their definitions.


def test_linear():
    linear, x = Linear(3, 2), normal(4, 3)
    w, b = linear.weight.tolist(), linear.bias.tolist()
    expected = [
        sum(w[o][i] * row[i] for i in range(3)) + b[o] for row in x.tolist() for o in range(2)
    ]
    assert flat(linear(x)) == pytest.approx(expected, abs=1e-6)
    assert linear(normal(2, 5, 3)).shape == (2, 5, 2)
    assert Linear(3, 2, bias=False).bias is None


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 1), ((1, 2), (2, 0), 1, 2)],
)
def test_conv2d(stride, padding, dilation, groups):
    conv = Conv2d(2, 4, (3, 2), stride, padding, dilation, groups).to("float64")
    x = normal(2, 2, 6, 5, dtype="float64")
    expected = convolved(x.tolist(), conv)
    y = conv(x)
    assert y.shape == (2, 4, len(expected[0][0]), len(expected[0][0][0]))
    assert flat(y) == pytest.approx([v for n in expected for o in n for r in o for v in r])


def convolved(x, conv):
    """The definition in the docstring of Conv2d, as loops."""
    (sh, sw), (ph, pw), (dh, dw) = conv.stride, conv.padding, conv.dilation
    kh, kw = conv.kernel_size
    height, width = len(x[0][0]), len(x[0][0][0])
    rows = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    columns = (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    weight, bias = conv.weight.tolist(), conv.bias.tolist()
    per_group, outs = len(weight[0]), len(weight) // conv.groups

    def at(n, o, i, j):
        total = bias[o]
        for c, u, v in itertools.product(range(per_group), range(kh), range(kw)):
            a, b = i * sh + u * dh - ph, j * sw + v * dw - pw
            if 0 <= a < height and 0 <= b < width:
                total += weight[o][c][u][v] * x[n][o // outs * per_group + c][a][b]
        return total

    return [
        [
            [[at(n, o, i, j) for j in range(columns)] for i in range(rows)]
            for o in range(len(weight))
        ]
        for n in range(len(x))
    ]


def test_conv2d_of_one_pixel_is_linear():
    conv, x = Conv2d(3, 4, 1), normal(2, 3, 2, 2)
    linear = Linear(3, 4)
    linear.load_state_dict({"weight": conv.weight.reshape((4, 3)), "bias": conv.bias})
    rows = mg.reshape(mg.permute_dims(x, (0, 2, 3, 1)), (-1, 3))
    expected = mg.permute_dims(mg.reshape(linear(rows), (2, 2, 2, 4)), (0, 3, 1, 2))
    assert flat(conv(x)) == pytest.approx(flat(expected), abs=1e-6)


def test_conv2d_groups_must_divide():
    with pytest.raises(ValueError, match="Conv2d: expected groups to divide"):
        Conv2d(3, 4, 3, groups=2)


def test_pooling():
    x = normal(1, 2, 4, 6)
    data = x.tolist()
    windows = [
        [data[0][c][2 * i + u][2 * j + v] for u in (0, 1) for v in (0, 1)]
        for c in range(2)
        for i in range(2)
        for j in range(3)
    ]
    assert flat(MaxPool2d(2)(x)) == [max(w) for w in windows]
    assert flat(AvgPool2d(2)(x)) == pytest.approx([sum(w) / 4 for w in windows], abs=1e-6)
    assert MaxPool2d(3, stride=2, padding=1)(x).shape == (1, 2, 2, 3)
    y = GlobalAvgPool2d()(x)
    assert y.shape == (1, 2)
    assert flat(y) == pytest.approx([sum(map(sum, data[0][c])) / 24 for c in range(2)], abs=1e-6)


def test_dropout():
    x = mg.ones((40, 50))
    layer = Dropout(0.25, generator=mg.random.Generator(0))
    values = flat(layer(x))
    kept = [v for v in values if v != 0]
    assert kept == pytest.approx([4 / 3] * len(kept))
    assert abs(len(kept) / 2000 - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 2000)
    assert flat(layer(x)) != values
    assert flat(layer.eval()(x)) == flat(x)
    with pytest.raises(ValueError, match=r"Dropout.p: expected a probability in \[0, 1\), got 1"):
        Dropout(1.0)


def _sigmoid(v):
    return 1 / (1 + math.exp(-v))


def _selu(v):
    return 1.0507009873554805 * (v if v > 0 else 1.6732632423543772 * math.expm1(v))


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (layers.Identity(), lambda v: v),
        (layers.ReLU(), lambda v: max(v, 0)),
        (layers.LeakyReLU(0.2), lambda v: v if v > 0 else 0.2 * v),
        (layers.ELU(0.5), lambda v: v if v > 0 else 0.5 * math.expm1(v)),
        (layers.SELU(), _selu),
        (layers.GELU(), lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2)))),
        (layers.SiLU(), lambda v: v * _sigmoid(v)),
        (layers.Sigmoid(), _sigmoid),
        (layers.Tanh(), math.tanh),
        (layers.Softplus(), lambda v: math.log1p(math.exp(v))),
    ],
    ids=lambda p: type(p).__name__ if isinstance(p, Module) else "",
)
def test_activations(layer, function):
    x = mg.tensor([-3.0, -0.5, 0.0, 0.25, 2.0], dtype="float64")
    assert layer(x).tolist() == pytest.approx([function(v) for v in x.tolist()], abs=1e-12)


def test_softmax():
    x = normal(2, 4, dtype="float64")
    expected = []
    for row in x.tolist():
        total = sum(math.exp(v) for v in row)
        expected += [math.exp(v) / total for v in row]
    assert flat(layers.Softmax()(x)) == pytest.approx(expected)
    assert flat(layers.LogSoftmax(dim=1)(x)) == pytest.approx([math.log(v) for v in expected])
    assert flat(layers.Softmax(0)(x)) != pytest.approx(expected)
