"""Caffe's layers against its arithmetic, written here once more in plain Python.

Golden numbers and semantics are those of the references: BatchNorm's sums with a factor, LRN's two
regions, windows that hang over the end.
"""

from __future__ import annotations

import math

import pytest

import layers
import minigrad as mg
from layers.caffe import (
    LRN,
    MVN,
    BatchNorm,
    Bias,
    Pooling,
    Scale,
    from_batch_norm,
    to_batch_norm,
)
from layers.caffe.arrange import Eltwise, InnerProduct, Power, Reshape, Slice
from layers.caffe.loss import (
    Accuracy,
    EuclideanLoss,
    SigmoidCrossEntropyLoss,
    SoftmaxWithLoss,
)

BATCHES = [[1, 3, 5, 7], [2, 2, 4, 8], [0, 1, 0, 3]]


def normal(*shape, seed=0, dtype="float64"):
    return mg.random.normal(shape, dtype=dtype, generator=mg.random.Generator(seed))


def column(values):
    return mg.tensor([[float(v)] for v in values], dtype="float64")


def largest(a, b):
    return mg.max(mg.abs(a - b)).item()


def gradients(f, *inputs, g):
    """The derived gradients of <g, f(inputs)>."""
    return mg.vjp(f, *inputs)[1](g)


class PlainBatchNorm:
    """Caffe's BatchNorm on lists: x[n][c] is a list of pixels."""

    def __init__(self, channels, fraction=0.999, eps=1e-5):
        self.fraction, self.eps = fraction, eps
        self.mean_sum, self.var_sum, self.factor = [0.0] * channels, [0.0] * channels, 0.0

    def train(self, x):
        self.factor = self.fraction * self.factor + 1
        y = [[None] * len(self.mean_sum) for _ in x]
        for c in range(len(self.mean_sum)):
            values = [v for sample in x for v in sample[c]]
            m = len(values)
            mean = math.fsum(values) / m
            var = math.fsum((v - mean) ** 2 for v in values) / m
            correction = m / (m - 1) if m > 1 else 1.0
            self.mean_sum[c] = self.fraction * self.mean_sum[c] + mean
            self.var_sum[c] = self.fraction * self.var_sum[c] + correction * var
            self._normalize(x, y, c, mean, var)
        return y

    def test(self, x):
        share = 0.0 if self.factor == 0 else 1 / self.factor
        y = [[None] * len(self.mean_sum) for _ in x]
        for c in range(len(self.mean_sum)):
            self._normalize(x, y, c, share * self.mean_sum[c], share * self.var_sum[c])
        return y

    def _normalize(self, x, y, c, mean, var):
        for n, sample in enumerate(x):
            y[n][c] = [(v - mean) / math.sqrt(var + self.eps) for v in sample[c]]


def pixels(x):
    """A tensor (N, C, H, W) as lists for `PlainBatchNorm`."""
    return x.reshape((*x.shape[:2], -1)).tolist()


# BatchNorm.


def test_batch_norm_is_caffes_in_training_and_test():
    ours, plain = BatchNorm(3).to("float64"), PlainBatchNorm(3)
    x = normal(2, 3, 2, 2, seed=9)
    untrained = mg.tensor(plain.test(pixels(x)), dtype="float64")  # the factor is 0
    assert largest(ours.eval()(x).reshape((2, 3, 4)), untrained) < 1e-10 * 300
    ours.train()
    for seed in range(4):
        x = 3 + 2 * normal(4, 3, 2, 3, seed=seed)
        y, expected = ours(x), mg.tensor(plain.train(pixels(x)), dtype="float64")
        assert largest(y.reshape((4, 3, 6)), expected) < 1e-12
    assert ours.scale_factor.tolist() == pytest.approx([plain.factor], rel=1e-14)
    assert ours.mean_sum.tolist() == pytest.approx(plain.mean_sum, rel=1e-12)
    assert ours.var_sum.tolist() == pytest.approx(plain.var_sum, rel=1e-12)
    y = ours.eval()(x).reshape((4, 3, 6))
    assert largest(y, mg.tensor(plain.test(pixels(x)), dtype="float64")) < 1e-12


def test_batch_norm_in_float32_is_caffes_to_1e_6():
    ours, plain = BatchNorm(2), PlainBatchNorm(2)
    for seed in range(3):
        x = normal(5, 2, 3, 4, seed=seed, dtype="float32")
        y = mg.tensor(plain.train(pixels(x)), dtype="float64").astype("float32")
        assert largest(ours(x).reshape((5, 2, 12)), y) < 1e-6
    assert ours.mean_sum.tolist() == pytest.approx(plain.mean_sum, abs=1e-6)
    assert ours.var_sum.tolist() == pytest.approx(plain.var_sum, abs=1e-6)


@pytest.mark.parametrize(
    ("fraction", "factors", "means", "variances"),
    [
        (0.999, [1, 1.999, 2.997001], [4, 4, 2.9989993], [6.6666667, 7.3336668, 5.5539988]),
        (0.9, [1, 1.9, 2.71], [4, 4, 2.8929890], None),
    ],
)
def test_golden_moving_statistics(fraction, factors, means, variances):
    norm = BatchNorm(1, moving_average_fraction=fraction).to("float64")
    for i, batch in enumerate(BATCHES):
        mg.evaluate(norm(column(batch)))
        mean, var = norm.global_statistics()
        assert norm.scale_factor.tolist() == pytest.approx([factors[i]], abs=1e-12)
        assert mean.tolist() == pytest.approx([means[i]], abs=1e-7)
        if variances:
            assert var.tolist() == pytest.approx([variances[i]], abs=1e-7)
    if fraction == 0.999:
        assert norm.mean_sum.tolist() == pytest.approx([8.988004], abs=1e-9)
        assert norm.var_sum.tolist() == pytest.approx([16.64534], abs=1e-6)


def test_an_untrained_layer_in_eval_divides_by_the_root_of_eps():
    y = BatchNorm(1).to("float64").eval()(column([1, 2]))
    assert y.tolist() == [[pytest.approx(316.2277660)], [pytest.approx(632.4555320)]]


def test_what_is_normalized_with_depends_on_the_phase_unless_said():
    x = column([1, 3, 5, 7])
    for given, training, own in [
        (None, True, True), (None, False, False), (True, True, False), (True, False, False),
        (False, True, True), (False, False, True),
    ]:  # fmt: skip
        norm = BatchNorm(1, use_global_stats=given).to("float64").train(training)
        mg.evaluate(norm(x))
        mean = mg.mean(norm(x)).item()
        assert (abs(mean) < 1e-12) == own
        assert (norm.scale_factor.item() > 0) == (own and training)


def test_one_value_a_channel_gives_zero_and_is_stored_uncorrected():
    norm = BatchNorm(2).to("float64")
    assert norm(mg.tensor([[3.0, 4.0]], dtype="float64")).tolist() == [[0.0, 0.0]]
    assert norm.mean_sum.tolist() == [3.0, 4.0]
    assert norm.var_sum.tolist() == [0.0, 0.0]


def test_statistics_do_not_grow_a_graph():
    norm = BatchNorm(2)
    for seed in range(40):
        mg.evaluate(norm(normal(3, 2, seed=seed, dtype="float32")))
    assert not norm.mean_sum.node.inputs
    assert norm.scale_factor.item() == pytest.approx((1 - 0.999**40) / 0.001, rel=1e-4)


def test_batch_norm_backward_in_closed_form():
    """dx = (g - mean g - y mean(g y)) / sqrt(var + eps); with global statistics g / sqrt(...)."""
    x, g = 2 + 3 * normal(4, 3, 2, 3), normal(4, 3, 2, 3, seed=1)
    norm = BatchNorm(3).to("float64")
    axes = (0, 2, 3)

    def mean(t):
        return mg.mean(t, axis=axes, keepdims=True)

    var = mean((x - mean(x)) ** 2)
    y = (x - mean(x)) / mg.sqrt(var + 1e-5)
    expected = (g - mean(g) - y * mean(g * y)) / mg.sqrt(var + 1e-5)
    (dx,) = gradients(norm, x, g=g)
    assert largest(dx, expected) < 1e-10
    norm.eval()
    _, var = norm.global_statistics()
    (dx,) = gradients(norm, x, g=g)
    assert largest(dx, g / mg.sqrt(var + 1e-5).reshape((3, 1, 1))) < 1e-10


def test_batch_norm_and_scale_share_their_backward():
    """dscale = sum(g x_hat), dbias = sum g, dx = scale / s (g - dbias / m - x_hat dscale / m)."""
    x, g = normal(4, 3, 2, 3), normal(4, 3, 2, 3, seed=1)
    norm, scale = BatchNorm(3).to("float64"), Scale(3, bias_term=True).to("float64")
    weight, bias = 1 + normal(3, seed=2), normal(3, seed=3)

    def f(x, weight, bias):
        state = {"weight": weight, "bias": bias}
        return layers.functional_call(scale, state, norm(x))

    dx, dscale, dbias = gradients(f, x, weight, bias, g=g)
    axes, m = (0, 2, 3), 24
    deviation = x - mg.mean(x, axis=axes, keepdims=True)
    s = mg.sqrt(mg.mean(deviation**2, axis=axes, keepdims=True) + 1e-5)
    x_hat = deviation / s
    assert largest(dscale, mg.sum(g * x_hat, axis=axes)) < 1e-10
    assert largest(dbias, mg.sum(g, axis=axes)) < 1e-10
    per_channel = [t.reshape((3, 1, 1)) for t in (weight, dbias, dscale)]
    expected = per_channel[0] / s * (g - per_channel[1] / m - x_hat * per_channel[2] / m)
    assert largest(dx, expected) < 1e-10


def test_batch_norm_says_which_channels_it_expects():
    with pytest.raises(ValueError, match=r"caffe.BatchNorm: expected x of shape \(N, 3, "):
        BatchNorm(3)(normal(2, 4, 5, 5))


@pytest.mark.parametrize(
    ("dtype", "place"),
    [("float32", "cpu"), ("float64", "cpu"), ("float16", "cuda"), ("bfloat16", "cuda")],
)
def test_layers_are_the_graphs_of_the_functions(dtype, place):
    """So what holds for the functions, in halves and to any order, holds for the layers."""
    x = normal(4, 6, 3, 3, dtype="float32").to(place).astype(dtype)
    norm = BatchNorm(6).to(place)
    assert norm(x).node is mg.nn.batch_norm(x, training=True).node
    mean, var = norm.eval().global_statistics()
    assert norm(x).node is mg.nn.batch_norm(x, mean, var).node
    for region in ("ACROSS_CHANNELS", "WITHIN_CHANNEL"):
        y = mg.nn.local_response_norm(x, 3, 0.5, 0.75, 1.0, region.lower())
        assert LRN(3, 0.5, norm_region=region)(x).node is y.node


def test_batch_norm_with_scale_needs_two_reductions_backward():
    x, norm, scale = normal(4, 3, 2, 2), BatchNorm(3).to("float64"), Scale(3, bias_term=True)
    scale.to("float64")
    assert scale.weight is not None
    derivation = mg.study.derive(scale(norm(x)), [x, scale.weight, scale.bias])
    assert derivation.reductions[1] == 2


# Conversion.


def test_state_goes_to_batch_norm_2d_and_back():
    norm, scale = BatchNorm(3).to("float64"), Scale(3, bias_term=True).to("float64")
    scale.load_state_dict({"weight": 1 + normal(3, seed=5), "bias": normal(3, seed=6)})
    for seed in range(3):
        mg.evaluate(norm(normal(4, 3, 2, 2, seed=seed)))
    layer = to_batch_norm(norm, scale)
    x = normal(2, 3, 4, 4, seed=8)
    assert layer.momentum == pytest.approx(0.001)
    assert largest(layer.eval()(x), scale(norm.eval()(x))) < 1e-12
    assert largest(layer.train()(x), scale(norm.train()(x))) < 1e-12
    layer = to_batch_norm(norm, scale)
    back, factor = from_batch_norm(layer)
    assert back.scale_factor.tolist() == [1.0]
    assert largest(back.mean_sum, layer.running_mean) == 0
    assert largest(factor.eval()(back.eval()(x)), layer.eval()(x)) < 1e-12
    again = to_batch_norm(back, factor)
    assert largest(again.running_var, layer.running_var) == 0
    assert (again.momentum, again.eps) == (pytest.approx(layer.momentum), layer.eps)


def test_conversions_refuse_what_has_no_counterpart():
    with pytest.raises(ValueError, match="expected running statistics with a momentum"):
        from_batch_norm(layers.BatchNorm2d(3, momentum=None))
    with pytest.raises(ValueError, match="expected a Scale with one learned factor"):
        to_batch_norm(BatchNorm(3), Scale((3, 4)))


# Scale.


@pytest.mark.parametrize(
    ("shape", "axis"), [((3,), 1), ((3, 4), 1), ((3, 4, 6), 1), ((2,), 0), ((6,), -1), ((), 2)]
)
def test_scale_broadcasts_from_its_axis_on(shape, axis):
    x, weight, bias = normal(2, 3, 4, 6), normal(*shape, seed=1), normal(*shape, seed=2)
    scale = Scale(shape, axis, bias_term=True).to("float64")
    scale.load_state_dict({"weight": weight, "bias": bias})
    first = axis % 4
    behind = (1,) * (4 - first - len(shape))
    expected = x * weight.reshape(shape + behind) + bias.reshape(shape + behind)
    assert largest(scale(x), expected) == 0
    given = Scale(shape, axis, learned=False)
    assert [n for n, _ in given.named_parameters()] == []
    assert largest(given(x, weight), x * weight.reshape(shape + behind)) == 0
    offset = Bias(shape, axis).to("float64")
    assert largest(offset(x), x) == 0


def test_scale_starts_as_the_identity_and_checks_its_inputs():
    x = normal(2, 3, 4, 4)
    assert largest(Scale(3, bias_term=True).to("float64")(x), x) == 0
    with pytest.raises(ValueError, match=r"expected x with extents \(4,\) from axis 1 on"):
        Scale(4).to("float64")(x)
    with pytest.raises(ValueError, match="expected a factor as second input"):
        Scale(3, learned=False)(x)


# LRN.


def test_golden_lrn_across_channels():
    x = mg.tensor([1.0, 2, 3, 4, 5], dtype="float64").reshape((1, 5, 1, 1))
    layer = LRN(3, alpha=1.0)
    expected = [0.4792073282, 0.5445455905, 0.508276127, 0.4641881294, 0.6671468473]
    assert layer(x).reshape((5,)).tolist() == pytest.approx(expected, abs=1e-9)
    (dx,) = gradients(layer, x, g=mg.ones((1, 5, 1, 1), dtype="float64"))
    expected = [0.3413078138, -0.0511771204, -0.0856075754, -0.1227789111, -0.0459758426]
    assert dx.reshape((5,)).tolist() == pytest.approx(expected, abs=1e-9)


def test_golden_lrn_within_a_channel_ignores_k():
    x = mg.tensor([[[[1.0, 2], [3, 4]]]], dtype="float64")
    expected = [0.3329533791, 0.6659067581, 0.9988601372, 1.3318135163]
    for k in (1.0, 2.0):
        y = LRN(3, alpha=1.0, norm_region="WITHIN_CHANNEL", k=k)(x)
        assert y.reshape((4,)).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("region", ["ACROSS_CHANNELS", "WITHIN_CHANNEL"])
@pytest.mark.parametrize("n", [3, 15])
def test_lrn_backward_in_closed_form(region, n):
    """dx = g S^-beta - 2 alpha beta / |n| x win(g y / S), S = k + alpha / |n| win(x^2)."""
    x, g, alpha, beta = normal(2, 7, 3, 3), normal(2, 7, 3, 3, seed=1), 2.0, 0.75
    across = region == "ACROSS_CHANNELS"
    count = n if across else n * n

    def window(t):
        if across:
            half = n // 2
            near = [[float(abs(i - j) <= half) for j in range(7)] for i in range(7)]
            return mg.einsum("ij,njhw->nihw", mg.tensor(near, dtype="float64"), t)
        kernel = mg.ones((1, 1, n, n), dtype="float64")
        flat = mg.nn.conv2d(t.reshape((14, 1, 3, 3)), kernel, padding=n // 2)
        return flat.reshape(t.shape)

    layer = LRN(n, alpha, beta, region)
    s = 1 + alpha / count * window(x * x)
    y = x * s**-beta
    assert largest(layer(x), y) < 1e-12
    (dx,) = gradients(layer, x, g=g)
    expected = g * s**-beta - 2 * alpha * beta / count * x * window(g * y / s)
    assert largest(dx, expected) < 1e-10


@pytest.mark.parametrize("arguments", [{"local_size": 4}, {"norm_region": "ROWS"}])
def test_lrn_refuses_what_caffe_does(arguments):
    with pytest.raises(ValueError, match=r"caffe\.LRN: expected"):
        LRN(**arguments)


# MVN.


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("variance", [False, True])
def test_mvn(across, variance):
    x = 5 + normal(2, 3, 4, 4)
    axes = (1, 2, 3) if across else (2, 3)
    deviation = x - mg.mean(x, axis=axes, keepdims=True)
    divisor = mg.sqrt(mg.mean(deviation**2, axis=axes, keepdims=True)) + 1e-9
    y = MVN(variance, across)(x)
    assert largest(y, deviation / divisor if variance else deviation) < 1e-12


def test_mvn_of_a_constant_is_zero_with_a_finite_gradient():
    x = mg.full((1, 1, 2, 2), 7.0, dtype="float64")
    (dx,) = gradients(MVN(), x, g=normal(1, 1, 2, 2))
    assert largest(MVN()(x), mg.zeros(x.shape, dtype="float64")) == 0
    assert mg.all(mg.isfinite(dx)).item()


# Derivatives of second order.


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (BatchNorm(2), (3, 2, 2, 2)),
        (Scale(2, bias_term=True), (3, 2, 2, 2)),
        (LRN(3, alpha=0.7), (2, 4, 2, 2)),
        (LRN(3, alpha=0.7, norm_region="WITHIN_CHANNEL"), (2, 2, 3, 3)),
        (MVN(), (2, 2, 3, 3)),
        (Pooling("AVE", 3, 2, 1), (1, 2, 6, 6)),
        (InnerProduct(8, 3), (2, 2, 2, 2)),
        (Power(3, 0.5, 2.0), (2, 5)),
        (Eltwise("PROD"), (2, 3)),
    ],
)
def test_second_derivatives(layer, shape):
    layer.to("float64")
    for p in layer.parameters():
        p.assign(normal(*p.shape, seed=3))
    if isinstance(layer, Eltwise):
        assert mg.gradcheck(layer, normal(*shape), normal(*shape, seed=1), order=2)
    else:
        assert mg.gradcheck(layer, normal(*shape), order=2)


# Pooling.


def plain_pool(x, pool, kernel, stride, pad):
    """Caffe's loops over one map, a list of rows."""
    height, width = len(x), len(x[0])
    sizes = []
    for n, k, s, p in zip((height, width), kernel, stride, pad, strict=True):
        count = math.ceil((n + 2 * p - k) / s) + 1
        if any(pad) and (count - 1) * s >= n + p:
            count -= 1
        sizes.append(count)
    y = [[0.0] * sizes[1] for _ in range(sizes[0])]
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            h, w = i * stride[0] - pad[0], j * stride[1] - pad[1]
            if pool == "MAX":
                h2, w2 = min(h + kernel[0], height), min(w + kernel[1], width)
            else:
                h2, w2 = min(h + kernel[0], height + pad[0]), min(w + kernel[1], width + pad[1])
            size = (h2 - h) * (w2 - w)
            h, w = max(h, 0), max(w, 0)
            h2, w2 = min(h2, height), min(w2, width)
            inside = [x[a][b] for a in range(h, h2) for b in range(w, w2)]
            y[i][j] = max(inside) if pool == "MAX" else math.fsum(inside) / size
    return y


@pytest.mark.parametrize("pool", ["MAX", "AVE"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad"),
    [
        ((6, 6), 3, 2, 0), ((7, 5), 3, 2, 0), ((112, 9), 3, 2, 0), ((6, 6), 3, 2, 1),
        ((5, 8), 2, 2, 1), ((7, 7), 5, 3, 2), ((14, 14), 5, 3, 0), ((4, 6), (2, 3), (3, 2), 1),
        ((5, 5), 3, 1, 1), ((2, 2), 3, 2, 0), ((4, 5), 2, 3, 1),
    ],
)  # fmt: skip
def test_pooling_is_caffes(pool, size, kernel, stride, pad):
    x = normal(1, 1, *size)
    pairs = [v if isinstance(v, tuple) else (v, v) for v in (kernel, stride, pad)]
    expected = plain_pool(x[0, 0].tolist(), pool, *pairs)
    y = Pooling(pool, kernel, stride, pad)(x)
    assert y.shape == (1, 1, len(expected), len(expected[0]))
    assert largest(y[0, 0], mg.tensor(expected, dtype="float64")) < 1e-12


def test_the_windows_of_googlenet_round_up():
    sizes = [112]
    for _ in range(4):
        sizes.append(Pooling("MAX", 3, 2)(mg.zeros((1, 1, sizes[-1], sizes[-1]))).shape[2])
    assert sizes == [112, 56, 28, 14, 7]


def test_global_pooling_takes_the_whole_image():
    x = normal(2, 3, 5, 4)
    y = Pooling("AVE", global_pooling=True)(x)
    assert largest(y, mg.mean(x, axis=(2, 3), keepdims=True)) < 1e-14
    assert Pooling("MAX", global_pooling=True)(x).shape == (2, 3, 1, 1)


def test_a_window_behind_the_image_is_refused():
    with pytest.raises(ValueError, match="expected windows that begin inside the image"):
        Pooling("MAX", 1, 3)(normal(1, 1, 5, 5))


# The others.


def test_inner_product_takes_all_behind_its_axis():
    x = normal(2, 3, 4)
    weight, bias = normal(5, 12, seed=1), normal(5, seed=2)
    layer = InnerProduct(12, 5).to("float64")
    layer.load_state_dict({"weight": weight, "bias": bias})
    expected = x.reshape((2, 12)) @ weight.T + bias
    assert largest(layer(x), expected) < 1e-12
    turned = InnerProduct(12, 5, transpose=True).to("float64")
    turned.load_state_dict({"weight": weight.T, "bias": bias})
    assert largest(turned(x), expected) < 1e-12
    assert InnerProduct(4, 5, axis=2).to("float64")(x).shape == (2, 3, 5)


def test_eltwise():
    a, b = normal(2, 3), normal(2, 3, seed=1)
    assert largest(Eltwise("SUM", [2.0, -1.0])(a, b), 2 * a - b) == 0
    assert largest(Eltwise("PROD")(a, b), a * b) == 0
    assert largest(Eltwise("MAX")(a, b, a), mg.maximum(a, b)) == 0
    for call in (
        lambda: Eltwise("SUM", [1.0])(a, b),
        lambda: Eltwise("PROD", [1.0]),
        lambda: Eltwise("SUM")(a, b[:, :2]),
        lambda: Eltwise("MIN"),
    ):
        with pytest.raises(ValueError, match=r"caffe\.Eltwise: expected"):
            call()


def test_slice_and_reshape():
    x = normal(2, 6, 4)
    assert [t.shape for t in Slice(3)(x)] == [(2, 2, 4)] * 3
    for wrong in (Slice(4), Slice(2, slice_point=[6])):
        with pytest.raises(ValueError, match=r"caffe\.Slice: expected an extent that"):
            wrong(x)
    first, second = Slice(2, axis=2, slice_point=[1])(x)
    assert (first.shape, second.shape) == ((2, 6, 1), (2, 6, 3))
    assert largest(second, x[:, :, 1:]) == 0
    assert Reshape([0, -1])(x).shape == (2, 24)
    assert Reshape([3, 2], axis=1, num_axes=1)(x).shape == (2, 3, 2, 4)
    assert Reshape([1], axis=-1, num_axes=0)(x).shape == (2, 6, 4, 1)


def plain_softmax_loss(scores, labels, ignored=None):
    total, valid = 0.0, 0
    for row, label in zip(scores, labels, strict=True):
        if label != ignored:
            shift = max(row)
            total += math.log(math.fsum(math.exp(v - shift) for v in row)) - (row[label] - shift)
            valid += 1
    return total, valid


@pytest.mark.parametrize("normalization", ["FULL", "VALID", "BATCH_SIZE", "NONE"])
@pytest.mark.parametrize("ignored", [None, 1])
def test_softmax_loss_divides_as_asked(normalization, ignored):
    x, label = normal(2, 3, 1, 2), mg.tensor([[0.0, 1.0], [2.0, 2.0]])  # Caffe's labels are floats
    rows = mg.permute_dims(x, (0, 2, 3, 1)).reshape((4, 3)).tolist()
    total, valid = plain_softmax_loss(rows, [0, 1, 2, 2], ignored)
    divisor = {"FULL": 4, "VALID": valid, "BATCH_SIZE": 2, "NONE": 1}[normalization]
    loss = SoftmaxWithLoss(normalization, ignored)(x, label)
    assert loss.item() == pytest.approx(total / divisor, rel=1e-12)


def test_a_loss_of_nothing_but_ignored_labels_is_zero():
    loss = SoftmaxWithLoss(ignore_label=0)(normal(2, 3), mg.tensor([0, 0]))
    assert loss.item() == 0.0


def test_other_losses():
    x, t = normal(4, 3), mg.random.uniform((4, 3), dtype="float64")
    assert EuclideanLoss()(x, t).item() == pytest.approx(mg.sum((x - t) ** 2).item() / 8)
    p = mg.nn.sigmoid(x)
    expected = -mg.sum(t * mg.log(p) + (1 - t) * mg.log(1 - p)).item() / 4
    assert SigmoidCrossEntropyLoss()(x, t).item() == pytest.approx(expected)


def test_accuracy_counts_ties_as_wrong():
    x = mg.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 5.0], [1.0, 2.0, 3.0], [9.0, 0.0, 1.0]])
    labels = mg.tensor([0, 1, 1, 1])
    assert Accuracy()(x, labels).item() == 0.25
    assert Accuracy(top_k=2)(x, labels).item() == 0.75
    assert Accuracy(top_k=2, ignore_label=0)(x, labels).item() == pytest.approx(2 / 3)


def test_labels_must_fit():
    with pytest.raises(ValueError, match=r"caffe\.SoftmaxWithLoss: expected one label for each"):
        SoftmaxWithLoss()(normal(2, 3), mg.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="expected normalization one of FULL"):
        SoftmaxWithLoss("MEAN")
