"""A call of the function that is differentiated, and what may be given to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from minigrad import autodiff, ops
from minigrad.context import context, setting
from minigrad.device import default_device
from minigrad.dtype import float32
from minigrad.graph import Node, const, like, topological
from minigrad.tensor_base import TensorBase, wrap
from minigrad.trees import tree_leaves, tree_rebuilt

if TYPE_CHECKING:
    from minigrad.tensor import Tensor
    from minigrad.trees import Tree


class Call:
    """One call of f in which some arguments were replaced by fresh variables."""

    def __init__(
        self, caller: str, f: Callable[..., Any], argnums: int | Sequence[int],
        args: tuple[Any, ...], kwargs: dict[str, Any],
    ):  # fmt: skip
        self.caller = caller
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
        x = as_tensor(self.caller, "arguments to differentiate by that are", value)
        return wrap(ops.variable(x.node))

    def outputs(self) -> list[Tensor]:
        """The leaves of what f returned."""
        return [as_tensor(self.caller, "f to return", y) for y in tree_leaves(self.result)]

    def vjp(self, outputs: list[Node], cotangents: list[Node], unreached: str) -> list[Any]:
        """The cotangents of the variables as nodes; see `autodiff.gradients`."""
        variables = [v.node for v in self.variables]
        return autodiff.gradients(outputs, variables, cotangents, unreached=unreached)

    def pull(self, outputs: list[Tensor], cotangents: list[Node]) -> Tree:
        """The cotangents of the variables, in trees like the arguments they replace."""
        return self.shaped(self.vjp([y.node for y in outputs], cotangents, "zero"))

    def shaped(self, values: list[Node]) -> Tree:
        """One value for each variable, in trees like the arguments that they replace."""
        rest = iter(self.released([wrap(v) for v in values]))
        trees = tuple(tree_rebuilt(a, rest) for a in self.arguments)
        return trees[0] if self.single else trees

    def released(self, results: list[Tensor]) -> list[Tensor]:
        """The results; one that depends on no variables but this call's own becomes a constant.

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
        tensors = iter(self.released([x for x in found if is_tensor(x)]))
        return tree_rebuilt(tree, iter([next(tensors) if is_tensor(x) else x for x in found]))


def is_tensor(value: Any) -> TypeGuard[Tensor]:
    """Whether it is a Tensor, as the type checker should know from then on."""
    return isinstance(value, TensorBase)


def described(value: Any) -> str:
    """A value in an error: float32[2, 3], or its type and `repr`."""
    if is_tensor(value):
        return f"{value.dtype.name}{list(value.shape)}"
    return f"{type(value).__name__} {value!r}"


def floating(caller: str, what: str, x: Any, fix: str = "Use astype(float32).") -> Tensor:
    """`x`, which must be a floating-point tensor."""
    if not is_tensor(x) or not x.dtype.is_floating:
        raise TypeError(
            f"{caller}: expected {what} floating-point tensors, got {described(x)}. {fix}"
        )
    return x


def as_tensor(caller: str, what: str, value: Any) -> Tensor:
    """A floating-point tensor from one or from a Python float."""
    if isinstance(value, float):
        return wrap(const(value, float32, default_device()))
    return floating(caller, what, value, "Use astype(float32), or a float.")


def cotangent_of(caller: str, y: Tensor, c: Tensor | None) -> Node:
    """The node of an output's cotangent; None means 1, for an output of one element."""
    floating(caller, "outputs to be", y)
    if c is None:
        if y.size != 1:
            raise ValueError(
                f"{caller}: expected an output of one element, got {described(y)}. Reduce it, or "
                "pass its cotangent."
            )
        return like(1.0, y.node)
    return matching(caller, "cotangents", [y], [c])[0]


def matching(caller: str, what: str, tensors: list[Tensor], given: list[Any]) -> list[Node]:
    """Nodes of the given values, which must be like the tensors they go with."""
    if len(tensors) != len(given):
        raise ValueError(f"{caller}: expected {len(tensors)} {what}, got {len(given)}.")
    nodes: list[Node] = []
    for x, value in zip(tensors, given, strict=True):
        if isinstance(value, (int, float)) and x.shape == ():
            value = wrap(const(value, x.dtype, x.device))
        t = floating(caller, f"{what} to be", value)
        if t.shape != x.shape:
            raise ValueError(f"{caller}: expected {what} like {described(x)}, got {described(t)}.")
        if t.dtype is not x.dtype:
            raise TypeError(f"{caller}: expected {what} like {described(x)}, got {described(t)}.")
        nodes.append(t.node)
    return nodes
