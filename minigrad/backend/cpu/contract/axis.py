"""The arithmetic of one spatial axis of a convolution: which input an output and a tap meet at."""

from __future__ import annotations

from dataclasses import dataclass

from minigrad.backend.geometry import WindowAxis


@dataclass(frozen=True)
class Axis:
    """A window on so many inputs, with an output for each place that it takes."""

    inputs: int
    out: int
    window: WindowAxis

    @property
    def taps(self) -> int:
        """Taps of the window."""
        return self.window.size

    def _position(self, tap: int) -> int:
        """Where a tap is for output 0, the first input being at 0."""
        return tap * self.window.dilation - self.window.padding[0]

    def meetings(self) -> list[tuple[int, int, int]]:
        """Each tap's nonzero contributions: (count, first output, first input)."""
        return [self._meetings(tap) for tap in range(self.taps)]

    def _meetings(self, tap: int) -> tuple[int, int, int]:
        out_step, in_step = self.window.steps
        for o in range(out_step):
            position = self._position(tap) + o * self.window.stride
            first, inserted = divmod(position, self.window.input_dilation)
            if inserted == 0:
                skipped = max(0, -(first // in_step))
                o, first = o + skipped * out_step, first + skipped * in_step
                count = min(-((o - self.out) // out_step), -((first - self.inputs) // in_step))
                return (count, o, first) if count > 0 else (0, 0, 0)
        return 0, 0, 0

    def tap_ranges(self) -> list[int]:
        """For each output the first tap that is not before all inputs, and the first after them.

        Neither rises from one output to the next, so outputs a .. b need the taps from the first of
        b to the end of a; the others meet zeros alone.
        """
        found = []
        for o in range(self.out):
            for bound in (0, (self.inputs - 1) * self.window.input_dilation + 1):
                position = o * self.window.stride - self.window.padding[0] - bound
                found.append(min(max(-(position // self.window.dilation), 0), self.taps))
        return found

    def source(self, position: int) -> int | None:
        """The input at a position of the padded, dilated axis; None where that is a zero."""
        position -= self.window.padding[0]
        index, inserted = divmod(position, self.window.input_dilation)
        return index if inserted == 0 and 0 <= index < self.inputs else None

    def shifts(self) -> tuple[list[int], list[tuple[int, int]]]:
        """The residues modulo the stride that taps need, and where each tap finds its input.

        That is (index of its residue, shift in outputs).
        """
        split = [divmod(k * self.window.dilation, self.window.stride) for k in range(self.taps)]
        residues = sorted({residue for _, residue in split})
        return residues, [(residues.index(residue), shift) for shift, residue in split]

    def exchanged(self) -> Axis:
        """The axis with the roles of taps and outputs exchanged."""
        return Axis(self.inputs, self.taps, self.window.exchanged(self.inputs))

    @property
    def is_identity(self) -> bool:
        """Whether output o is a multiple of input o, for every input."""
        window = self.window
        one = window.size == window.stride == window.input_dilation == 1
        return one and window.padding[0] == 0 and self.out == self.inputs

    def phases(self) -> tuple[Axis, list[list[tuple[int, int]]]]:
        """A dilated axis of stride 1 as one undilated axis, and what each phase takes of it.

        Output phase + input_dilation*r takes input r + d from the taps k that are at position
        d*input_dilation - phase for output 0. The undilated axis has one tap for each d in range; a
        phase is a list of (k, tap of the undilated axis).
        """
        spacing = self.window.input_dilation
        found: list[list[tuple[int, int]]] = []
        for phase in range(spacing):
            split = [divmod(phase + self._position(k), spacing) for k in range(self.taps)]
            found.append([(k, d) for k, (d, inserted) in enumerate(split) if inserted == 0])
        shifts = [d for taps in found for _, d in taps]
        least, out = min(shifts), -(-self.out // spacing)
        taps = max(shifts) - least + 1
        padding = -least, out + taps - 1 - self.inputs + least
        undilated = Axis(self.inputs, out, WindowAxis(taps, 1, padding, 1, 1))
        return undilated, [[(k, d - least) for k, d in taps] for taps in found]
