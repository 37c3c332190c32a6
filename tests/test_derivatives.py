"""Derivatives of tensors and of functions: values, nesting, trees, and what is refused."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest

import minigrad as mg


def close(tensor: Any, expected: Any, tolerance: float = 1e-12) -> bool:
    """Whether nested lists agree, relative to 1 or the expected value."""

    def same(a: Any, e: Any) -> bool:
        if isinstance(e, list):
            return len(a) == len(e) and all(map(same, a, e))
        return abs(a - e) <= tolerance * max(1.0, abs(e))

    return same(tensor.tolist(), expected)


@pytest.fixture
def vector(device):
    """Makes a float64 tensor on the device under test."""

    def make(data: Any, requires_grad: bool = False) -> Any:
        return mg.tensor(data, dtype=mg.float64, device=device, requires_grad=requires_grad)

    return make


class TestGradients:
    def test_of_a_scalar(self, vector):
        x = vector([1.0, 2.0, 3.0], requires_grad=True)
        g = mg.gradients((x * x * x).sum(), x)
        assert close(g, [3.0, 12.0, 27.0])
        assert not g.requires_grad

    def test_of_a_list_of_inputs_is_a_list(self, vector):
        x, y = vector([1.0, 2.0], True), vector([3.0, 4.0], True)
        found = mg.gradients((x * y).sum(), [x, y])
        assert isinstance(found, list)
        assert close(found[0], [3.0, 4.0])
        assert close(found[1], [1.0, 2.0])

    def test_with_explicit_cotangents(self, vector):
        x = vector([1.0, 2.0], True)
        g = mg.gradients([x * x, x.sum()], x, [vector([1.0, 10.0]), None])
        assert close(g, [3.0, 41.0])

    def test_of_an_intermediate_result(self, vector):
        x = vector([1.0, 2.0], True)
        y = x * 2.0
        assert close(mg.gradients((y * y).sum(), y), [4.0, 8.0])

    def test_create_graph_goes_to_any_order(self, vector):
        x = vector(0.7, True)
        y = mg.sin(x)
        expected = [math.cos(0.7), -math.sin(0.7), -math.cos(0.7), math.sin(0.7), math.cos(0.7)]
        for value in expected:
            y = mg.gradients(y, x, create_graph=True)
            assert y.requires_grad
            assert close(y, value)

    def test_broadcasting_is_undone(self, vector):
        x, b = vector([[1.0, 2.0], [3.0, 4.0]], True), vector([1.0, 10.0], True)
        gx, gb = mg.gradients(((x + b) * vector([[1.0, 2.0], [3.0, 4.0]])).sum(), [x, b])
        assert close(gx, [[1.0, 2.0], [3.0, 4.0]])
        assert close(gb, [4.0, 6.0])

    def test_is_zero_where_a_path_has_derivative_zero(self, vector):
        x = vector([1.5], True)
        assert close(mg.gradients(mg.floor(x), x), [0.0])

    def test_unreachable_input(self, vector):
        x, y = vector([1.0], True), vector([1.0], True)
        with pytest.raises(mg.GradientError, match=r"depends on the input float64\[1\].*got none"):
            mg.gradients((x * x).sum(), [x, y])

    def test_path_only_through_an_op_without_a_derivative(self, vector):
        x = vector([1.0, 2.0], True)
        y = mg.argmax(x).astype(mg.float64)
        with pytest.raises(mg.GradientError, match="only through argmax"):
            mg.gradients(y, x)

    def test_path_only_through_stop_gradient(self, vector):
        x = vector([1.0], True)
        with pytest.raises(mg.GradientError, match="stop_gradient"):
            mg.gradients(mg.stop_gradient(x) * 2.0, x)

    def test_input_without_requires_grad(self, vector):
        x = vector([1.0])
        with pytest.raises(mg.GradientError, match=r"requires_grad=True, got float64\[1\] without"):
            mg.gradients(x * x, x)

    def test_integer_input(self, vector, device):
        k = mg.tensor([1, 2], device=device)
        with pytest.raises(TypeError, match=r"inputs to be floating-point tensors, got int64\[2\]"):
            mg.gradients(k.sum(), k)

    def test_integer_output(self, vector, device):
        x = vector([1.0], True)
        with pytest.raises(TypeError, match="outputs to be floating-point"):
            mg.gradients(mg.argmax(x), x)

    def test_output_of_several_elements(self, vector):
        x = vector([1.0, 2.0], True)
        with pytest.raises(ValueError, match=r"one element, got float64\[2\]. Reduce it"):
            mg.gradients(x * x, x)

    def test_cotangent_of_another_shape(self, vector):
        x = vector([1.0, 2.0], True)
        with pytest.raises(ValueError, match=r"cotangents like float64\[2\], got float64\[3\]"):
            mg.gradients(x * x, x, vector([1.0, 2.0, 3.0]))

    def test_cotangent_of_another_dtype(self, vector, device):
        x = vector([1.0, 2.0], True)
        with pytest.raises(TypeError, match=r"like float64\[2\], got float32\[2\]"):
            mg.gradients(x * x, x, mg.tensor([1.0, 2.0], device=device))

    def test_too_few_cotangents(self, vector):
        x = vector(1.0, True)
        with pytest.raises(ValueError, match="each of 2 outputs, got 1"):
            mg.gradients([x, x], x, [None])


class TestBackward:
    def test_fills_leaves_and_accumulates(self, vector):
        x, y = vector([1.0, 2.0], True), vector([3.0, 4.0], True)
        (x * y).sum().backward()
        (x * y).sum().backward()
        assert close(x.grad, [6.0, 8.0])
        assert close(y.grad, [2.0, 4.0])
        assert not x.grad.requires_grad

    def test_with_a_cotangent(self, vector):
        x = vector([1.0, 2.0], True)
        (x * x).backward(vector([1.0, 10.0]))
        assert close(x.grad, [2.0, 40.0])

    def test_create_graph(self, vector):
        x = vector([1.0, 2.0], True)
        (x * x * x).sum().backward(create_graph=True)
        first = x.grad
        x.grad = None
        first.sum().backward()
        assert close(x.grad, [6.0, 12.0])

    def test_after_the_value_was_looked_at(self, vector):
        x = vector([1.0, 2.0], True)
        loss = (x * x).sum()
        assert loss.item() == 5.0
        loss.backward()
        assert close(x.grad, [2.0, 4.0])

    def test_reaches_a_leaf_that_was_computed_and_then_detached(self, vector):
        x = (vector([1.0, 2.0]) * 3.0).requires_grad_()
        (x * x).sum().backward()
        assert close(x.grad, [6.0, 12.0])

    def test_reaches_a_leaf_that_was_assigned_to(self, vector):
        x = vector([1.0, 2.0], True)
        before = (x * x).sum()
        x.assign(vector([3.0, 4.0]))
        (x * x).sum().backward()
        assert close(x.grad, [6.0, 8.0])
        before.backward()  # the value it was computed from
        assert close(x.grad, [8.0, 12.0])

    def test_of_a_constant(self, vector):
        with pytest.raises(mg.GradientError, match="backward: expected a tensor that depends on"):
            vector(1.0).backward()

    def test_of_several_elements(self, vector):
        with pytest.raises(ValueError, match="backward: expected an output of one element"):
            vector([1.0, 2.0], True).backward()

    def test_under_no_grad(self, vector):
        x = vector([1.0], True)
        with mg.no_grad():
            y = (x * x).sum()
        with pytest.raises(mg.GradientError, match="no_grad"):
            y.backward()

    def test_of_a_leaf_itself(self, vector):
        x = vector(3.0, True)
        x.backward()
        assert close(x.grad, 1.0)

    def test_skips_a_leaf_that_is_gone(self, vector):
        x = vector([1.0, 2.0], True)
        y = (x * vector([1.0, 1.0], True)).sum()
        gc.collect()
        y.backward()
        assert close(x.grad, [1.0, 1.0])


class TestGrad:
    def test_of_a_python_float(self):
        assert mg.grad(lambda x: x * x)(3.0).item() == 6.0

    def test_perturbations_are_not_confused(self):
        """Siskind and Pearlmutter 2005: d/dx (x * d/dy (x y)) = 2x."""
        assert mg.grad(lambda x: x * mg.grad(lambda y: x * y)(2.0))(1.0).item() == 2.0

    def test_perturbations_of_the_same_tensor(self, vector):
        def f(x: Any) -> Any:
            return x * mg.grad(lambda y: x * y * y)(x)  # x * 2 x x = 2 x^3

        assert close(mg.grad(f)(vector(3.0)), 54.0)

    def test_nested_three_deep(self):
        f = mg.grad(mg.grad(mg.grad(lambda x: x * x * x * x)))
        assert f(2.0).item() == pytest.approx(48.0)

    def test_argnums(self, vector):
        def f(x: Any, y: Any) -> Any:
            return (x * x * y).sum()

        x, y = vector([1.0, 2.0]), vector([3.0, 4.0])
        assert close(mg.grad(f, argnums=1)(x, y), [1.0, 4.0])
        gx, gy = mg.grad(f, argnums=(0, 1))(x, y)
        assert close(gx, [6.0, 16.0])
        assert close(gy, [1.0, 4.0])
        assert close(mg.grad(f, argnums=-1)(x, y), [1.0, 4.0])

    def test_the_same_tensor_twice(self, vector):
        x = vector([3.0])
        gx, gy = mg.grad(lambda x, y: (x * x * y).sum(), argnums=(0, 1))(x, x)
        assert close(gx, [18.0])
        assert close(gy, [9.0])

    def test_trees(self, vector):
        parameters = {"w": vector([1.0, 2.0]), "rest": [vector(3.0), (vector(4.0),)]}

        def f(p: Any) -> Any:
            return (p["w"] * p["rest"][0]).sum() * p["rest"][1][0]

        g = mg.grad(f)(parameters)
        assert close(g["w"], [12.0, 12.0])
        assert close(g["rest"][0], 12.0)
        assert close(g["rest"][1][0], 9.0)

    def test_aux_and_keywords(self, vector):
        def f(x: Any, *, scale: float) -> Any:
            y = x * scale
            return (y * y).sum(), {"y": y, "label": "seen"}

        x = vector([1.0, 2.0])
        g, aux = mg.grad(f, has_aux=True)(x, scale=3.0)
        assert close(g, [18.0, 36.0])
        assert close(aux["y"], [3.0, 6.0])
        assert aux["label"] == "seen"
        assert not aux["y"].requires_grad
        (value, _), g = mg.value_and_grad(f, has_aux=True)(x, scale=3.0)
        assert close(value, 45.0)
        assert close(g, [18.0, 36.0])

    def test_value_and_grad(self, vector):
        value, g = mg.value_and_grad(lambda x: (x * x).sum())(vector([1.0, 2.0]))
        assert close(value, 5.0)
        assert close(g, [2.0, 4.0])

    def test_of_an_argument_that_is_not_used(self, vector):
        assert close(mg.grad(lambda x, y: (y * y).sum())(vector([1.0]), vector([2.0])), [0.0])

    def test_results_need_no_gradient_of_their_own(self, vector):
        value, g = mg.value_and_grad(lambda x: (x * x).sum())(vector([1.0]))
        assert not value.requires_grad
        assert not g.requires_grad

    def test_results_depend_on_what_the_function_closes_over(self, vector):
        w = vector([2.0, 3.0], True)
        g = mg.grad(lambda x: (w * x * x).sum())(vector([1.0, 2.0]))  # 2 w x
        assert g.requires_grad
        (g * g).sum().backward()  # d/dw 4 w^2 x^2
        assert close(w.grad, [16.0, 96.0])

    def test_inside_no_grad(self, vector):
        w = vector([2.0], True)
        with mg.no_grad():
            g = mg.grad(lambda x: (w * x * x).sum())(vector([3.0]))
        assert close(g, [12.0])
        assert not g.requires_grad

    def test_no_grad_inside(self, vector):
        def f(x: Any) -> Any:
            with mg.no_grad():
                y = x * x
            return (x * y).sum()

        assert close(mg.grad(f)(vector([3.0])), [9.0])

    def test_leaves_the_arguments_alone(self, vector):
        x = vector([1.0], True)
        mg.grad(lambda y: (y * y).sum())(x)
        assert x.grad is None

    def test_output_of_several_elements(self, vector):
        with pytest.raises(
            ValueError, match=r"grad: expected f to return one element, got float64\[2\]"
        ):
            mg.grad(lambda x: x * x)(vector([1.0, 2.0]))

    def test_output_that_is_no_tensor(self, vector):
        with pytest.raises(
            TypeError, match="grad: expected f to return floating-point tensors, got str"
        ):
            mg.grad(lambda x: "no")(1.0)

    def test_aux_without_a_pair(self, vector):
        with pytest.raises(TypeError, match=r"expected f to return \(value, aux\)"):
            mg.grad(lambda x: x, has_aux=True)(1.0)

    @pytest.mark.parametrize("argument", [3, True])
    def test_integer_argument(self, argument):
        with pytest.raises(
            TypeError, match="grad: expected arguments to differentiate by that are"
        ):
            mg.grad(lambda x: x * x)(argument)

    def test_argnums_out_of_range(self, vector):
        with pytest.raises(ValueError, match="among the 1 positional arguments, got 1"):
            mg.grad(lambda x: x, argnums=1)(1.0)


class TestProducts:
    def test_vjp(self, vector):
        x, y = vector([1.0, 2.0]), vector(3.0)
        value, pullback = mg.vjp(lambda x, y: x * x * y, x, y)
        assert close(value, [3.0, 12.0])
        gx, gy = pullback(vector([1.0, 10.0]))
        assert close(gx, [6.0, 120.0])
        assert close(gy, 41.0)

    def test_vjp_of_a_tree(self, vector):
        value, pullback = mg.vjp(lambda x: {"a": x * x, "b": [x * 3.0]}, vector(2.0))
        assert close(value["b"][0], 6.0)
        (g,) = pullback({"a": 1.0, "b": [vector(10.0)]})
        assert close(g, 34.0)

    def test_vjp_with_a_wrong_cotangent(self, vector):
        _, pullback = mg.vjp(lambda x: x * x, vector([1.0, 2.0]))
        with pytest.raises(ValueError, match=r"vjp: expected cotangents like float64\[2\]"):
            pullback(vector([1.0]))
        with pytest.raises(ValueError, match="vjp: expected 1 cotangents, got 2"):
            pullback([vector([1.0, 1.0])] * 2)

    def test_jvp(self, vector):
        value, tangent = mg.jvp(lambda x, y: x * y, (vector([1.0, 2.0]), vector([3.0, 4.0])),
                                (vector([1.0, 0.0]), vector([0.0, 1.0])))  # fmt: skip
        assert close(value, [3.0, 8.0])
        assert close(tangent, [3.0, 2.0])

    def test_jvp_of_one_argument(self, vector):
        x = vector([0.5, 1.0])
        value, tangent = mg.jvp(mg.exp, x, vector([2.0, 0.0]))
        assert close(value, [math.exp(0.5), math.e])
        assert close(tangent, [2.0 * math.exp(0.5), 0.0])

    def test_jvp_of_a_constant(self, vector):
        _, tangent = mg.jvp(lambda x: vector([1.0, 2.0]), vector(1.0), vector(1.0))
        assert close(tangent, [0.0, 0.0])

    def test_jvp_agrees_with_vjp(self, vector):
        def f(x: Any) -> Any:
            return mg.tanh(x @ x) * mg.sin(x)

        x, d, c = (vector([[a, 0.2], [0.3, -0.4]]) for a in (0.7, -1.1, 0.4))
        _, tangent = mg.jvp(f, x, d)
        _, pullback = mg.vjp(f, x)
        assert (tangent * c).sum().item() == pytest.approx((pullback(c)[0] * d).sum().item())

    def test_jvp_with_a_wrong_tangent(self, vector):
        with pytest.raises(ValueError, match="jvp: expected tangents like"):
            mg.jvp(mg.exp, vector([1.0, 2.0]), vector([1.0]))

    def test_hvp(self, vector):
        def f(x: Any) -> Any:
            return (x * x * x).sum() + x[0] * x[1]

        product = mg.hvp(f, vector([1.0, 2.0]), vector([1.0, 10.0]))
        assert close(product, [16.0, 121.0])

    def test_hvp_of_several_arguments(self, vector):
        hx, hy = mg.hvp(
            lambda x, y: x * x * y, (vector(2.0), vector(3.0)), (vector(1.0), vector(10.0))
        )
        assert close(hx, 46.0)
        assert close(hy, 4.0)

    def test_hvp_of_a_linear_function(self, vector):
        assert close(mg.hvp(lambda x: x.sum(), vector([1.0, 2.0]), vector([1.0, 1.0])), [0.0, 0.0])


class TestMatrices:
    def test_jacobian(self, vector):
        j = mg.jacobian(lambda x: mg.stack([x[0] * x[1], x[1] * x[1], x[0]]))(vector([2.0, 3.0]))
        assert close(j, [[3.0, 2.0], [0.0, 6.0], [1.0, 0.0]])

    def test_jacobian_shapes(self, vector):
        x = vector([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
        j = mg.jacobian(lambda x: x.sum(axis=0))(x)
        assert j.shape == (3, 2, 3)
        assert mg.jacobian(lambda x: x * x)(vector(2.0)).item() == 4.0
        assert mg.jacobian(lambda x: x[:0])(x).shape == (0, 3, 2, 3)

    def test_jacobian_of_several_arguments(self, vector):
        jx, jy = mg.jacobian(lambda x, y: x * y, argnums=(0, 1))(vector([1.0, 2.0]), vector(3.0))
        assert close(jx, [[3.0, 0.0], [0.0, 3.0]])
        assert close(jy, [1.0, 2.0])

    def test_hessian(self, vector):
        h = mg.hessian(lambda x: x[0] * x[0] * x[1] + mg.sin(x[1]))(vector([2.0, 3.0]))
        assert close(h, [[6.0, 4.0], [4.0, -math.sin(3.0)]])

    def test_hessian_of_a_linear_function(self, vector):
        assert close(mg.hessian(lambda x: x.sum())(vector([1.0, 2.0])), [[0.0, 0.0], [0.0, 0.0]])

    def test_hessian_blocks(self, vector):
        blocks = mg.hessian(lambda x, y: (x * x).sum() * y, argnums=(0, 1))(
            vector([1.0, 2.0]), vector(3.0)
        )
        assert close(blocks[0][0], [[6.0, 0.0], [0.0, 6.0]])
        assert close(blocks[0][1], [2.0, 4.0])
        assert close(blocks[1][0], [2.0, 4.0])
        assert close(blocks[1][1], 0.0)

    def test_hessian_names_itself_in_errors(self, vector):
        with pytest.raises(ValueError, match="hessian: expected f to return one element"):
            mg.hessian(lambda x: x * x)(vector([1.0, 2.0]))

    def test_jacobian_is_differentiable(self, vector):
        def norm(x: Any) -> Any:
            j = mg.jacobian(lambda y: y * y)(x)
            return (j * j).sum()  # sum of 4 x^2

        assert close(mg.grad(norm)(vector([1.0, 2.0])), [8.0, 16.0])


class TestCheckpoint:
    def test_has_the_same_gradients(self, vector):
        w = vector([0.3, -0.2], True)

        def block(x: Any) -> Any:
            return mg.tanh(x * w) * x

        def loss(x: Any, f: Any) -> Any:
            return (f(f(x)) * vector([1.0, 2.0])).sum()

        x = vector([1.0, 2.0], True)
        plain = mg.gradients(loss(x, block), [x, w])
        recomputed = mg.gradients(loss(x, mg.checkpoint(block)), [x, w])
        for a, b in zip(plain, recomputed, strict=True):
            assert close(b, a.tolist())

    def test_of_a_weight_that_is_a_variable(self, vector):
        """The weight is closed over by the checkpointed function, and itself differentiated by."""
        x = vector([1.0, 2.0])

        def loss(w: Any) -> Any:
            return (mg.checkpoint(lambda x: mg.sin(x * w))(x)).sum()

        expected = [math.cos(0.5), 2 * math.cos(2.0)]
        assert close(mg.grad(loss)(vector([0.5, 1.0])), expected)

    def test_of_a_weight_that_was_assigned_to(self, vector):
        w = vector([0.5], True)
        w.assign(w * 2.0)
        y = mg.checkpoint(lambda x: mg.sin(x * w))(vector([2.0], True))
        y.sum().backward()
        assert close(w.grad, [2 * math.cos(2.0)])

    def test_second_derivative(self, vector):
        f = mg.checkpoint(lambda x: mg.sin(x * x))
        x = vector([0.3, 0.4])
        assert mg.gradcheck(f, x, order=2)
