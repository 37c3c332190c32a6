"""The arithmetic of one spatial axis of a convolution: which input an output and a tap meet at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd


@dataclass(frozen=True)
class Axis:
    """out[o] = sum over taps k of in[(o*stride + k*kernel_dilation - low) / input_dilation].

    Positions that are negative, past the end or not divisible are zeros. Sizes are in elements.
    """

    size: int
    taps: int
    out: int
    stride: int = 1
    low: int = 0
    input_dilation: int = 1
    kernel_dilation: int = 1

    @property
    def steps(self) -> tuple[int, int]:
        """(outputs, inputs) from one nonzero contribution of a tap to its next."""
        common = gcd(self.stride, self.input_dilation)
        return self.input_dilation // common, self.stride // common

    def windows(self) -> list[tuple[int, int, int]]:
        """Each tap's nonzero contributions: (count, first output, first input)."""
        return [self._window(k * self.kernel_dilation - self.low) for k in range(self.taps)]

    def _window(self, start: int) -> tuple[int, int, int]:
        """The window of a tap that meets position `start` at output 0."""
        out_step, in_step = self.steps
        for o in range(out_step):
            first, inserted = divmod(start + o * self.stride, self.input_dilation)
            if inserted == 0:
                skipped = max(0, -(first // in_step))
                o, first = o + skipped * out_step, first + skipped * in_step
                count = min(-((o - self.out) // out_step), -((first - self.size) // in_step))
                return (count, o, first) if count > 0 else (0, 0, 0)
        return 0, 0, 0

    def tap_windows(self) -> list[int]:
        """For each output the first tap that is not before all inputs, and the first after them.

        Neither rises from one output to the next, so outputs a .. b need the taps from the first of
        b to the end of a; the others meet zeros alone.
        """
        found = []
        for o in range(self.out):
            for bound in (0, (self.size - 1) * self.input_dilation + 1):
                first = -((o * self.stride - self.low - bound) // self.kernel_dilation)
                found.append(min(max(first, 0), self.taps))
        return found

    def source(self, position: int) -> int | None:
        """The input at a position of the padded, dilated axis; None where that is a zero."""
        index, inserted = divmod(position - self.low, self.input_dilation)
        return index if inserted == 0 and 0 <= index < self.size else None

    def shifts(self) -> tuple[list[int], list[tuple[int, int]]]:
        """The residues modulo the stride that taps need, and where each tap finds its input.

        That is (index of its residue, shift in outputs).
        """
        split = [divmod(k * self.kernel_dilation, self.stride) for k in range(self.taps)]
        residues = sorted({residue for _, residue in split})
        return residues, [(residues.index(residue), shift) for shift, residue in split]

    def swapped(self) -> Axis:
        """The axis with the roles of taps and outputs exchanged."""
        return replace(
            self,
            taps=self.out,
            out=self.taps,
            stride=self.kernel_dilation,
            kernel_dilation=self.stride,
        )

    @property
    def is_identity(self) -> bool:
        """Whether output o is a multiple of input o, for every input."""
        return self == Axis(self.size, 1, self.size, kernel_dilation=self.kernel_dilation)

    def phases(self) -> tuple[Axis, list[list[tuple[int, int]]]]:
        """A dilated axis of stride 1 as one undilated axis, and what each phase takes of it.

        Output phase + input_dilation*r takes input r + d from the taps k with
        phase + k*kernel_dilation - low = d*input_dilation. The undilated axis has one tap for each
        d in range; a phase is a list of (k, tap of the undilated axis).
        """
        found: list[list[tuple[int, int]]] = []
        for phase in range(self.input_dilation):
            positions = [phase + k * self.kernel_dilation - self.low for k in range(self.taps)]
            split = [divmod(position, self.input_dilation) for position in positions]
            found.append([(k, d) for k, (d, inserted) in enumerate(split) if inserted == 0])
        shifts = [d for taps in found for _, d in taps]
        least = min(shifts)
        out = -(-self.out // self.input_dilation)
        undilated = Axis(self.size, max(shifts) - least + 1, out, low=-least)
        return undilated, [[(k, d - least) for k, d in taps] for taps in found]
