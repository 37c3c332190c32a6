"""Tensor: a handle on a lazy value, with the array functions as methods and operators.

Nothing is computed until a value is looked at. Values never change: in-place operators and
`x[i] = v` make this handle name a new value, and whoever shares the old one keeps it.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from minigrad import functions as f
from minigrad.device import Device, as_device, backend_of
from minigrad.dtype import DType
from minigrad.functions.arguments import as_type, constant, node_of, number
from minigrad.functions.comparison import ComparisonMethods
from minigrad.functions.elementwise import ElementwiseMethods
from minigrad.functions.gathering import GatheringMethods
from minigrad.functions.linalg import LinalgMethods
from minigrad.functions.manipulation import ManipulationMethods
from minigrad.functions.operators import Operators
from minigrad.functions.statistical import StatisticalMethods
from minigrad.graph import Number, Shape, leaf
from minigrad.interop.encoding import decode
from minigrad.ops.control import stop_gradient, variable
from minigrad.tensor_base import TensorBase, given_by_functions, wrap

if TYPE_CHECKING:
    from minigrad.functions.arguments import Operand

_Comparable = (TensorBase, numbers.Real)


@given_by_functions
class Tensor(
    ComparisonMethods,
    ElementwiseMethods,
    GatheringMethods,
    LinalgMethods,
    ManipulationMethods,
    StatisticalMethods,
    Operators,
    TensorBase,
):
    """An array on a device whose value may not have been computed yet.

    Make one with `minigrad.tensor`, `asarray`, `zeros`, ...; ops on Tensors give Tensors.
    """

    __slots__ = ()
    __array_ufunc__ = None  # NumPy leaves `array + tensor` to the tensor
    __hash__ = object.__hash__  # by identity, since == is elementwise

    # What is known without computing

    @property
    def shape(self) -> Shape:
        """The extents of the axes."""
        return self._node.shape

    @property
    def dtype(self) -> DType:
        """The type of the elements."""
        return self._node.dtype

    @property
    def device(self) -> Device:
        """Where the values are, or will be."""
        return self._node.device

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self._node.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self._node.shape)

    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self._node.shape)

    @property
    def T(self) -> Tensor:
        """A matrix transposed."""
        if self.ndim != 2:
            raise ValueError(
                f"T: expected 2 axes, got shape {self.shape}. Use .mT for the last two, or "
                "permute_dims()."
            )
        return f.matrix_transpose(self)

    @property
    def mT(self) -> Tensor:
        """The last two axes swapped."""
        return f.matrix_transpose(self)

    def __len__(self) -> int:
        """The extent of the first axis."""
        if not self._node.shape:
            raise TypeError("len: expected at least 1 axis, got a tensor of shape ().")
        return self._node.shape[0]

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        """The module that holds the Array API's functions."""
        import minigrad

        return minigrad

    # Derivatives

    @property
    def requires_grad(self) -> bool:
        """Whether `backward` sends a gradient here."""
        return self._node.needs_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    @property
    def is_leaf(self) -> bool:
        """Whether derivatives are taken at this tensor, so that `backward` fills its `.grad`."""
        return self._is_leaf

    def requires_grad_(self, value: bool = True) -> Tensor:
        """Make this tensor a point at which derivatives are taken, or a constant."""
        if value and not self._is_leaf:
            self._become_leaf()
        elif not value:
            self._node.owner = None
            self._is_leaf = False
            if self._node.needs_grad:
                self.rebind(stop_gradient(self._node))
        return self

    def detach(self) -> Tensor:
        """The same values, as a constant of differentiation."""
        return wrap(stop_gradient(self._node))

    def clone(self) -> Tensor:
        """Another handle on the same values."""
        return f.positive(self)

    def backward(self, gradient: Tensor | None = None, create_graph: bool = False) -> None:
        """Add d self / d leaf to the `.grad` of every leaf that requires a gradient.

        Args:
            gradient: the cotangent, of self's shape; may be left out when self is one element.
            create_graph: keep the gradients differentiable.
        """
        from minigrad.differentiate.tensors import backward

        backward(self, gradient, create_graph)

    def assign(self, value: Tensor | Number) -> Tensor:
        """Make this handle name `value` from now on, cut from the gradient: how parameters change.

        A tensor that requires a gradient still does, at its new value. The shape stays; a Python
        number fills it.

        Raises:
            ValueError: `value` has another shape or device.
            TypeError: it has another dtype.
        """
        old = self._node
        if isinstance(value, TensorBase):
            new = stop_gradient(value._node)
            if new.shape != old.shape:
                raise ValueError(
                    f"assign: expected shape {old.shape}, got {new.shape}. Broadcast or reshape it."
                )
            if new.dtype is not old.dtype:
                raise TypeError(
                    f"assign: expected {old.dtype.name}, got {new.dtype.name}. Use astype()."
                )
            if new.device != old.device:
                raise ValueError(
                    f"assign: expected device {old.device}, got {new.device}. Use to()."
                )
        else:
            new = constant("assign", number("assign", value), old.dtype, old.device, old.shape)
        self.rebind(variable(new) if self._is_leaf else new)
        return self

    def _update(self, caller: str, value: Tensor) -> Tensor:
        """What `x += y` does: assign to a leaf; elsewhere name the new value, gradient and all."""
        if value.shape != self.shape:
            raise ValueError(
                f"{caller}: expected a value that broadcasts to {self.shape}, got {value.shape}."
            )
        if value.dtype is not self.dtype:
            raise TypeError(
                f"{caller}: expected a result of {self.dtype.name}, got {value.dtype.name}. "
                "Write x = x ... y, or use astype()."
            )
        if self._is_leaf:
            return self.assign(value)
        self.rebind(value._node)
        return self

    # Values: everything here computes

    def _values(self) -> memoryview:
        """The elements in row-major order as bytes in the host's memory."""
        from minigrad.execution.compute import export_bytes

        return export_bytes(self)

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers; a number for shape ()."""
        shape = self._node.shape
        if 0 in shape:
            return _empty_list(shape)
        return decode(self._values(), self._node.dtype, shape).tolist()

    def item(self) -> Number:
        """The one element, as a Python number."""
        return self._one("item", ValueError)

    def _one(self, caller: str, error: type[Exception]) -> Number:
        if self.size != 1:
            raise error(
                f"{caller}: expected a tensor of one element, got shape {self.shape}. "
                "Use tolist(), an index, or a reduction."
            )
        return decode(self._values(), self._node.dtype)[0]

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(
                f"bool: expected a tensor of one element, got shape {self.shape}. "
                "Use .any() or .all()."
            )
        return bool(self._one("bool", ValueError))

    def __int__(self) -> int:
        return int(self._one("int", TypeError))

    def __float__(self) -> float:
        return float(self._one("float", TypeError))

    def __complex__(self) -> complex:
        return complex(self._one("complex", TypeError))

    def __index__(self) -> int:
        if self._node.dtype.kind not in ("int", "uint"):
            raise TypeError(f"index: expected an integer dtype, got {self._node.dtype.name}.")
        return int(self._one("index", TypeError))

    def __iter__(self) -> Iterator[Tensor]:
        if not self._node.shape:
            raise TypeError("iter: expected at least 1 axis, got a tensor of shape ().")
        return iter(f.unstack(self))

    def __contains__(self, value: Operand) -> bool:
        return bool(f.any(f.equal(self, value)))

    def __repr__(self) -> str:
        from minigrad.formatting import describe

        return describe(self)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec and self.size == 1 else format(repr(self), spec)

    # Devices and other libraries

    def to(self, device: Device | str) -> Tensor:
        """The values on `device`; self when they are there already.

        From one GPU to another they do not pass through the host.
        """
        from minigrad.execution.compute import compute

        target = as_device(device, "to")
        node = self._node
        if target == node.device:
            return self
        backend = backend_of(target)
        compute([node])
        nbytes = node.size * node.dtype.itemsize
        storage = backend.receive(backend_of(node.device), node.storage, nbytes)
        moved = leaf(storage, node.shape, node.dtype, target, needs_grad=self._is_leaf)
        return Tensor(moved, requires_grad=self._is_leaf)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """The values for NumPy: shared, and read-only since values never change.

        Raises:
            AttributeError: on another device than the CPU, or bfloat16, which NumPy lacks.
        """
        from minigrad.interop.arrays import array_interface

        return array_interface(self)

    def __buffer__(self, flags: int) -> memoryview:
        """The values through the buffer protocol (Python 3.12+): shared and read-only.

        Raises:
            BufferError: the protocol has no code for the dtype (bfloat16).
        """
        from minigrad.interop.arrays import buffer

        return buffer(self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The values for CuPy, Numba and others on the same GPU: shared, not to be written to.

        They stay where they are as long as this tensor exists, even when it is assigned another
        value; `detach()` gives a tensor for each export, and `from_dlpack` of the other library
        does without.

        Raises:
            AttributeError: on another device than a GPU, or bfloat16, which has no code.
            BufferError: the tensor requires a gradient.
        """
        from minigrad.interop.arrays import cuda_array_interface

        return cuda_array_interface(self)

    def __dlpack__(self, **options: Any) -> Any:
        """A DLPack capsule that shares the values; nobody waits for them to be computed.

        Args:
            options: `stream`, `max_version`, `dl_device` and `copy` as the Array API has them:
                a stream of the consumer's waits for ours on a GPU (None or 1: the legacy default
                stream, 2: the per-thread default stream, -1: none), and `dl_device=(1, 0)` gives
                a copy in the host's memory.

        Raises:
            BufferError: the tensor requires a gradient, the device is another one, or a stream is
                given for host memory.
            ValueError: `stream` is 0.
        """
        from minigrad.interop.arrays import to_dlpack

        return to_dlpack(self, **options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's (device type, index)."""
        from minigrad.interop.arrays import dlpack_device

        return dlpack_device(self.device)

    def __reduce__(self) -> Any:
        raise TypeError("pickle: expected no Tensor, got one. Use minigrad.save(), or tolist().")

    def __copy__(self) -> Tensor:
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = object.__new__(type(self))
        Tensor.__init__(copy, stop_gradient(self._node), requires_grad=self._is_leaf)
        for name, value in getattr(self, "__dict__", {}).items():
            object.__setattr__(copy, name, value)
        memo[id(self)] = copy
        return copy

    # Indexing

    def __getitem__(self, index: Any) -> Tensor:
        from minigrad.indexing import read

        return wrap(read(node_of("index", self), index))

    def __setitem__(self, index: Any, value: Operand) -> None:
        from minigrad.indexing import written

        x = node_of("index", self)
        if isinstance(value, TensorBase):
            v = as_type(node_of("index", value), x.dtype)
        else:
            v = constant("index", number("index", value), x.dtype, x.device, ())
        self._update("index", wrap(written(x, index, v)))

    def __eq__(self, other: object) -> Any:
        """Elementwise; with what is neither a tensor nor a number, Python's default: not equal."""
        return f.equal(self, other) if isinstance(other, _Comparable) else NotImplemented  # type: ignore[arg-type]

    def __ne__(self, other: object) -> Any:
        return f.not_equal(self, other) if isinstance(other, _Comparable) else NotImplemented  # type: ignore[arg-type]


def _empty_list(shape: Shape) -> Any:
    if not shape or shape[0] == 0:
        return []
    return [_empty_list(shape[1:]) for _ in range(shape[0])]
