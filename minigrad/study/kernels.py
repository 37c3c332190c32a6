"""What a computation runs: its kernels with their sources, and the memory that they move."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minigrad import creation
from minigrad.backend.launch import Operand
from minigrad.device import as_device, backend_of
from minigrad.execution.capture import recorded_plan
from minigrad.execution.compute import evaluate, plans_for
from minigrad.graph import Node
from minigrad.tensor_base import TensorBase

if TYPE_CHECKING:
    from minigrad.compiler.plan import Plan
    from minigrad.tensor import Tensor


@dataclass(frozen=True)
class KernelReport:
    """One loop nest, or one call of a library kernel with the copies inside it.

    Attributes:
        name: of the compiled code.
        source: the code, of each launch one after the other.
        ops: the ops it computes, each once.
        shape: extents of its loops.
        passes: how often it runs over what it reduces.
        tasks: shares that may run at the same time.
        launches: how many kernels run, one after the other.
        reads, writes: array -> bytes of it, each element once.
    """

    name: str
    source: str
    ops: tuple[str, ...]
    shape: tuple[int, ...]
    passes: int
    tasks: int
    launches: int
    reads: dict[str, int]
    writes: dict[str, int]

    @property
    def bytes_read(self) -> int:
        """Bytes of the arrays it reads, each element once."""
        return sum(self.reads.values())

    @property
    def bytes_written(self) -> int:
        """Bytes of the arrays it writes, each element once."""
        return sum(self.writes.values())

    def __repr__(self) -> str:
        return (
            f"KernelReport({self.name}, shape={self.shape}, passes={self.passes}, "
            f"reads {self.bytes_read} B, writes {self.bytes_written} B)"
        )


class Kernels(tuple[KernelReport, ...]):
    """The kernels of a computation, in the order in which they run.

    Attributes:
        inputs: bytes of the arrays that were there before, as far as any kernel reads them.
        outputs: bytes of the arrays that are there afterwards.
    """

    inputs: int
    outputs: int

    def __new__(cls, kernels: Iterable[KernelReport], inputs: int, outputs: int) -> Kernels:
        """A tuple of reports that knows those bytes, too."""
        self = super().__new__(cls, kernels)
        self.inputs, self.outputs = inputs, outputs
        return self

    @property
    def bytes_read(self) -> int:
        """Bytes that the kernels read, from caches or memory."""
        return sum(k.bytes_read for k in self)

    @property
    def bytes_written(self) -> int:
        """Bytes that the kernels write."""
        return sum(k.bytes_written for k in self)

    @property
    def compulsory(self) -> int:
        """Bytes that no plan can do without: inputs read once and outputs written once."""
        return self.inputs + self.outputs

    def floor(self, bandwidth: float) -> float:
        """Seconds that the compulsory traffic takes at a bandwidth in bytes per second.

        That of a copy is what a kernel can hope for: see `copy_bandwidth`.
        """
        return self.compulsory / bandwidth

    def text(self) -> str:
        """A table, and what the kernels move in all."""
        header = ("kernel", "shape", "passes", "tasks", "read", "written", "arrays")
        rows = [header] + [
            (
                k.name,
                "x".join(map(str, k.shape)),
                str(k.passes),
                str(k.tasks),
                _size(k.bytes_read),
                _size(k.bytes_written),
                f"{', '.join(k.reads)} -> {', '.join(k.writes)}",
            )
            for k in self
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        moved = self.bytes_read + self.bytes_written
        lines.append(
            f"{len(self)} kernels move {_size(moved)}; inputs once and outputs once are "
            f"{_size(self.compulsory)}"
        )
        return "\n".join(lines) + "\n"

    def __repr__(self) -> str:
        return self.text().rstrip("\n")


def kernels(
    *tensors: Tensor | Callable[..., Any], names: Mapping[str, Tensor] | None = None
) -> Kernels:
    """The kernels that computing these tensors together runs. They are compiled, not run.

    A function that `mg.compile` made stands for the step that it recorded last (of the newest
    signature). Tensors that have their values already need no kernel.

    Args:
        names: what to call arrays; by default the caller's local variables.

    Raises:
        TypeError: an argument is neither a Tensor nor a compiled function.
        ValueError: a compiled function has recorded nothing: it does so when it is called for the
            second time.
    """
    local: Mapping[str, Any] = sys._getframe(1).f_locals  # pyright: ignore[reportPrivateUsage]
    named = local if names is None else names
    called = {t.node.id: name for name, t in named.items() if isinstance(t, TensorBase)}
    plans = [(_recorded(t), {}) for t in tensors if not isinstance(t, TensorBase)]
    wanted = [t.node for t in tensors if isinstance(t, TensorBase)]
    plans += [(p, _named(p, nodes, called)) for p, nodes in plans_for(wanted)]
    listed = [k for plan, slots in plans for k in _listed(plan, slots)]
    moved = [_compulsory(plan) for plan, _ in plans]
    return Kernels(listed, sum(read for read, _ in moved), sum(written for _, written in moved))


def _recorded(function: Any) -> Plan:
    if not callable(function):
        raise TypeError(
            "kernels: expected Tensors or functions made by mg.compile, got "
            f"{type(function).__name__}."
        )
    plan = recorded_plan(function)
    if plan is None:
        raise ValueError(
            f"kernels: expected a function that mg.compile has recorded, got {function!r}. "
            "The second call with a signature is recorded: call it twice before."
        )
    return plan


def _named(plan: Plan, nodes: Sequence[Node], called: Mapping[int, str]) -> dict[int, str]:
    """Slot -> name, where a named node is an input or an output."""
    return {s: called[nodes[p].id] for s, p in plan.holds.items() if nodes[p].id in called}


def _listed(plan: Plan, named: Mapping[int, str]) -> Iterator[KernelReport]:
    program = plan.program

    def name(slot: int) -> str:
        kind = "in" if slot < len(plan.inputs) else "out" if slot in plan.holds else "t"
        return named.get(slot, f"{kind}{slot}")

    def arrays(operands: Sequence[Operand]) -> dict[str, int]:
        return {name(slot): n for slot, n in _bytes(operands).items()}

    for call in program.calls:
        launches = [program.launches[i] for i in call.launches]
        yield KernelReport(
            name=launches[-1].kernel.name,
            source="\n\n".join(dict.fromkeys(launch.kernel.source for launch in launches)),
            ops=call.ops,
            shape=call.space,
            passes=call.passes,
            tasks=max(launch.tasks for launch in launches),
            launches=len(launches),
            reads=arrays(call.reads),
            writes=arrays(call.writes),
        )


def _compulsory(plan: Plan) -> tuple[int, int]:
    """Bytes of the plan's inputs that are read, and of its outputs, each element once."""
    calls = plan.program.calls
    read = _bytes([o for call in calls for o in call.reads])
    written = _bytes([o for call in calls for o in call.writes])
    inputs = sum(n for slot, n in read.items() if slot < len(plan.inputs))
    return inputs, sum(n for slot, n in written.items() if slot in plan.holds)


def _bytes(operands: Sequence[Operand]) -> dict[int, int]:
    """Slot -> bytes that the operands show of it, each element once.

    Of operands that overlap in part, no more than the stretches of memory that they lie in.
    """
    shown: dict[int, dict[Any, Operand]] = {}
    for o in operands:
        shown.setdefault(o.slot, {})[_elements(o)] = o
    return {
        slot: min(sum(o.nbytes for o in different.values()), _covered(map(_stretch, different)))
        for slot, different in shown.items()
    }


def _elements(o: Operand) -> tuple[int, int, tuple[tuple[int, int], ...]]:
    """Equal for operands that show the same memory, in whatever order: bytes, begin, axes."""
    first, axes = o.offset, list[tuple[int, int]]()
    pairs = [(s, n) for n, s in zip(o.shape, o.strides, strict=True) if s and n != 1]
    for stride, n in sorted(pairs, key=lambda axis: abs(axis[0])):
        first += min(stride, 0) * (n - 1)
        stride = abs(stride)
        if axes and axes[-1][0] * axes[-1][1] == stride:  # they are one
            stride, inner = axes.pop()
            n *= inner
        axes.append((stride, n))
    return o.dtype.itemsize, first, tuple(axes)


def _stretch(elements: tuple[int, int, tuple[tuple[int, int], ...]]) -> tuple[int, int]:
    """Begin and end in bytes."""
    itemsize, first, axes = elements
    end = first + sum(stride * (n - 1) for stride, n in axes) + 1
    return first * itemsize, end * itemsize


def _covered(stretches: Iterable[tuple[int, int]]) -> int:
    """The length of the union of intervals."""
    total = end = 0  # nothing lies before the start of a slot
    for low, high in sorted(stretches):
        total += max(0, high - max(low, end))
        end = max(end, high)
    return total


def _size(nbytes: int) -> str:
    """A number of bytes in three digits."""
    value, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def copy_bandwidth(device: Any = None, nbytes: int = 1 << 26, repeats: int = 7) -> float:
    """Bytes per second that a copy reads and writes, measured now with our own kernel.

    The fastest of some copies of a float32 array of `nbytes`, which should not fit in a cache.
    """
    backend = backend_of(as_device(device, "copy_bandwidth"))
    x = creation.arange(nbytes // 4, dtype="float32", device=device)
    evaluate(x)
    # Negated: a copy without arithmetic is no kernel at all.
    ((plan, nodes),) = plans_for([(-x).node])
    buffers, constants = [nodes[p].storage for p in plan.inputs], plan.constant_values(nodes)
    best = math.inf
    for _ in range(repeats):
        backend.synchronize()
        begin = time.perf_counter()
        plan.run(buffers, constants)
        backend.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * x.size * 4 / best
