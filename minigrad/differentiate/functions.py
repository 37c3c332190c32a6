"""Derivatives of functions of tensors.

Arguments become fresh variables, so nested derivatives with respect to the same value stay apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from minigrad import autodiff, ops
from minigrad.differentiate.call import Call, as_tensor, described, matching
from minigrad.dtype import int64
from minigrad.graph import Node, const, like, zeros_like
from minigrad.tensor_base import TensorBase, wrap
from minigrad.trees import tree_leaves, tree_rebuilt

if TYPE_CHECKING:
    from minigrad.trees import Tree

__all__ = ["grad", "hessian", "hvp", "jacobian", "jvp", "value_and_grad", "vjp"]


def value_and_grad(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """The function that returns `(f(*args), gradient)`; with `has_aux` `((value, aux), gradient)`.

    Args:
        f: returns a tensor of one element; with `has_aux` a pair of that and anything else.
        argnums: which positional arguments (trees) to differentiate by. For a sequence, the
            gradient is a tuple with one entry each. It is zero where f does not depend on one.
        has_aux: whether f returns a pair.
    """
    return lambda *args, **kwargs: _value_and_grad(
        "value_and_grad", f, argnums, has_aux, args, kwargs
    )


def grad(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """The function that returns the gradient of f; with `has_aux` `(gradient, aux)`.

    >>> import minigrad as mg
    >>> mg.grad(lambda x: x * x)(3.0).item()
    6.0
    """

    def derivative(*args: Any, **kwargs: Any) -> Any:
        value, gradient = _value_and_grad("grad", f, argnums, has_aux, args, kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return derivative


def _value_and_grad(
    caller: str, f: Callable[..., Any], argnums: int | Sequence[int], has_aux: bool,
    args: tuple[Any, ...], kwargs: dict[str, Any],
) -> tuple[Any, Any]:  # fmt: skip
    call = Call(caller, f, argnums, args, kwargs)
    value, aux = call.result, None
    if has_aux:
        pair = cast("tuple[Any, ...]", value) if isinstance(value, tuple) else ()
        if len(pair) != 2:
            raise TypeError(f"{caller}: expected f to return (value, aux), got {described(value)}.")
        value, aux = pair
    value = as_tensor(caller, "f to return", value)
    if value.size != 1:
        raise ValueError(
            f"{caller}: expected f to return one element, got {described(value)}. "
            "Reduce it, or use jacobian() or vjp()."
        )
    gradient = call.pull([value], [like(1.0, value.node)])
    value = call.released([value])[0]
    return ((value, call.release(aux)) if has_aux else value), gradient


def vjp(f: Callable[..., Any], *primals: Tree) -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
    """`f(*primals)`, and the function that maps a cotangent of it to one of each primal.

    That function takes a tree like f's result and returns a tuple of trees like the primals.
    """
    call = Call("vjp", f, range(len(primals)), primals, {})
    outputs = call.outputs()

    def pullback(cotangent: Tree) -> tuple[Tree, ...]:
        given = matching("vjp", "cotangents", outputs, tree_leaves(cotangent))
        return call.pull(outputs, given)

    return tree_rebuilt(call.result, iter(call.released(outputs))), pullback


def jvp(f: Callable[..., Any], primals: Tree, tangents: Tree) -> tuple[Tree, Tree]:
    """`f(*primals)`, and its derivative in the direction `tangents`: a tree like f's result.

    Args:
        f: any function of tensors.
        primals: a tuple or list with the arguments of f, or the only argument, a Tensor.
        tangents: like `primals`.
    """
    args, directions = _arguments(primals), _arguments(tangents)
    call = Call("jvp", f, range(len(args)), args, {})
    given = matching("jvp", "tangents", call.variables, tree_leaves(directions))
    outputs = call.outputs()
    # The vjp is linear in its cotangent u, so its own vjp with respect to u is the jvp, at any u.
    dummies = [ops.variable(zeros_like(y.node)) for y in outputs]
    pulled = call.vjp([y.node for y in outputs], dummies, "none")
    reached = [(g, t) for g, t in zip(pulled, given, strict=True) if g is not None]
    pushed = autodiff.gradients(
        [g for g, _ in reached], dummies, [t for _, t in reached], unreached="zero"
    )
    results = call.released([wrap(g) for g in pushed if g is not None])
    values = call.released(outputs)
    return tree_rebuilt(call.result, iter(values)), tree_rebuilt(call.result, iter(results))


def jacobian(f: Callable[..., Any], argnums: int | Sequence[int] = 0) -> Callable[..., Tree]:
    """The function that returns the Jacobian of f, of shape `(*output.shape, *argument.shape)`.

    For a tree of outputs or arguments it is a tree like the outputs, of trees like the arguments.
    One vector-Jacobian product per output element is built, so the graph grows with their number.
    """
    return lambda *args, **kwargs: _jacobian("jacobian", f, argnums, args, kwargs)


def _jacobian(
    caller: str, f: Callable[..., Any], argnums: int | Sequence[int], args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tree:  # fmt: skip
    call = Call(caller, f, argnums, args, kwargs)
    outputs = call.outputs()
    blocks: list[Tree] = []
    for y in (output.node for output in outputs):
        rows = [call.vjp([y], [one_hot], "zero") for one_hot in _one_hots(y)]
        stacked = [
            _stack([row[k] for row in rows], y, v.node) for k, v in enumerate(call.variables)
        ]
        blocks.append(call.shaped(stacked))
    return tree_rebuilt(call.result, iter(blocks))


def hessian(f: Callable[..., Any], argnums: int | Sequence[int] = 0) -> Callable[..., Tree]:
    """The function that returns the second derivatives, `(*argument.shape, *argument.shape)`.

    f returns one element. For several argnums: a tuple of tuples of blocks.
    """

    def derivative(*args: Any, **kwargs: Any) -> Tree:
        def gradient(*inner: Any, **options: Any) -> Any:
            return _value_and_grad("hessian", f, argnums, False, inner, options)[1]

        return _jacobian("hessian", gradient, argnums, args, kwargs)

    return derivative


def hvp(f: Callable[..., Any], primals: Tree, tangents: Tree) -> Tree:
    """The Hessian of f at `primals` times `tangents`, at the cost of a few gradients.

    Args:
        f: returns one element.
        primals: a tuple or list with the arguments of f, or the only argument, a Tensor.
        tangents: like `primals`; so is the result.
    """
    args = _arguments(primals)
    every = tuple(range(len(args)))

    def gradient(*inner: Any) -> Any:
        return _value_and_grad("hvp", f, every, False, inner, {})[1]

    # The Hessian is symmetric: its transpose times the tangent is what is asked for.
    call = Call("hvp", gradient, every, args, {})
    wanted = call.outputs()
    given = matching("hvp", "tangents", wanted, tree_leaves(_arguments(tangents)))
    result = call.pull(wanted, given)
    return (
        result[0]
        if isinstance(primals, TensorBase)
        else tree_rebuilt(primals, iter(tree_leaves(result)))
    )


def _arguments(primals: Tree) -> tuple[Tree, ...]:
    return (
        tuple(cast("Sequence[Tree]", primals)) if isinstance(primals, (tuple, list)) else (primals,)
    )


def _one_hots(y: Node) -> Iterator[Node]:
    """For each element of y, a cotangent that selects it: the rows of one identity matrix."""
    n = y.size
    numbers = ops.iota(n, int64, y.device)
    rows = ops.expand(ops.reshape(numbers, shape=(n, 1)), shape=(n, n))
    columns = ops.expand(ops.reshape(numbers, shape=(1, n)), shape=(n, n))
    eye = ops.cast(ops.equal(rows, columns), dtype=y.dtype)
    for k in range(n):
        yield ops.reshape(ops.narrow(eye, 0, k, k + 1), shape=y.shape)


def _stack(rows: list[Node], y: Node, x: Node) -> Node:
    if not rows:
        return const(0, x.dtype, x.device, (*y.shape, *x.shape))
    flat = [ops.reshape(r, shape=(1, *x.shape)) for r in rows]
    return ops.reshape(ops.concat(*flat, axis=0), shape=(*y.shape, *x.shape))
