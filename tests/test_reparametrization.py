"""Weight norm, weight standardization, spectral norm, NormProp: values, derivatives, states."""

from __future__ import annotations

import math

import mpmath
import pytest

import minigrad as mg
from layers import Conv2d, Linear, ReLU, Sequential, functional_call
from layers.norm import (
    NormProp,
    NormPropConv2d,
    NormPropLinear,
    SpectralNorm,
    WeightNorm,
    WeightStandardization,
    initialize_weight_norm,
)
from minigrad import nn
from tests import closed_forms


def normal(*shape, seed=0, dtype="float64", device=None):
    generator = mg.random.Generator(seed)
    return mg.random.normal(shape, dtype=dtype, device=device, generator=generator)


def flat(t):
    return mg.reshape(t, (-1,)).tolist()


def assert_close(found, expected, rel=1e-10):
    expected = expected if isinstance(expected, list) else flat(expected)
    assert flat(found) == pytest.approx(expected, rel=rel, abs=rel)


def column(v, like):
    return v.reshape((-1,) + (1,) * (like.ndim - 1))


LAYERS = {
    "linear": (lambda: Linear(4, 3), (5, 4)),
    "conv": (lambda: Conv2d(2, 3, 3, padding=1), (2, 2, 4, 5)),
}
WRAPPERS = {
    "weight norm": WeightNorm,
    "log weight norm": lambda layer: WeightNorm(layer, log_scale=2.0),
    "weight standardization": WeightStandardization,
    "spectral norm": lambda layer: SpectralNorm(layer).eval(),
    "NormProp": lambda layer: NormProp(layer, "tanh"),
}


def made(wrapper, layer):
    """A wrapped layer in float64 and an input; parameters are random."""
    build, shape = LAYERS[layer]
    module = WRAPPERS[wrapper](build()).to("float64")
    for seed, p in enumerate(module.parameters(), 10):
        p.assign(p + 0.3 * normal(*p.shape, seed=seed))
    return module, normal(*shape)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_two_derivatives(wrapper, layer):
    module, x = made(wrapper, layer)
    names = [name for name, _ in module.named_parameters()]

    def f(x, *values):
        return functional_call(module, dict(zip(names, values, strict=True)), x)

    mg.gradcheck(f, x, *module.parameters(), order=2)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapping_registers_the_parameters_of_the_layer(wrapper):
    module, x = made(wrapper, "linear")
    assert module(x).shape == (5, 3)
    assert {"layer.weight", "layer.bias"} <= dict(module.named_parameters()).keys()
    again = WRAPPERS[wrapper](Linear(4, 3)).to("float64")
    again.load_state_dict(module.state_dict())
    assert_close(again(x), module(x))
    y = nn.linear(x, module.weight, module.layer.bias)
    assert_close(module(x), nn.propagate(y, "tanh") if wrapper == "NormProp" else y)


def test_what_has_no_weight_cannot_be_wrapped():
    with pytest.raises(TypeError, match="WeightNorm: expected a layer with a weight, got ReLU"):
        WeightNorm(ReLU())


# Weight norm.


def test_golden_weight_norm():
    v = mg.tensor([[3.0, 4.0]], dtype="float64", requires_grad=True)
    g = mg.tensor([10.0], dtype="float64", requires_grad=True)
    w = nn.weight_norm(v, g)
    dv, dg = mg.gradients([w], [v, g], [mg.tensor([[1.0, 0.0]], dtype="float64")])
    assert_close(w, [6, 8])
    assert_close(dg, [0.6])
    assert_close(dv, [1.28, -0.96])


@pytest.mark.parametrize(("shape", "axis"), [((3, 4), 0), ((3, 2, 2, 3), 0), ((2, 3, 2), 1)])
def test_weight_norm_against_pytorch(shape, axis):
    torch = pytest.importorskip("torch")
    v, g, dw = normal(*shape), normal(shape[axis], seed=1), normal(*shape, seed=2)
    u = normal(*shape, seed=3)

    def derivatives(f, v, g, dw, u, gradients):
        w = f(v, g)
        first = gradients([w], [v, g], [dw], create_graph=True)
        return [w, *first, *gradients([first[0]], [v, g, dw], [u])]

    ours = derivatives(
        lambda v, g: nn.weight_norm(v, g, axis),
        *(t.detach().requires_grad_() for t in (v, g, dw)), u, mg.gradients,
    )  # fmt: skip
    v_, g_, dw_, u_ = (
        torch.tensor(t.tolist(), requires_grad=True, dtype=torch.float64) for t in (v, g, dw, u)
    )
    kept = [-1 if a == axis else 1 for a in range(len(shape))]
    others = [a for a in range(len(shape)) if a != axis]
    theirs = derivatives(
        lambda v, g: v * (g.reshape(kept) / torch.linalg.vector_norm(v, dim=others, keepdim=True)),
        v_, g_, dw_, u_, torch.autograd.grad,
    )  # fmt: skip
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b.flatten().tolist())


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 2, 3)])
def test_weight_norm_equals_its_closed_form(shape):
    v, g = normal(*shape).requires_grad_(), normal(3, seed=1).requires_grad_()
    dw = normal(*shape, seed=2)
    dv, dg = mg.gradients([nn.weight_norm(v, g)], [v, g], [dw])
    expected_dv, expected_dg = closed_forms.weight_norm(v.detach(), g.detach(), dw)
    assert_close(dv, expected_dv)
    assert_close(dg, expected_dg)
    assert_close(mg.sum(dv * v, axis=tuple(range(1, v.ndim))), [0.0] * 3)  # orthogonal


def test_weight_norm_is_the_layer_as_it_was():
    for axis, log_scale in ((0, None), (0, 0.5), (1, None)):
        layer, x = Linear(4, 3).to("float64"), normal(5, 4)
        before = layer(x)
        assert_close(WeightNorm(layer, axis, log_scale)(x), before)


def test_the_logarithm_of_the_length():
    plain, log = (
        WeightNorm(Linear(4, 3).to("float64")),
        WeightNorm(Linear(4, 3).to("float64"), 0, 2.0),
    )
    log.load_state_dict({**plain.state_dict(), "scale": mg.log(plain.scale) / 2})
    x, g = normal(5, 4), normal(5, 3, seed=1)
    (ds,) = mg.gradients([log(x)], [log.scale], [g])
    (dg,) = mg.gradients([plain(x)], [plain.scale], [g])
    assert_close(ds, 2 * plain.scale * dg)  # ds = c g dg
    assert repr(log).startswith("WeightNorm(axis=0, log_scale=2.0")


def test_a_longer_direction_is_the_same_function():
    module, x = made("weight norm", "conv")
    before = module(x)
    module.layer.weight.assign(module.layer.weight * 3)
    assert_close(module(x), before)


@pytest.mark.parametrize("log_scale", [None, 1.0])
@pytest.mark.parametrize("layer", LAYERS)
def test_initialization_on_a_batch(layer, log_scale):
    build, shape = LAYERS[layer]
    module = WeightNorm(build().to("float64"), log_scale=log_scale)
    x = 2 + 3 * normal(*shape)
    module.initialize(x, init_scale=0.5)
    y = module(x)
    axes = tuple(a for a in range(y.ndim) if a != 1)
    assert_close(mg.mean(y, axis=axes), [0.0] * 3)
    assert_close(mg.std(y, axis=axes), [0.5] * 3, rel=1e-8)  # 1e-10 is added to the variance


def test_initialization_goes_from_layer_to_layer():
    model = Sequential(
        WeightNorm(Conv2d(2, 3, 3)), ReLU(), WeightNorm(Conv2d(3, 4, 3, bias=False))
    ).to("float64")
    x = 2 + normal(8, 2, 6, 6)
    initialize_weight_norm(model, x)
    first, last = model[0](x), model(x)
    for y in (first, last):
        assert_close(mg.std(y, axis=(0, 2, 3)), [1.0] * y.shape[1], rel=1e-8)
    assert_close(mg.mean(first, axis=(0, 2, 3)), [0.0] * 3)
    assert not any(m._hooks for m in model.modules())


def test_errors_of_weight_norm():
    layer = Linear(4, 3)
    layer.weight.assign(mg.concat([layer.weight[:2], mg.zeros((1, 4))]))
    with pytest.raises(ValueError, match="expected a weight that is not 0 for each output"):
        WeightNorm(layer)
    with pytest.raises(ValueError, match="log_scale: expected a number > 0, got -1"):
        WeightNorm(Linear(4, 3), log_scale=-1)
    with pytest.raises(
        ValueError, match=r"expected g of shape \(3,\), one for each index of axis 0"
    ):
        nn.weight_norm(mg.zeros((3, 4)), mg.zeros((4,)))


def test_a_compiled_step_trains_the_parameters():
    module, x = made("weight norm", "linear")
    target = normal(5, 3, seed=5)
    optimizer = mg.optim.SGD(module.parameters(), lr=0.05)

    @mg.compile
    def step(x, target):
        loss = mg.mean((module(x) - target) ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    losses = [step(x, target).item() for _ in range(6)]
    assert losses == sorted(losses, reverse=True)


# Weight standardization.


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 2, 3)])
def test_weight_standardization_equals_its_closed_form(shape):
    w, g = normal(*shape).requires_grad_(), normal(*shape, seed=1)
    y = nn.weight_standardization(w, eps=1e-3)
    (dw,) = mg.gradients([y], [w], [g])
    axes = tuple(range(1, len(shape)))
    expected_y, expected_dw = closed_forms.standardization(w.detach(), g, axes, 1e-3)
    assert_close(y, expected_y)
    assert_close(dw, expected_dw)


def test_a_constant_filter_becomes_zero():
    y = nn.weight_standardization(mg.full((2, 3), 0.7))
    assert y.tolist() == [[0.0] * 3] * 2
    assert repr(WeightStandardization(Linear(4, 3))).startswith("WeightStandardization(eps=1e-10")


# Spectral norm.


def test_spectral_norm_against_pytorch():
    torch = pytest.importorskip("torch")
    ours = SpectralNorm(Conv2d(2, 3, 3)).to("float64")
    conv = torch.nn.Conv2d(2, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(ours.trained.tolist(), dtype=torch.float64))
    theirs = torch.nn.utils.spectral_norm(conv)
    theirs.weight_u.copy_(torch.tensor(ours.u.tolist()))
    for seed in range(5):
        x, g = normal(2, 2, 5, 5, seed=seed), normal(2, 3, 3, 3, seed=seed + 9)
        y = ours(x)
        (dw,) = mg.gradients([y], [ours.layer.weight], [g])
        expected = theirs(torch.tensor(x.tolist(), dtype=torch.float64))
        theirs.zero_grad()
        expected.backward(torch.tensor(g.tolist(), dtype=torch.float64))
        assert_close(dw, theirs.weight_orig.grad.flatten().tolist())
        assert_close(ours.u, theirs.weight_u.tolist())
        assert_close(ours.v, theirs.weight_v.tolist())
        ours.layer.weight.assign(ours.layer.weight - 0.1 * dw)
        with torch.no_grad():
            theirs.weight_orig -= 0.1 * theirs.weight_orig.grad


def test_spectral_norm_equals_its_closed_form():
    w, u, v = normal(3, 4).requires_grad_(), normal(3, seed=1), normal(4, seed=2)
    g = normal(3, 4, seed=3)
    (dw,) = mg.gradients([nn.spectral_norm(w, u, v)], [w], [g])
    sigma = mg.sum(u[:, None] * w.detach() * v)
    expected = (g - mg.sum(g * w.detach() / sigma) * u[:, None] * v) / sigma
    assert_close(dw, expected)


def test_the_largest_singular_value_becomes_1():
    module, x = SpectralNorm(Linear(4, 3), iterations=50).to("float64"), normal(2, 4)
    mg.evaluate(module(x))
    values = mpmath.svd_r(mpmath.matrix(module.weight.tolist()), compute_uv=False)
    assert float(max(values)) == pytest.approx(1, rel=1e-12)
    before = module.u.tolist()
    mg.evaluate(module.eval()(x))
    assert module.u.tolist() == before
    assert repr(module).startswith("SpectralNorm(iterations=50, eps=1e-12")


# Normalization propagation.


A0, C0 = 1 / math.sqrt(2 * math.pi), math.sqrt((1 - 1 / math.pi) / 2)


def golden_layer():
    module = NormPropLinear(2, 1).to("float64")
    module.load_state_dict({"layer.weight": [[3.0, 4.0]], "layer.bias": [0.0], "scale": [1.0]})
    return module


def test_golden_norm_prop():
    module, one = golden_layer(), mg.ones((1, 1), dtype="float64")
    x = mg.tensor([[1.0, 1.0]], dtype="float64", requires_grad=True)
    y = module(x)
    dx, dw = mg.gradients([y], [x, module.layer.weight], [one])
    assert_close(y, [1.7146702745])
    assert_close(dx, [1.0277151303, 1.3702868404])
    assert_close(dw, [0.0548114736, -0.0411086052], rel=1e-9)
    x = mg.tensor([[1.0, -1.0]], dtype="float64", requires_grad=True)
    y = module(x)
    gradients = mg.gradients([y], [x, *module.parameters()], [one])
    assert_close(y, [-0.6833316961])
    assert all(v == 0 for g in gradients for v in flat(g))


def test_norm_prop_equals_its_closed_form():
    module = NormPropLinear(4, 3).to("float64")
    for seed, p in enumerate(module.parameters()):
        p.assign(p + 0.5 * normal(*p.shape, seed=seed + 5))
    x, g = normal(6, 4).requires_grad_(), normal(6, 3, seed=1)
    w, beta, gamma = module.layer.weight, module.layer.bias, module.scale
    y = module(x)
    found = [y, *mg.gradients([y], [x, w, gamma, beta], [g])]
    expected = closed_forms.norm_prop(*(t.detach() for t in (x, w, gamma, beta)), g)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "linear"])
def test_constants_of_the_activations(activation):
    f, mean, std, slope = nn.propagation(activation)
    g = {
        "relu": lambda z: max(z, 0),
        "sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
        "tanh": mpmath.tanh,
        "linear": lambda z: z,
    }[activation]

    def expectation(h):
        ends = [-12, -4, -1, 0, 1, 4, 12]
        return mpmath.quad(lambda z: h(z) * mpmath.npdf(z), ends)

    assert float(expectation(g)) == pytest.approx(mean, abs=1e-12)
    assert float(expectation(lambda z: (g(z) - mean) ** 2)) == pytest.approx(std**2, rel=1e-12)
    assert float(expectation(lambda z: mpmath.diff(g, z) ** 2 if z else 1)) == pytest.approx(
        slope**2, rel=1e-9
    )
    assert_close(f(mg.tensor([-1.0, 2.0], dtype="float64")), [float(g(-1)), float(g(2))])


def test_statistics_pass_through():
    """Independent standard inputs give outputs of mean 0 and deviation 1, at g = 1."""
    module = NormPropConv2d(8, 16, 3)
    module.scale.assign(mg.ones((16,)))
    y = module(normal(64, 8, 12, 12, dtype="float32"))
    assert mg.mean(y).item() == pytest.approx(0, abs=0.03)
    assert mg.std(y).item() == pytest.approx(1, abs=0.03)
    module = NormPropConv2d(8, 16, 3)  # at the gain that it starts with
    assert module.scale.tolist() == pytest.approx([1 / 1.2111739] * 16)
    y = module(normal(64, 8, 12, 12, dtype="float32"))
    assert mg.mean(y).item() == pytest.approx(-0.11859, abs=0.03)
    assert mg.std(y).item() == pytest.approx(0.82645, abs=0.03)


def test_the_unknown_activation():
    with pytest.raises(
        ValueError, match="expected activation relu, sigmoid, tanh, linear, got 'x'"
    ):
        NormPropLinear(2, 3, "x")


# Half precision: the layer is its function, bit for bit, and rounds once.


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_half_precision(wrapper, dtype):
    if mg.devices()["cuda"] != "usable":
        pytest.skip("no GPU and no stand-in")
    module = WRAPPERS[wrapper](Linear(4, 3)).to("cuda", dtype)
    x = normal(5, 4, dtype=dtype, device="cuda").requires_grad_()
    g = normal(5, 3, dtype=dtype, device="cuda", seed=1)
    weight = {
        "weight norm": lambda w: nn.weight_norm(w, module.scale),
        "log weight norm": lambda w: nn.weight_norm(w, mg.exp(2 * module.scale)),
        "weight standardization": nn.weight_standardization,
        "spectral norm": lambda w: nn.spectral_norm(w, module.u, module.v),
        "NormProp": lambda w: nn.weight_norm(w, module.scale),
    }[wrapper]
    y = nn.linear(x, weight(module.layer.weight), module.layer.bias)
    expected = nn.propagate(y, "tanh") if wrapper == "NormProp" else y
    of = [x, *module.parameters()]
    found = [module(x), *mg.gradients([module(x)], of, [g])]
    wanted = [expected, *mg.gradients([expected], of, [g])]
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype.name == dtype
        assert flat(a) == flat(b)
