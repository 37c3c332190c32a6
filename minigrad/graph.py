"""The graph: immutable, hash-consed nodes, and walks over them.

A `Node` is one application of a primitive. Building one checks shapes and dtypes, so errors point
at the user's line. Nodes that apply the same primitive to the same inputs are one object, which
gives common-subexpression elimination for free: the mean that the forward computed *is* the mean
that the backward uses.
"""

from __future__ import annotations

import itertools
import math
import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from minigrad.context import context, setting
from minigrad.device import Device, computes, kinds
from minigrad.dtype import DType, bool_
from minigrad.errors import DeviceError

Shape = tuple[int, ...]
Site = tuple[str, int]  # file and line
Number = bool | int | float


@dataclass(frozen=True, eq=False)
class Primitive:
    """One op of the closed set.

    `infer(*inputs, **attrs)` checks the inputs and gives the output's (shape, dtype).
    `vjp(g, y, *inputs, **attrs)` gives one cotangent node per input, None where the derivative is
    zero; `vjp=None` is a decision that the op has no gradient. Rules build nodes and nothing else,
    so a gradient can be differentiated again. `cost` is what one element of a "map" costs, in
    additions: it decides which values are stored rather than computed again.
    """

    name: str
    kind: str  # "leaf", "map", "reduce", "view", "identity" or "kernel" (not a loop nest)
    infer: Callable[..., tuple[Shape, DType]]
    vjp: Callable[..., tuple[Any, ...]] | None = None
    cost: int = 0

    def __call__(self, *inputs: Node, **attrs: Any) -> Node:
        """The node that applies this op."""
        return build(self, inputs, attrs)

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Node:
    """A value of the graph: an op applied to inputs. The value never changes.

    What else does:

    * `storage` is set when the value has been computed. A computed node that no gradient reaches
      then forgets its inputs, and `op` becomes `stored` (`forget`).
    * `handles`, `owner` and `rebound` count and name the Tensors that stand for the node.
    * `id` grows in the order of building, so a node's is higher than those of its inputs. A leaf
      that one Tensor alone refers to gets a new one when it becomes another value (`renew`).
    * `needs_grad` and `derivative_order` are set for some nodes right after they are built, before
      anything refers to them: by `variable`, and by what builds a graph in place of another.
    """

    __slots__ = (
        *("__weakref__", "id", "op", "inputs", "attrs", "shape", "dtype", "device", "site"),
        *("needs_grad", "derivative_order", "storage", "handles", "owner", "rebound"),
    )

    def __init__(
        self,
        op: Primitive,
        inputs: tuple[Node, ...],
        attrs: dict[str, Any],
        shape: Shape,
        dtype: DType,
        device: Device,
        needs_grad: bool,
    ):
        self.op, self.attrs = op, attrs
        self.inputs: tuple[Node, ...] = inputs
        self.shape, self.dtype, self.device = shape, dtype, device
        self.needs_grad = needs_grad
        self.id = next(_ids)
        order = context.derivative_order
        for n in inputs:
            if n.derivative_order > order:
                order = n.derivative_order
        # The order of the derivative that it was first built for; 0 in the forward.
        self.derivative_order: int = order
        self.storage: Any = None
        self.handles = 0  # live Tensors; a node with one is kept when its graph is computed
        self.owner: Any = None  # weak reference to the Tensor that a leaf belongs to
        self.rebound = 0  # how often a Tensor that stood for this node was assigned another
        self.site: Site | None = context.site or user_site()

    @property
    def ndim(self) -> int:
        """How many axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements."""
        return math.prod(self.shape)

    def forget(self) -> None:
        """Become a leaf, once computed: no gradient can ask for the inputs."""
        self.inputs = ()
        self.op = stored

    def __repr__(self) -> str:
        return f"Node({self.op.name}, {self.dtype.name}{list(self.shape)})"

    # Operators for gradient rules: equal shapes, or a Python number.
    def __neg__(self) -> Node:
        return _arith("neg")(self)

    def __add__(self, other: Node | Number) -> Node:
        return _arith("add")(self, like(other, self))

    def __radd__(self, other: Number) -> Node:
        return _arith("add")(like(other, self), self)

    def __sub__(self, other: Node | Number) -> Node:
        return _arith("sub")(self, like(other, self))

    def __rsub__(self, other: Number) -> Node:
        return _arith("sub")(like(other, self), self)

    def __mul__(self, other: Node | Number) -> Node:
        return _arith("mul")(self, like(other, self))

    def __rmul__(self, other: Number) -> Node:
        return _arith("mul")(like(other, self), self)

    def __truediv__(self, other: Node | Number) -> Node:
        return _arith("div")(self, like(other, self))

    def __rtruediv__(self, other: Number) -> Node:
        return _arith("div")(like(other, self), self)


PRIMITIVES: dict[str, Primitive] = {}
_ids = itertools.count()


def register(primitive: Primitive) -> Primitive:
    """Add a primitive to the closed set."""
    assert primitive.name not in PRIMITIVES, primitive.name
    PRIMITIVES[primitive.name] = primitive
    return primitive


def _arith(name: str) -> Primitive:
    return PRIMITIVES[name]


def build(op: Primitive, inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Node:
    """The node that applies `op` to `inputs`, made at most once."""
    key = (op.name, tuple([n.id for n in inputs]), tuple(attrs.values()))
    table = context.nodes
    found = table.get(key)
    if found is not None:
        return found
    shape, dtype = op.infer(*inputs, **attrs)
    device = inputs[0].device
    needs = False
    for n in inputs:
        if n.device is not device and n.device != device:
            places = ", ".join(str(n.device) for n in inputs)
            raise ValueError(
                f"{op.name}: expected all inputs on one device, got {places}. Move one with .to()."
            )
        if not n.dtype.everywhere:  # most dtypes stop here: every node passes by
            _require_computing(op.name, n.dtype, device)
        needs = needs or n.needs_grad
    if not dtype.everywhere:
        _require_computing(op.name, dtype, device)
    needs = needs and op.vjp is not None and dtype.is_floating
    node = Node(op, inputs, attrs, shape, dtype, device, needs)
    table[key] = node
    if context.op_by_op is not None:
        context.op_by_op(node)
    return node


def _require_computing(caller: str, dtype: DType, device: Device) -> None:
    if not computes(device.type, dtype):
        able = " or ".join(kind for kind in kinds() if computes(kind, dtype))
        raise DeviceError(
            f"{caller}: expected a dtype that {device.type} computes with, got {dtype.name}, which "
            f"it can only hold. Compute on {able}, with astype('float32') before to("
            f"'{device.type}'); without {able}, x.tolist() gives the numbers."
        )


def _leaf_infer(*, shape: Shape, dtype: DType, **_: Any) -> tuple[Shape, DType]:
    return shape, dtype


stored = register(Primitive("stored", "leaf", _leaf_infer))
const_op = register(Primitive("const", "leaf", _leaf_infer))
iota_op = register(Primitive("iota", "leaf", _leaf_infer))


def leaf(
    storage: Any, shape: Shape, dtype: DType, device: Device, needs_grad: bool = False
) -> Node:
    """A node that holds computed memory and depends on nothing."""
    node = Node(stored, (), {}, shape, dtype, device, needs_grad and dtype.is_floating)
    node.storage = storage
    return node


def renew(node: Node, storage: Any) -> None:
    """Make another leaf of a leaf that nothing but one Tensor refers to: cheaper than a new one."""
    node.storage = storage
    node.id = next(_ids)
    node.rebound = 0


def _build_leaf(
    op: Primitive, key: Any, attrs: dict[str, Any], shape: Shape, dtype: DType, device: Device
) -> Node:
    full_key = (op.name, key, dtype.name, device)
    node = context.nodes.get(full_key)
    if node is None:
        if not dtype.everywhere:
            _require_computing(op.name, dtype, device)
        node = Node(op, (), attrs, shape, dtype, device, False)
        context.nodes[full_key] = node
    return node


def const(value: Number, dtype: DType, device: Device, shape: Shape = ()) -> Node:
    """A number, known to the compiler, broadcast to `shape`."""
    value = float(value) if dtype.is_floating else bool(value) if dtype is bool_ else int(value)
    node = _build_leaf(const_op, _number_key(value), {"value": value}, (), dtype, device)
    if shape:
        node = PRIMITIVES["reshape"](node, shape=(1,) * len(shape))
        node = PRIMITIVES["expand"](node, shape=shape)
    return node


def _number_key(value: Number) -> Any:
    # Tells -0.0 from 0.0 and lets NaN equal itself.
    return value.hex() if isinstance(value, float) else value


def renew_constant(node: Node) -> None:
    """Let later graphs build the constant behind `node` anew: this one has memory by now.

    To a plan what has memory is an input, and the algebra could not work with the number.
    """
    while node.inputs:
        node = node.inputs[0]
    key = (const_op.name, _number_key(node.attrs["value"]), node.dtype.name, node.device)
    if context.nodes.get(key) is node:
        del context.nodes[key]


def iota(n: int, dtype: DType, device: Device) -> Node:
    """The integers 0 .. n - 1."""
    return _build_leaf(iota_op, n, {"n": n}, (n,), dtype, device)


def like(value: Node | Number, node: Node) -> Node:
    """A number as a node of `node`'s shape, dtype and device; a node as it is."""
    if isinstance(value, Node):
        return value
    return const(value, node.dtype, node.device, node.shape)


def zeros_like(node: Node) -> Node:
    """Zero, of `node`'s shape, dtype and device."""
    return const(0, node.dtype, node.device, node.shape)


def const_value(node: Node) -> Number | None:
    """The number a node is known to hold everywhere, or None."""
    while node.op.name in ("reshape", "expand") and node.inputs:
        node = node.inputs[0]
    return node.attrs["value"] if node.op is const_op else None


OWN_PACKAGES = ("minigrad", "layers")


def user_site() -> Site | None:
    """The file and line, outside this library, that is being executed."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]: the cheap way to a caller
    while frame is not None:
        name = frame.f_globals.get("__name__") or ""
        if name.partition(".")[0] not in OWN_PACKAGES:
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return None


def apart() -> setting:
    """Nodes built in the block are shared with one another, but not with any from before.

    A node from before may be computed and have forgotten what it depends on.
    """
    return setting("nodes", weakref.WeakValueDictionary())


def site(where: Site | None) -> setting:
    """Nodes built in the block are attributed to `where`: a gradient's to the forward line."""
    return setting("site", where)


def derivative(outputs: Iterable[Node]) -> setting:
    """Nodes built in the block belong to a derivative of `outputs`: one order above them all."""
    order = 1 + max([n.derivative_order for n in outputs], default=0)
    return setting("derivative_order", max(context.derivative_order, order))


def computed(node: Node) -> bool:
    """Whether a node has its value: walks over what remains to be computed stop there."""
    return node.storage is not None


def topological(
    roots: Iterable[Node], stop: Callable[[Node], bool] = lambda n: False
) -> list[Node]:
    """Every node the roots depend on, inputs first; does not look behind nodes where `stop` holds.

    The order follows the edges alone (depth first), not the ids: graphs of equal structure list
    their nodes alike, whichever of their constants and leaves existed before. It is iterative.
    """
    result: list[Node] = []
    entered: set[int] = set()
    done: set[int] = set()
    stack = list(roots)
    stack.reverse()
    while stack:
        node = stack[-1]
        if node.id not in entered:
            entered.add(node.id)
            if not stop(node):
                before = [n for n in reversed(node.inputs) if n.id not in done]
                if before:
                    stack += before
                    continue
        stack.pop()
        if node.id not in done:
            done.add(node.id)
            result.append(node)
    return result
