"""The head of a library kernel: its types, the operands and sizes that it reads from the table."""

from __future__ import annotations

from typing import Any

from minigrad.backend.cuda.expressions import memory_type, register_type
from minigrad.backend.cuda.prelude import THREADS, divisor_words
from minigrad.backend.cuda.runtime.jit import compile_kernel
from minigrad.backend.launch import Operand, Program, Word

NARROW_REACH = 1 << 31  # indices below it take 32 bits

# Sums of any type; those of integers wrap.
SUMS = """\
DEVICE float plus(float a, float b) { return a + b; }
DEVICE double plus(double a, double b) { return a + b; }
template <class T> DEVICE T plus(T a, T b) { return wrap_add(a, b); }
"""
# Greater, or the first NaN: as [Note: ties] in cpu/window/window.py has it.
IMPROVES = """\
template <class T> DEVICE bool improves(T value, T best) {
    return (value > best) | ((value != value) & (best == best));
}
"""


def span(*operands: Operand) -> int:
    """More than any offset into these operands, in elements."""
    return max(sum(abs(s) * n for s, n in zip(o.strides, o.shape, strict=True)) for o in operands)


class KernelText:
    """A kernel as it is written, and the words of its table.

    `reach` bounds every index that it computes. In its text, `index_t` is the type of indices and
    `divisor_t` that of numbers to divide by. An operand `x` of rank 2 brings the address x, the
    strides x_0 and x_1 in elements, the type of its elements x_type and of their values x_value.
    """

    def __init__(self, reach: int):
        self.index = "int" if reach < NARROW_REACH else "i64"
        divisor = "Divisor" if self.index == "int" else "WideDivisor"
        self.before = [f"typedef {self.index} index_t;", f"typedef {divisor} divisor_t;"]
        self.head: list[str] = []
        self.words: list[Word] = []

    def operand(
        self, name: str, x: Operand, *, written: bool = False, register: str | None = None
    ) -> None:
        """An operand's types, address and strides."""
        self.types(name, memory_type(x.dtype), register or register_type(x.dtype))
        self.place(name, x, f"{name}_type", written=written)

    def place(self, name: str, x: Operand, kind: str, *, written: bool = False) -> None:
        """An operand's address, as one of elements of type `kind`, and its strides."""
        self.pointer(name, x.pointer, kind, written=written)
        for axis, stride in enumerate(x.strides):
            self.word(f"{name}_{axis}", stride)

    def types(self, name: str, memory: str, register: str) -> None:
        """The types of an operand's elements and of their values."""
        self.before.append(f"typedef {memory} {name}_type;")
        self.before.append(f"typedef {register} {name}_value;")

    def pointer(self, name: str, pointer: Any, kind: str, *, written: bool) -> None:
        """An address of elements of type `kind`."""
        kind = kind if written else f"const {kind}"
        self.head.append(f"{kind}* {name} = array_at<{kind}>(table[{len(self.words)}]);")
        self.words.append(pointer)

    def word(self, name: str, value: int, kind: str = "index_t") -> None:
        """A number that the kernel reads from its table."""
        self.head.append(f"const {kind} {name} = ({kind})table[{len(self.words)}];")
        self.words.append(value)

    def fixed(self, name: str, value: int) -> None:
        """A number that is compiled into the kernel."""
        self.head.append(f"constexpr index_t {name} = {value};")

    def divisor(self, name: str, n: int) -> None:
        """A number to divide by, from the table."""
        self.head.append(f"const divisor_t {name}(table + {len(self.words)});")
        self.words += divisor_words(n)

    def launch(
        self, program: Program, name: str, body: str, threads: int, *, before: str = ""
    ) -> None:
        """Append a launch of so many threads, if any: `flat` is a thread's number."""
        self.word("total", threads)
        self.head.append(f"const index_t flat = (index_t)blockIdx.x * {THREADS} + threadIdx.x;")
        self.head.append("if (flat >= total) return;")
        self.launch_blocks(program, name, body, -(-threads // THREADS), THREADS, before=before)

    def launch_blocks(
        self, program: Program, name: str, body: str, blocks: int, threads: int, *, before: str = ""
    ) -> None:
        """Append a launch of so many blocks, if any."""
        if not blocks:
            return
        head = "\n".join(f"    {line}" for line in self.head)
        text = "\n".join([*self.before, before, "KERNEL {", head]) + f"\n{body}}}\n"
        program.launch(compile_kernel(name, text), tuple(self.words), blocks, threads)
