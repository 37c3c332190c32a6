"""Filter response normalization against its closed form and PyTorch."""

from __future__ import annotations

import pytest

import minigrad as mg
from layers import FilterResponseNorm
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


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 6)])
def test_equals_its_closed_form(shape):
    x, g = normal(*shape).requires_grad_(), normal(*shape, seed=1)
    gamma, beta, tau = (normal(3, seed=s).requires_grad_() for s in (2, 3, 4))
    y = nn.filter_response_norm(x, gamma, beta, tau, eps=1e-3)
    found = [y, *mg.gradients([y], [x, gamma, beta, tau], [g])]
    inputs = (t.detach() for t in (x, gamma, beta, tau))
    for a, b in zip(found, closed_forms.filter_response(*inputs, g, 1e-3), strict=True):
        assert_close(a, b)


def test_first_and_second_derivatives_against_pytorch():
    torch = pytest.importorskip("torch")
    x, g, u = normal(2, 3, 2, 3), normal(2, 3, 2, 3, seed=1), normal(2, 3, 2, 3, seed=2)
    affine = [normal(3, seed=3), normal(3, seed=4), normal(3, seed=5)]

    def both(f, inputs, g, u, gradients):
        y = f(*inputs)
        first = gradients([y], inputs, [g], create_graph=True)
        return [y, *first, *gradients([first[0]], [inputs[0], inputs[1], g], [u])]

    ours = both(
        lambda *a: nn.filter_response_norm(*a, 1e-3),
        [t.detach().requires_grad_() for t in (x, *affine)], g.requires_grad_(), u, mg.gradients,
    )  # fmt: skip

    def theirs(x, gamma, beta, tau):
        gamma, beta, tau = (t.reshape(3, 1, 1) for t in (gamma, beta, tau))
        nu = (x * x).mean((2, 3), keepdim=True)
        y = x / torch.sqrt(nu + 1e-3) * gamma + beta
        return torch.where(y > tau, y, tau)

    as_torch = [
        torch.tensor(t.tolist(), dtype=torch.float64, requires_grad=True) for t in (x, *affine, g)
    ]
    expected = both(
        theirs, as_torch[:4], as_torch[4], torch.tensor(u.tolist(), dtype=torch.float64),
        torch.autograd.grad,
    )  # fmt: skip
    for a, b in zip(ours, expected, strict=True):
        assert_close(a, b.flatten().tolist())


def test_two_derivatives():
    def f(x, gamma, beta, eps):
        return nn.filter_response_norm(x, gamma, beta, None, eps)

    mg.gradcheck(f, normal(2, 3, 2, 3), normal(3), normal(3, seed=1), 1 + 0 * normal(3), order=2)


def test_the_threshold_has_the_gradient_where_both_are_equal():
    layer = FilterResponseNorm(1).to("float64")
    x = mg.zeros((1, 1, 2), dtype="float64").requires_grad_()  # y = 0, the threshold too
    g = mg.ones((1, 1, 2), dtype="float64")
    y = layer(x)
    dx, dtau = mg.gradients([y], [x, layer.threshold], [g])
    assert (flat(dx), flat(dtau)) == ([0.0, 0.0], [2.0])


def test_maps_of_one_pixel_need_a_learned_eps():
    x = mg.tensor([[[0.1]], [[-5.0]]], dtype="float64")
    plain, learned = FilterResponseNorm(1).to("float64"), FilterResponseNorm(1, learn_eps=True)
    learned = learned.to("float64")
    for layer in (plain, learned):
        layer.threshold.assign(layer.threshold - 9)
    assert flat(plain(x)) == pytest.approx([1, -1], abs=1e-4)
    learned.extra_eps.assign(learned.extra_eps * 0 - 0.01)  # by its absolute value
    assert flat(learned(x)) == pytest.approx([0.1 / (0.02 + 1e-6) ** 0.5, -0.9998], abs=1e-4)
    (d,) = mg.gradients([learned(x)], [learned.extra_eps], [mg.ones_like(x)])
    assert d.item() != 0


def test_samples_do_not_depend_on_each_other():
    layer, x = FilterResponseNorm(3).to("float64"), normal(4, 3, 2, 2)
    assert flat(layer(x)[1:2]) == flat(layer(x[1:2]))
    assert flat(layer.eval()(x)) == flat(layer.train()(x))


def test_messages():
    with pytest.raises(ValueError, match=r"eps: expected a number > 0, got 0"):
        FilterResponseNorm(3, eps=0)
    with pytest.raises(ValueError, match=r"expected x of shape \(N, 3, \*spatial\), got \(2, 3\)"):
        FilterResponseNorm(3)(mg.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"expected x of shape \(N, C, \*spatial\), got \(2, 3\)"):
        nn.filter_response_norm(mg.zeros((2, 3)))
    assert repr(FilterResponseNorm(3)) == "FilterResponseNorm(3, eps=1e-06, learn_eps=False)"
