"""nn functions: closed forms, special values, PyTorch where it is installed, gradients, errors."""

from __future__ import annotations

import math

import pytest

import minigrad as mg
from minigrad import nn

INF, NAN = math.inf, math.nan


def normal(*shape, seed=0, dtype="float64", mean=0.0, std=1.0):
    generator = mg.random.Generator(seed)
    return mg.random.normal(shape, mean, std, dtype, generator=generator)


def flat(x):
    return x.reshape((-1,)).tolist()


def assert_close(actual, expected, rtol=1e-10, atol=1e-12):
    a = flat(actual) if isinstance(actual, mg.Tensor) else actual
    b = flat(expected) if isinstance(expected, mg.Tensor) else expected
    assert a == pytest.approx(b, rel=rtol, abs=atol, nan_ok=True)


def gradient_of(f, x, cotangent=None):
    x = mg.tensor(x, dtype="float64", requires_grad=True)
    y = f(x)
    y.backward(mg.ones(y.shape, dtype=y.dtype) if cotangent is None else cotangent)
    return x.grad.tolist()


# Activations: values and derivatives by formula

SIGMOID = [1 / (1 + math.exp(-v)) for v in (-2.0, 0.0, 3.0)]
ACTIVATIONS = {
    "relu": (nn.relu, [0, 0, 3], [0, 0, 1]),
    "leaky_relu": (lambda x: nn.leaky_relu(x, 0.1), [-0.2, 0, 3], [0.1, 0.1, 1]),
    "elu": (lambda x: nn.elu(x, 2.0), [2 * math.expm1(-2), 0, 3], [2 * math.exp(-2), 2, 1]),
    "silu": (
        nn.silu,
        [v * s for v, s in zip((-2, 0, 3), SIGMOID, strict=True)],
        [s + v * s * (1 - s) for v, s in zip((-2, 0, 3), SIGMOID, strict=True)],
    ),
    "sigmoid": (nn.sigmoid, SIGMOID, [s * (1 - s) for s in SIGMOID]),
    "tanh": (
        nn.tanh,
        [math.tanh(v) for v in (-2, 0, 3)],
        [1 - math.tanh(v) ** 2 for v in (-2, 0, 3)],
    ),
    "softplus": (nn.softplus, [math.log1p(math.exp(v)) for v in (-2, 0, 3)], SIGMOID),
    "gelu": (
        nn.gelu,
        [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in (-2, 0, 3)],
        [
            0.5 * (1 + math.erf(v / math.sqrt(2)))
            + v * math.exp(-v * v / 2) / math.sqrt(2 * math.pi)
            for v in (-2, 0, 3)
        ],
    ),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_and_derivative_by_formula(name):
    f, values, slopes = ACTIVATIONS[name]
    assert_close(f(mg.tensor([-2.0, 0.0, 3.0], dtype="float64")), values)
    assert_close(gradient_of(f, [-2.0, 0.0, 3.0]), slopes)


SMOOTH = {
    "elu": nn.elu,
    "selu": nn.selu,
    "gelu": nn.gelu,
    "gelu tanh": lambda x: nn.gelu(x, approximate="tanh"),
    "silu": nn.silu,
    "sigmoid": nn.sigmoid,
    "softplus": nn.softplus,
    "softplus beta": lambda x: nn.softplus(x, beta=3.0),
    "softmax": nn.softmax,
    "softmax over axis 0": lambda x: nn.softmax(x, axis=0),
    "log_softmax": nn.log_softmax,
}


@pytest.mark.parametrize("name", SMOOTH)
def test_activations_have_two_right_derivatives(name):
    mg.gradcheck(SMOOTH[name], normal(3, 4), order=2)


def test_activations_at_special_values():
    x = mg.tensor([-INF, -1000.0, 1000.0, INF, NAN])
    assert_close(nn.relu(x), [0, 0, 1000, INF, NAN])
    assert_close(nn.leaky_relu(x), [-INF, -10, 1000, INF, NAN], rtol=1e-6)
    assert_close(nn.elu(x), [-1, -1, 1000, INF, NAN])
    assert_close(nn.sigmoid(x), [0, 0, 1, 1, NAN])
    assert_close(nn.softplus(x), [0, 0, 1000, INF, NAN])
    assert_close(nn.softmax(mg.tensor([1000.0, 1000.0, -INF])), [0.5, 0.5, 0])
    assert_close(nn.log_softmax(mg.tensor([0.0, 2000.0])), [-2000, 0])


@pytest.mark.parametrize("f", [nn.elu, nn.selu, nn.softplus, nn.sigmoid, nn.silu, nn.gelu])
def test_derivatives_far_out_are_finite(f):
    assert all(math.isfinite(v) for v in gradient_of(f, [-1000.0, 1000.0]))


def test_small_values_keep_their_digits_in_float32():
    x = mg.tensor([-1e-6, -3e-8])
    assert_close(nn.elu(x), [math.expm1(-1e-6), math.expm1(-3e-8)], rtol=1e-6)
    assert_close(nn.softplus(mg.tensor([-20.0])), [math.log1p(math.exp(-20))], rtol=1e-6, atol=0)


def test_softplus_has_its_second_derivative_at_zero():
    second = mg.grad(lambda x: mg.grad(lambda t: nn.softplus(t))(x))
    assert second(mg.tensor(0.0, dtype="float64")).item() == pytest.approx(0.25)


# Against PyTorch: value and gradients of every input, for a random cotangent

TORCH = {
    "relu": (nn.relu, "relu", [(5, 7)]),
    "selu": (nn.selu, "selu", [(5, 7)]),
    "elu": (nn.elu, "elu", [(5, 7)]),
    "gelu": (nn.gelu, "gelu", [(5, 7)]),
    "gelu tanh": (
        lambda x: nn.gelu(x, "tanh"),
        lambda F, x: F.gelu(x, approximate="tanh"),
        [(5, 7)],
    ),
    "softplus": (nn.softplus, "softplus", [(5, 7)]),
    "softmax": (lambda x: nn.softmax(x, 1), lambda F, x: F.softmax(x, 1), [(3, 4, 5)]),
    "linear": (nn.linear, "linear", [(3, 4, 5), (6, 5), (6,)]),
    "conv2d": (nn.conv2d, "conv2d", [(2, 3, 7, 6), (4, 3, 3, 2), (4,)]),
    "conv2d strided": (
        lambda x, w: nn.conv2d(x, w, stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        lambda F, x, w: F.conv2d(x, w, None, (2, 1), (1, 2), (1, 2)),
        [(2, 3, 9, 8), (4, 3, 3, 2)],
    ),
    "conv2d same, groups": (
        lambda x, w: nn.conv2d(x, w, padding="same", groups=2, dilation=(2, 1)),
        lambda F, x, w: F.conv2d(x, w, padding="same", groups=2, dilation=(2, 1)),
        [(2, 4, 6, 5), (6, 2, 2, 4)],
    ),
    "conv2d valid": (
        lambda x, w: nn.conv2d(x, w, padding="valid"),
        lambda F, x, w: F.conv2d(x, w, padding="valid"),
        [(2, 2, 5, 5), (3, 2, 3, 3)],
    ),
    "conv_transpose2d": (
        nn.conv_transpose2d,
        "conv_transpose2d",
        [(2, 3, 4, 5), (3, 4, 3, 2), (4,)],
    ),
    "conv_transpose2d strided": (
        lambda x, w: nn.conv_transpose2d(
            x, w, stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2, dilation=(2, 1)
        ),
        lambda F, x, w: F.conv_transpose2d(x, w, None, (2, 3), (1, 0), (1, 2), 2, (2, 1)),
        [(2, 4, 4, 3), (4, 3, 3, 2)],
    ),
    "max_pool2d": (lambda x: nn.max_pool2d(x, 2), lambda F, x: F.max_pool2d(x, 2), [(2, 3, 6, 7)]),
    "max_pool2d all options": (
        lambda x: nn.max_pool2d(x, (3, 2), (2, 3), (1, 1), (1, 2), ceil_mode=True),
        lambda F, x: F.max_pool2d(x, (3, 2), (2, 3), (1, 1), (1, 2), ceil_mode=True),
        [(2, 3, 8, 9)],
    ),
    "adaptive, dividing": (
        lambda x: nn.adaptive_avg_pool2d(x, (3, 2)),
        lambda F, x: F.adaptive_avg_pool2d(x, (3, 2)),
        [(2, 3, 6, 8)],
    ),
    "adaptive, to 1": (
        lambda x: nn.adaptive_avg_pool2d(x, 1),
        lambda F, x: F.adaptive_avg_pool2d(x, 1),
        [(2, 3, 5, 4)],
    ),
    "adaptive, uneven": (
        lambda x: nn.adaptive_avg_pool2d(x, (3, None)),
        lambda F, x: F.adaptive_avg_pool2d(x, (3, None)),
        [(2, 3, 7, 4)],
    ),
    "adaptive, larger": (
        lambda x: nn.adaptive_avg_pool2d(x, 7),
        lambda F, x: F.adaptive_avg_pool2d(x, 7),
        [(2, 3, 3, 4)],
    ),
    "local_response_norm": (
        lambda x: nn.local_response_norm(x, 5, 0.3, 0.7, 2.0),
        lambda F, x: F.local_response_norm(x, 5, 0.3, 0.7, 2.0),
        [(2, 7, 3, 3)],
    ),
    "local_response_norm even": (
        lambda x: nn.local_response_norm(x, 4, 0.3),
        lambda F, x: F.local_response_norm(x, 4, 0.3),
        [(2, 7, 3)],
    ),
    "batch_norm": (
        lambda x, w, b: nn.batch_norm(x, weight=w, bias=b, training=True),
        lambda F, x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        [(4, 3, 5), (3,), (3,)],
    ),
    "layer_norm": (
        lambda x, w, b: nn.layer_norm(x, (4, 5), w, b),
        lambda F, x, w, b: F.layer_norm(x, (4, 5), w, b),
        [(3, 4, 5), (4, 5), (4, 5)],
    ),
    "group_norm": (
        lambda x, w, b: nn.group_norm(x, 2, w, b),
        lambda F, x, w, b: F.group_norm(x, 2, w, b),
        [(2, 6, 3, 2), (6,), (6,)],
    ),
    "instance_norm": (
        lambda x, w, b: nn.instance_norm(x, weight=w, bias=b),
        lambda F, x, w, b: F.instance_norm(x, weight=w, bias=b),
        [(2, 3, 4, 5), (3,), (3,)],
    ),
    "rms_norm": (
        lambda x, w: nn.rms_norm(x, (5,), w),
        lambda F, x, w: F.rms_norm(x, (5,), w),
        [(3, 4, 5), (5,)],
    ),
    "mse_loss": (nn.mse_loss, "mse_loss", [(3, 4), (3, 4)]),
}
for _ceil in (False, True):
    for _counted in (False, True):
        TORCH[f"avg_pool2d ceil={_ceil} counted={_counted}"] = (
            lambda x, c=_ceil, i=_counted: nn.avg_pool2d(x, (3, 2), (2, 3), (1, 1), c, i),
            lambda F, x, c=_ceil, i=_counted: F.avg_pool2d(x, (3, 2), (2, 3), (1, 1), c, i),
            [(2, 3, 8, 9)],
        )


IN_FLOAT32 = [
    "gelu",
    "softmax",
    "linear",
    "conv2d strided",
    "max_pool2d",
    "batch_norm",
    "layer_norm",
]
ROWS = [(name, "float64") for name in TORCH] + [(name, "float32") for name in IN_FLOAT32]


@pytest.mark.filterwarnings("ignore:Using padding")
@pytest.mark.parametrize(("name", "dtype"), ROWS)
def test_against_torch(name, dtype):
    torch = pytest.importorskip("torch")
    ours, theirs, shapes = TORCH[name]
    if isinstance(theirs, str):
        theirs = lambda F, *a, f=theirs: getattr(F, f)(*a)  # noqa: E731
    data = [normal(*s, seed=k, dtype=dtype) for k, s in enumerate(shapes)]
    mine = [mg.tensor(x, requires_grad=True) for x in data]
    other = [torch.tensor(x.tolist(), dtype=getattr(torch, dtype)).requires_grad_() for x in data]
    y, expected = ours(*mine), theirs(torch.nn.functional, *other)
    assert y.shape == tuple(expected.shape)
    tolerance = {"float64": (1e-10, 1e-12), "float32": (2e-5, 2e-5)}[dtype]
    assert_close(y, expected.flatten().tolist(), *tolerance)
    cotangent = normal(*y.shape, seed=9, dtype=dtype)
    y.backward(cotangent)
    expected.backward(torch.tensor(cotangent.tolist(), dtype=expected.dtype))
    for a, b in zip(mine, other, strict=True):
        assert_close(a.grad, b.grad.flatten().tolist(), *tolerance)


# Normalization


def test_moments_by_hand():
    x = mg.tensor([[1.0, 2.0], [3.0, 6.0]], dtype="float64")
    mean, var = nn.moments(x, 0)
    assert (mean.tolist(), var.tolist()) == ([2, 4], [1, 4])
    mean, var = nn.moments(x, (0, 1), keepdims=True)
    assert (mean.tolist(), var.tolist()) == ([[3]], [[3.5]])


def test_variance_does_not_suffer_from_the_mean():
    x = mg.tensor([10000.0, 10001.0, 10002.0, 10003.0] * 256)
    mean, var = nn.moments(x, 0)
    assert (mean.item(), var.item()) == (10001.5, 1.25)


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4, 1e5])
def test_normalization_is_accurate_at_any_mean(offset):
    """x_hat and dx in float32 against float64, with a cotangent that is correlated with x."""
    deviation = normal(64, 3, 4, 4, dtype="float32")
    x32 = mg.tensor((deviation + offset).tolist())
    g32 = normal(64, 3, 4, 4, seed=1, dtype="float32") + deviation * 0.5 + 0.3

    def run(dtype):
        x = mg.tensor(x32.astype(dtype), requires_grad=True)
        y = nn.batch_norm(x, training=True)
        y.backward(g32.astype(dtype))
        return y.detach().astype("float64"), x.grad.astype("float64")

    for actual, expected in zip(run("float32"), run("float64"), strict=True):
        worst = mg.max(mg.abs(actual - expected)) / mg.max(mg.abs(expected))
        assert worst.item() < 1e-6


def test_centring_twice_is_centring_once():
    x = mg.tensor(normal(4, 3), requires_grad=True)
    z, sample = nn.centre(x, 0)
    mean, var = nn.moments(z, 0)
    again, same = nn.moments(x, 0)
    assert var.node is same.node
    assert sample.tolist() == x[0:1].tolist()
    assert_close(mean + sample[0], again)


def test_batch_norm_golden_values():
    """By hand: x = (1, 3, 5, 7), gamma 2, beta 0.5, eps 1e-3, g = (1, 0, 0, 0)."""
    x = mg.tensor([[1.0], [3.0], [5.0], [7.0]], dtype="float64", requires_grad=True)
    w = mg.tensor([2.0], dtype="float64", requires_grad=True)
    b = mg.tensor([0.5], dtype="float64", requires_grad=True)
    y = nn.batch_norm(x, weight=w, bias=b, training=True, eps=1e-3)
    assert_close(y, [-2.1830132851, -0.3943377617, 1.3943377617, 3.1830132851], rtol=1e-9)
    y.backward(mg.tensor([[1.0], [0.0], [0.0], [0.0]], dtype="float64"))
    assert_close(x.grad, [0.2683818028, -0.3577082799, -0.0894606009, 0.178787078], rtol=1e-9)
    assert_close(w.grad, [-1.3415066425], rtol=1e-9)
    assert_close(b.grad, [1])


def test_layer_norm_golden_values():
    x = mg.tensor([[1.0, 2.0, 3.0, 4.0]], dtype="float64", requires_grad=True)
    w = mg.tensor([1.0, 2.0, 3.0, 4.0], dtype="float64")
    y = nn.layer_norm(x, 4, w)
    y.backward(mg.tensor([[1.0, 0.0, 0.0, 1.0]], dtype="float64"))
    assert_close(x.grad, [0.9838563149, -0.7155421105, -1.5205169227, 1.2522027183], rtol=1e-9)


def test_group_norm_golden_values():
    rows = [[1.0, 2], [3, 5], [0, 4], [2, 2]]
    x = mg.tensor([rows], dtype="float64", requires_grad=True)
    w = mg.tensor([1.0, 2.0, -1.0, 0.5], dtype="float64", requires_grad=True)
    y = nn.group_norm(x, 2, w)
    y.backward(mg.tensor([[[1.0, 0], [0, 1], [1, 1], [0, -1]]], dtype="float64"))
    assert_close(
        x.grad,
        [
            *(0.5408957867, -0.3477205414, -0.5602150112, 0.3670397659),
            *(-0.26516438, -0.26516438, 0.4419406334, 0.0883881267),
        ],
        rtol=1e-8,
    )
    assert_close(w.grad, [-1.1832132521, 1.5212741813, 0, 0], rtol=1e-9)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: nn.batch_norm(x, training=True),
        lambda x: nn.layer_norm(x, (4, 2)),
        lambda x: nn.group_norm(x, 2),
        lambda x: nn.instance_norm(x),
        lambda x: nn.rms_norm(x, 2),
        lambda x: nn.local_response_norm(x[..., None], 3),
        lambda x: nn.local_response_norm(x[..., None], 3, mode="within_channel"),
    ],
)
def test_normalizations_have_two_right_derivatives(f):
    mg.gradcheck(f, normal(3, 4, 2), order=2)


def test_running_statistics_golden_values():
    """By hand: three batches, momentum 0.1, unbiased variance."""
    mean, var = mg.zeros(1, dtype="float64"), mg.ones(1, dtype="float64")
    seen = []
    for batch in ([1.0, 3, 5, 7], [2.0, 2, 4, 8], [0.0, 1, 0, 3]):
        x = mg.tensor(batch, dtype="float64").reshape((4, 1))
        nn.batch_norm(x, mean, var, training=True)
        seen.append((mean.item(), var.item()))
    assert_close([m for m, _ in seen], [0.4, 0.76, 0.784])
    assert_close([v for _, v in seen], [1.5666666666667, 2.21, 2.189])
    assert not mean.requires_grad
    y = nn.batch_norm(mg.tensor([[0.784]], dtype="float64"), mean, var)
    assert_close(y, [0.0])


def test_running_statistics_of_instances_are_averaged():
    torch = pytest.importorskip("torch")
    x = normal(3, 2, 4)
    mean, var = mg.zeros(2, dtype="float64"), mg.ones(2, dtype="float64")
    nn.instance_norm(x, mean, var)
    m, v = torch.zeros(2).double(), torch.ones(2).double()
    torch.nn.functional.instance_norm(torch.tensor(x.tolist(), dtype=torch.float64), m, v)
    assert_close(mean, m.tolist())
    assert_close(var, v.tolist())
    y = nn.instance_norm(x, mean, var, use_input_stats=False)
    assert_close(y, nn.batch_norm(x, mean, var))


def test_batch_normalization_takes_statistics_of_any_shape_that_fits():
    x = normal(2, 3, 4)
    m, v = mg.tensor([1.0, 2, 3], dtype="float64"), mg.tensor([1.0, 4, 9], dtype="float64")
    expected = (x - m.reshape((3, 1))) / mg.sqrt(v.reshape((3, 1)) + 1e-5) * 2.0 + 1.0
    two, one = mg.full(3, 2.0, dtype="float64"), mg.full(3, 1.0, dtype="float64")
    assert_close(nn.batch_normalization(x, m, v, one, two), expected)
    assert_close(
        nn.batch_normalization(x, m.reshape((1, 3, 1)), v.reshape((1, 3, 1)), one, two), expected
    )


def test_without_eps_a_constant_set_gives_zero():
    x = mg.tensor([[5.0, 1.0], [5.0, 3.0]], dtype="float64", requires_grad=True)
    y = nn.batch_norm(x, training=True, eps=0)
    assert y.tolist() == [[0, -1], [0, 1]]
    y.backward(mg.tensor([[1.0, 2.0], [3.0, 5.0]], dtype="float64"))
    assert all(math.isfinite(v) for v in flat(x.grad))


def test_empty_batch_gives_empty_output_and_leaves_statistics():
    mean, var = mg.zeros(3), mg.ones(3)
    y = nn.batch_norm(mg.zeros((0, 3, 2)), mean, var, training=True)
    assert y.tolist() == []
    assert (mean.tolist(), var.tolist()) == ([0] * 3, [1] * 3)


def test_local_response_norm_golden_values():
    x = mg.tensor([1.0, 2, 3, 4, 5], dtype="float64", requires_grad=True)
    y = nn.local_response_norm(x.reshape((1, 5, 1, 1)), 3, alpha=1.0)
    expected = [0.4792073282, 0.5445455905, 0.508276127, 0.4641881294, 0.6671468473]
    assert_close(y, expected, rtol=1e-9)
    y.sum().backward()
    expected = [0.3413078138, -0.0511771204, -0.0856075754, -0.1227789111, -0.0459758426]
    assert_close(x.grad, expected, rtol=1e-8)
    y = nn.local_response_norm(
        mg.tensor([[[[1.0, 2], [3, 4]]]], dtype="float64"), 3, alpha=1.0, mode="within_channel"
    )
    assert_close(y, [0.3329533791, 0.6659067581, 0.9988601372, 1.3318135163], rtol=1e-9)


# Dropout


def test_dropout():
    x = mg.ones((1000,), dtype="float64")
    y = flat(nn.dropout(x, 0.25, generator=mg.random.Generator(3)))
    assert set(y) == {0.0, 1 / 0.75}
    assert abs(sum(y) / 1000 - 1) < 0.1
    assert flat(nn.dropout(x, 0.25, generator=mg.random.Generator(3))) == y
    assert nn.dropout(x, 0.25, training=False).node is x.node
    assert set(flat(nn.dropout(x, 1.0))) == {0.0}


def test_dropout_masks_its_gradient_alike():
    x = mg.tensor(normal(50), requires_grad=True)
    y = nn.dropout(x, 0.5)
    y.backward(mg.ones(50, dtype="float64"))
    assert_close(y, x.detach() * x.grad)


# Losses


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [None, 1, -100])
def test_cross_entropy_against_torch(reduction, smoothing, weighted, ignored):
    torch = pytest.importorskip("torch")
    logits, w = mg.tensor(normal(6, 4, 2), requires_grad=True), mg.abs(normal(4, seed=1))
    labels = mg.random.randint(0, 4, (6, 2), generator=mg.random.Generator(2)).tolist()
    if ignored == -100:
        labels[2] = [-100, 3]
    y = nn.cross_entropy(
        logits,
        mg.tensor(labels),
        weight=w if weighted else None,
        reduction=reduction,
        label_smoothing=smoothing,
        ignore_index=ignored,
    )
    x = torch.tensor(logits.tolist(), dtype=torch.float64).requires_grad_()
    expected = torch.nn.functional.cross_entropy(
        x,
        torch.tensor(labels),
        weight=torch.tensor(w.tolist(), dtype=torch.float64) if weighted else None,
        reduction=reduction,
        label_smoothing=smoothing,
        ignore_index=-100 if ignored is None else ignored,
    )
    assert_close(y, expected.flatten().tolist(), 1e-6)
    cotangent = normal(*y.shape, seed=4)
    y.backward(cotangent)
    expected.backward(torch.tensor(cotangent.tolist(), dtype=expected.dtype))
    assert_close(logits.grad, x.grad.flatten().tolist(), 1e-6, 1e-8)


def test_cross_entropy_by_hand():
    logits = mg.tensor([[0.0, 0.0], [math.log(3.0), 0.0]], dtype="float64", requires_grad=True)
    loss = nn.cross_entropy(logits, mg.tensor([0, 1]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    loss.backward()
    assert_close(logits.grad, [-0.25, 0.25, 0.375, -0.375])


def test_cross_entropy_of_probabilities():
    logits, p = normal(3, 4), nn.softmax(normal(3, 4, seed=1))
    expected = -(p * nn.log_softmax(logits)).sum(axis=1).mean()
    assert_close(nn.cross_entropy(logits, p), expected)
    one_hot = mg.one_hot(mg.tensor([1, 0, 3]), 4).astype("float64")
    assert_close(nn.cross_entropy(logits, one_hot), nn.cross_entropy(logits, mg.tensor([1, 0, 3])))


def test_cross_entropy_survives_extreme_logits():
    logits = mg.tensor([[1e4, 0.0], [0.0, -INF]], requires_grad=True)
    loss = nn.cross_entropy(logits, mg.tensor([1, 0]))
    assert loss.item() == 5000
    loss.backward()
    assert_close(logits.grad, [0.5, -0.5, 0, 0])


def test_nll_loss_is_the_rest_of_cross_entropy():
    x, labels = normal(5, 3), mg.tensor([0, 2, 1, 1, 0])
    assert_close(nn.nll_loss(nn.log_softmax(x, 1), labels), nn.cross_entropy(x, labels))


def test_labels_out_of_range_are_named(on_cpu):  # where labels can be looked at
    x = mg.zeros((3, 10))
    with pytest.raises(ValueError, match=r"labels in 0\.\.9 .* got 10 at position 1"):
        nn.cross_entropy(x, mg.tensor([0, 10, 2]))
    with pytest.raises(ValueError, match=r"got -1 at position 2"):
        nn.cross_entropy(x, mg.tensor([0, 1, -1]).astype("int32"))
    with pytest.raises(ValueError, match=r"got 12 at position \(1, 1\)"):
        nn.nll_loss(mg.zeros((2, 10, 2)), mg.tensor([[1, 2], [3, 12]]))


def test_labels_out_of_range_that_cannot_be_seen_make_the_loss_nan():
    @mg.compile
    def loss(x, labels):
        return nn.cross_entropy(x, labels)

    x = mg.zeros((3, 10))
    for _ in range(3):
        assert loss(x, mg.tensor([0, 1, 2])).item() == pytest.approx(math.log(10))
    assert math.isnan(loss(x, mg.tensor([0, 10, 2])).item())


def test_binary_cross_entropy_against_torch():
    torch = pytest.importorskip("torch")
    x, t = mg.tensor(normal(4, 3) * 3, requires_grad=True), nn.sigmoid(normal(4, 3, seed=1))
    w, p = mg.abs(normal(4, 3, seed=2)), mg.abs(normal(3, seed=3))
    a, b, c, d = (torch.tensor(v.tolist(), dtype=torch.float64) for v in (x, t, w, p))
    for ours, theirs in (
        ({}, {}),
        ({"weight": w, "pos_weight": p}, {"weight": c, "pos_weight": d}),
    ):
        y = nn.binary_cross_entropy_with_logits(x, t, **ours)
        z = a.clone().requires_grad_()
        expected = torch.nn.functional.binary_cross_entropy_with_logits(z, b, **theirs)
        expected.backward()
        x.grad = None
        y.backward()
        assert_close(y, [expected.item()], 1e-6)
        assert_close(x.grad, z.grad.flatten().tolist(), 1e-6)


def test_binary_cross_entropy_at_extremes_and_zero():
    x = mg.tensor([-1000.0, 1000.0, 0.0], dtype="float64", requires_grad=True)
    loss = nn.binary_cross_entropy_with_logits(
        x, mg.tensor([0.0, 0.0, 0.0], dtype="float64"), reduction="none"
    )
    assert_close(loss, [0, 1000, math.log(2)])
    loss.backward(mg.ones(3, dtype="float64"))
    assert_close(x.grad, [0, 1, 0.5])


# What goes wrong is named

X = [[[[0.0] * 5] * 4] * 3] * 2  # (2, 3, 4, 5)
ERRORS = [
    (lambda x: nn.elu([1.0]), TypeError, "elu: expected x to be a Tensor, got list"),
    (lambda x: nn.elu(mg.tensor([1])), TypeError, "elu: expected x of a floating dtype, got int64"),
    (lambda x: nn.gelu(x, "fast"), ValueError, "gelu: expected approximate 'none' or 'tanh'"),
    (lambda x: nn.softplus(x, beta=0), ValueError, "softplus: expected beta > 0"),
    (lambda x: nn.softmax(x, 4), ValueError, "softmax: expected an axis in"),
    (
        lambda x: nn.linear(x, mg.zeros((2, 7))),
        ValueError,
        r"linear: expected x of shape \(..., 7\)",
    ),
    (lambda x: nn.linear(x, mg.zeros(5)), ValueError, r"weight of shape \(out, in\)"),
    (
        lambda x: nn.linear(x, mg.zeros((2, 5)), mg.zeros(3)),
        ValueError,
        r"bias of shape \(2,\), got \(3,\)",
    ),
    (
        lambda x: nn.linear(x, mg.zeros((2, 5), dtype="float64")),
        TypeError,
        "expected weight of x's dtype float32, got float64",
    ),
    (lambda x: nn.conv2d(x[0], x), ValueError, r"conv2d: expected x of shape \(N, C, H, W\)"),
    (lambda x: nn.conv2d(x, mg.zeros((8, 2, 3, 3))), ValueError, r"C=3, groups=1 .* got \(8, 2"),
    (
        lambda x: nn.conv2d(x, mg.zeros((8, 3, 7, 7))),
        ValueError,
        "images no smaller than the kernel",
    ),
    (lambda x: nn.conv2d(x, mg.zeros((8, 3, 3, 3)), stride=0), ValueError, "stride of 1 or more"),
    (lambda x: nn.conv2d(x, mg.zeros((8, 3, 3, 3)), padding="full"), ValueError, "'same', 'valid'"),
    (
        lambda x: nn.conv2d(x, mg.zeros((8, 3, 3, 3)), stride=2, padding="same"),
        ValueError,
        "stride 1 with padding 'same'",
    ),
    (
        lambda x: nn.conv2d(x, mg.zeros((8, 3, 3, 3)), padding=1.5),
        TypeError,
        "padding to be an int",
    ),
    (
        lambda x: nn.conv2d(x, mg.zeros((8, 3, 3, 3)), dilation=(1, 2, 3)),
        ValueError,
        "dilation of one or two integers",
    ),
    (
        lambda x: nn.conv_transpose2d(x, mg.zeros((2, 3, 3, 3))),
        ValueError,
        r"conv_transpose2d: expected weight of shape \(C, O / groups",
    ),
    (
        lambda x: nn.conv_transpose2d(x, mg.zeros((3, 2, 3, 3)), output_padding=1),
        ValueError,
        "output_padding smaller",
    ),
    (lambda x: nn.max_pool2d(x, 2, padding=2), ValueError, "at most half of kernel_size"),
    (lambda x: nn.max_pool2d(x, 6), ValueError, "images no smaller than the window"),
    (lambda x: nn.adaptive_avg_pool2d(x, 0), ValueError, "output_size of 1 or more, got 0"),
    (lambda x: nn.batch_norm(x[0, 0, 0]), ValueError, r"\(N, C, \*spatial\), got \(5,\)"),
    (
        lambda x: nn.batch_norm(x, mg.zeros(3)),
        ValueError,
        "running_mean and running_var together",
    ),
    (
        lambda x: nn.batch_norm(x, mg.zeros(2), mg.zeros(3)),
        ValueError,
        r"running_mean of shape \(3,\), got \(2,\)",
    ),
    (
        lambda x: nn.batch_norm(mg.zeros((1, 3)), training=True),
        ValueError,
        "more than one value for each statistic",
    ),
    (lambda x: nn.batch_norm(x, training=True, eps=-1), ValueError, "eps of 0 or more"),
    (lambda x: nn.layer_norm(x, (7,)), ValueError, r"ends in the shape \(7,\), got \(2, 3, 4, 5\)"),
    (lambda x: nn.layer_norm(x, 5, mg.zeros(4)), ValueError, r"weight of shape \(5,\), got \(4,\)"),
    (lambda x: nn.group_norm(x, 2), ValueError, "num_groups to divide 3, got 2"),
    (lambda x: nn.instance_norm(x[:, :, :1, :1]), ValueError, "more than one value"),
    (lambda x: nn.local_response_norm(x, 5, k=0), ValueError, "k > 0 and alpha >= 0"),
    (lambda x: nn.local_response_norm(x, 4, mode="within_channel"), ValueError, "odd size"),
    (lambda x: nn.local_response_norm(x, 4, mode="all"), ValueError, "across_channels"),
    (lambda x: nn.dropout(x, 1.5), ValueError, r"p in \[0, 1\], got 1.5"),
    (lambda x: nn.cross_entropy(x[0, 0, 0], mg.tensor(1)), ValueError, r"logits of shape \(N, C"),
    (
        lambda x: nn.cross_entropy(x[:, :, 0, 0], mg.tensor([1])),
        ValueError,
        r"labels of shape \(2,\) for logits \(2, 3\), got \(1,\)",
    ),
    (
        lambda x: nn.cross_entropy(x[:, :, 0, 0], mg.tensor([True, False])),
        TypeError,
        "integer labels, got bool",
    ),
    (
        lambda x: nn.cross_entropy(x[:, :, 0, 0], mg.tensor([1, 2]), reduction="max"),
        ValueError,
        "reduction 'mean', 'sum' or 'none'",
    ),
    (lambda x: nn.mse_loss(x, x[0]), ValueError, "mse_loss: expected target of shape"),
]


@pytest.mark.parametrize(("call", "error", "text"), ERRORS)
def test_bad_arguments_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call(mg.tensor(X))
