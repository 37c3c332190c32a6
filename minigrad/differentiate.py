"""Derivatives of tensors and of functions of tensors, to any order.

Everything here is built of one thing, the vector-Jacobian product of `autodiff`. There are no
forward rules: a Jacobian-vector product is the transpose of a transpose (`jvp`), a Hessian-vector
product is the vector-Jacobian product of a gradient. Nothing is computed until it is looked at.

Where an argument is said to be a tree, it is a Tensor, or a tuple, list or dict of trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from minigrad import autodiff, ops
from minigrad.context import context, setting
from minigrad.device import default_device
from minigrad.dtype import float32, int64
from minigrad.errors import GradientError
from minigrad.graph import Node, const, like, topological, zeros_like
from minigrad.tensor_base import TensorBase, wrap
from minigrad.trees import tree_leaves, tree_rebuilt

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

__all__ = [
    "grad",
    "gradients",
    "hessian",
    "hvp",
    "jacobian",
    "jvp",
    "value_and_grad",
    "vjp",
]

Tree = Any


def gradients(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor | None] | None = None,
    create_graph: bool = False,
) -> Any:
    """The gradients of `outputs`, weighted by `grad_outputs` and summed, with respect to `inputs`.

    Args:
        outputs: one tensor or several, floating point.
        inputs: tensors that the outputs were computed from; leaves or intermediate results.
        grad_outputs: the cotangent of each output, of its shape and dtype; None means 1, for which
            the output must have one element.
        create_graph: True leaves the results differentiable; False makes them constants.

    Returns:
        One gradient if `inputs` is a Tensor, else a list of them; each like its input.

    Raises:
        GradientError: no differentiable path leads from an output to one of the inputs.
        TypeError: an input, output or cotangent has a dtype that cannot be differentiated.
        ValueError: a cotangent is missing or its shape is not that of its output.
    """
    sources = [inputs] if isinstance(inputs, TensorBase) else list(inputs)
    targets = [outputs] if isinstance(outputs, TensorBase) else list(outputs)
    if grad_outputs is None or isinstance(grad_outputs, TensorBase):
        weights: list[Tensor | None] = [grad_outputs] * len(targets)
    else:
        weights = list(grad_outputs)
    if len(weights) != len(targets):
        raise ValueError(
            f"gradients: expected one of grad_outputs for each of {len(targets)} outputs, "
            f"got {len(weights)}."
        )
    for x in sources:
        _require_float("gradients", "inputs", x)
        if not x.node.needs_grad:
            raise GradientError(
                f"gradients: expected inputs with requires_grad=True, got {_describe(x)} without. "
                "Set it before the outputs are computed."
            )
    nodes = [y.node for y in targets]
    cotangents = [_cotangent("gradients", y, c) for y, c in zip(targets, weights, strict=True)]
    found = autodiff.gradients(nodes, [x.node for x in sources], cotangents)
    results = [wrap(g if create_graph else ops.stop_gradient(g)) for g in found if g is not None]
    return results[0] if isinstance(inputs, TensorBase) else results


def backward(tensor: Tensor, gradient: Tensor | None = None, create_graph: bool = False) -> None:
    """Add the gradient of `tensor` to `.grad` of every leaf with `requires_grad` it depends on.

    Args:
        tensor: one element, unless `gradient` is given.
        gradient: the cotangent, of the shape and dtype of `tensor`; None means 1.
        create_graph: True leaves the gradients differentiable.
    """
    root = tensor.node
    cotangent = _cotangent("backward", tensor, gradient)
    if not root.needs_grad:
        raise GradientError(
            f"backward: expected a tensor that depends on one with requires_grad=True, got "
            f"{_describe(tensor)} that does not. It may be detached or computed under no_grad."
        )
    owned = [(n, n.owner()) for n in _sources([root]) if n.owner is not None]
    found = autodiff.gradients([root], [n for n, _ in owned], [cotangent], unreached="none")
    for (_, leaf), g in zip(owned, found, strict=True):
        if g is None or leaf is None:  # no path to it, or nobody holds it any more
            continue
        if not create_graph:
            g = ops.stop_gradient(g)
        context.observer.gradient_grows(leaf)
        leaf.grad = wrap(g if leaf.grad is None else leaf.grad.node + g)


def _sources(roots: Sequence[Node]) -> list[Node]:
    """The points of differentiation that the roots depend on: where `needs_grad` begins."""
    walked = topological(roots, stop=lambda n: not n.needs_grad)
    return [n for n in walked if n.needs_grad and not any(i.needs_grad for i in n.inputs)]


# Functions of tensors. Arguments become fresh variables, so nested derivatives with respect to the
# same value stay apart.


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
    call = _Call(caller, f, argnums, args, kwargs)
    value, aux = call.result, None
    if has_aux:
        pair = cast("tuple[Any, ...]", value) if isinstance(value, tuple) else ()
        if len(pair) != 2:
            raise TypeError(f"{caller}: expected f to return (value, aux), got {_describe(value)}.")
        value, aux = pair
    value = _as_tensor(caller, "f to return", value)
    if value.size != 1:
        raise ValueError(
            f"{caller}: expected f to return one element, got {_describe(value)}. "
            "Reduce it, or use jacobian() or vjp()."
        )
    gradient = call.pull([value.node], [like(1.0, value.node)])
    value = call.released([value])[0]
    return ((value, call.release(aux)) if has_aux else value), gradient


def vjp(f: Callable[..., Any], *primals: Tree) -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
    """`f(*primals)`, and the function that maps a cotangent of it to one of each primal.

    That function takes a tree like f's result and returns a tuple of trees like the primals.
    """
    call = _Call("vjp", f, range(len(primals)), primals, {})
    outputs = [_as_tensor("vjp", "f to return", y) for y in tree_leaves(call.result)]

    def pullback(cotangent: Tree) -> tuple[Tree, ...]:
        given = _matching("vjp", "cotangents", outputs, tree_leaves(cotangent))
        return call.pull([y.node for y in outputs], given)

    return tree_rebuilt(call.result, iter(call.released(outputs))), pullback


def jvp(f: Callable[..., Any], primals: Tree, tangents: Tree) -> tuple[Tree, Tree]:
    """`f(*primals)`, and its derivative in the direction `tangents`: a tree like f's result.

    Args:
        f: any function of tensors.
        primals: a tuple or list with the arguments of f, or the only argument, a Tensor.
        tangents: like `primals`.
    """
    args, directions = _arguments(primals), _arguments(tangents)
    call = _Call("jvp", f, range(len(args)), args, {})
    given = _matching("jvp", "tangents", call.variables, tree_leaves(directions))
    outputs = [_as_tensor("jvp", "f to return", y) for y in tree_leaves(call.result)]
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
    call = _Call(caller, f, argnums, args, kwargs)
    outputs = [_as_tensor(caller, "f to return", y) for y in tree_leaves(call.result)]
    blocks: list[Tree] = []
    for y in (output.node for output in outputs):
        rows = [call.vjp([y], [one_hot], "zero") for one_hot in _one_hots(y)]
        stacked = [
            _stack([row[k] for row in rows], y, v.node) for k, v in enumerate(call.variables)
        ]
        blocks.append(call.shaped(call.released([wrap(s) for s in stacked])))
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
    call = _Call("hvp", gradient, every, args, {})
    wanted = [_as_tensor("hvp", "f to return", y) for y in tree_leaves(call.result)]
    given = _matching("hvp", "tangents", wanted, tree_leaves(_arguments(tangents)))
    result = call.pull([y.node for y in wanted], given)
    return (
        result[0]
        if isinstance(primals, TensorBase)
        else tree_rebuilt(primals, iter(tree_leaves(result)))
    )


class _Call:
    """One call of f in which some arguments were replaced by fresh variables."""

    def __init__(
        self, caller: str, f: Callable[..., Any], argnums: int | Sequence[int],
        args: tuple[Any, ...], kwargs: dict[str, Any],
    ):  # fmt: skip
        self.where = caller
        self.single = isinstance(argnums, int)
        self.picked = (argnums,) if isinstance(argnums, int) else tuple(argnums)
        if any(not -len(args) <= k < len(args) for k in self.picked):
            raise ValueError(
                f"{caller}: expected argnums among the {len(args)} positional arguments, "
                f"got {argnums}."
            )
        self.variables: list[Tensor] = []
        replaced = list(args)
        for k in self.picked:
            fresh = [self._variable(x) for x in tree_leaves(args[k])]
            self.variables += fresh
            replaced[k] = tree_rebuilt(args[k], iter(fresh))
        self.arguments = tuple(replaced[k] for k in self.picked)
        with setting("grad_enabled", True):  # an outer `no_grad` does not count, an inner one does
            self.result = f(*replaced, **kwargs)

    def _variable(self, value: Any) -> Tensor:
        x = _as_tensor(self.where, "arguments to differentiate by that are", value)
        return wrap(ops.variable(x.node))

    def vjp(self, outputs: list[Node], cotangents: list[Node], unreached: str) -> list[Any]:
        variables = [v.node for v in self.variables]
        return autodiff.gradients(outputs, variables, cotangents, unreached=unreached)

    def pull(self, outputs: list[Node], cotangents: list[Node]) -> Tree:
        """The cotangents of the variables, in trees like the arguments they replace."""
        found = [wrap(g) for g in self.vjp(outputs, cotangents, "zero")]
        return self.shaped(self.released(found))

    def shaped(self, values: list[Tensor]) -> Tree:
        rest = iter(values)
        trees = tuple(tree_rebuilt(a, rest) for a in self.arguments)
        return trees[0] if self.single else trees

    def released(self, results: list[Tensor]) -> list[Tensor]:
        """The results, as constants where only this call's own variables made them anything else.

        Else the result of a finished derivative would need a gradient forever, and hold its graph.
        """
        if not context.grad_enabled:
            return [wrap(ops.stop_gradient(r.node)) for r in results]
        own = {v.node.id for v in self.variables}
        open_: set[int] = set()  # depends on a point of differentiation outside this call
        for node in topological([r.node for r in results], stop=lambda n: not n.needs_grad):
            before = [n for n in node.inputs if n.needs_grad]
            if any(n.id in open_ for n in before) or (not before and node.id not in own):
                open_.add(node.id)
        return [r if r.node.id in open_ else wrap(ops.stop_gradient(r.node)) for r in results]

    def release(self, tree: Tree) -> Tree:
        """`released`, for the tensors in an auxiliary result."""
        found = tree_leaves(tree)
        tensors = iter(self.released([x for x in found if _is_tensor(x)]))
        return tree_rebuilt(
            tree, iter([next(tensors) if isinstance(x, TensorBase) else x for x in found])
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


def _is_tensor(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, TensorBase)


def _describe(value: Any) -> str:
    if _is_tensor(value):
        return f"{value.dtype.name}{list(value.shape)}"
    return f"{type(value).__name__} {value!r}"


def _as_tensor(caller: str, what: str, value: Any) -> Tensor:
    """A floating-point tensor from one or from a Python float."""
    if isinstance(value, float):
        return wrap(const(value, float32, default_device()))
    if not _is_tensor(value) or not value.dtype.is_floating:
        raise TypeError(
            f"{caller}: expected {what} floating-point tensors, got {_describe(value)}. "
            "Use astype(float32), or a float."
        )
    return value


def _require_float(caller: str, what: str, x: Any) -> Tensor:
    if not _is_tensor(x) or not x.dtype.is_floating:
        raise TypeError(
            f"{caller}: expected {what} to be floating-point tensors, got {_describe(x)}. "
            "Use astype(float32)."
        )
    return x


def _cotangent(caller: str, y: Tensor, c: Tensor | None) -> Node:
    _require_float(caller, "outputs", y)
    if c is None:
        if y.size != 1:
            raise ValueError(
                f"{caller}: expected an output of one element, got {_describe(y)}. Reduce it, or "
                "pass its cotangent."
            )
        return like(1.0, y.node)
    return _matching(caller, "cotangents", [y], [c])[0]


def _matching(caller: str, what: str, tensors: list[Tensor], given: list[Any]) -> list[Node]:
    """Nodes of the given values, which must be like the tensors they go with."""
    if len(tensors) != len(given):
        raise ValueError(f"{caller}: expected {len(tensors)} {what}, got {len(given)}.")
    nodes: list[Node] = []
    for x, value in zip(tensors, given, strict=True):
        if isinstance(value, (int, float)) and x.shape == ():
            t = wrap(const(value, x.dtype, x.device))
        else:
            t = value
        t = _require_float(caller, what, t)
        if t.shape != x.shape:
            raise ValueError(f"{caller}: expected {what} like {_describe(x)}, got {_describe(t)}.")
        if t.dtype is not x.dtype:
            raise TypeError(f"{caller}: expected {what} like {_describe(x)}, got {_describe(t)}.")
        nodes.append(t.node)
    return nodes
