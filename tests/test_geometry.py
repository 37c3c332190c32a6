"""A window's arithmetic against the meetings of taps and inputs that define it."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from minigrad.backend.geometry import Window, WindowAxis

axes = st.builds(
    WindowAxis,
    size=st.integers(1, 5),
    stride=st.integers(1, 4),
    padding=st.tuples(st.integers(-3, 6), st.integers(-3, 6)),
    dilation=st.integers(1, 3),
    input_dilation=st.integers(1, 3),
)


def meetings(axis: WindowAxis, inputs: int) -> set[tuple[int, int, int]]:
    """(window, tap, input) wherever they meet."""
    found = set()
    for o in range(axis.windows(inputs)):
        for k in range(axis.size):
            position = o * axis.stride + k * axis.dilation - axis.padding[0]
            index, between = divmod(position, axis.input_dilation)
            if not between and 0 <= index < inputs:
                found.add((o, k, index))
    return found


@given(axes, st.integers(0, 9))
def test_as_many_windows_as_fit(axis, inputs):
    positions = (inputs - 1) * axis.input_dilation + 1 if inputs else 0
    last = positions + sum(axis.padding) - (axis.size - 1) * axis.dilation - 1
    assert axis.windows(inputs) == len(range(0, last + 1, axis.stride))


@given(axes, st.integers(1, 9))
def test_the_adjoint_gives_each_input_what_it_gave(axis, inputs):
    windows, adjoint = axis.windows(inputs), axis.adjoint(inputs)
    assume(windows)
    assert adjoint.windows(windows) == inputs
    last = axis.size - 1
    back = {(o, last - k, i) for i, k, o in meetings(adjoint, windows)}
    assert back == meetings(axis, inputs)


@given(axes, st.integers(1, 9))
def test_windows_and_taps_change_places(axis, inputs):
    exchanged = axis.exchanged(inputs)
    assume(axis.windows(inputs))
    assert (exchanged.size, exchanged.windows(inputs)) == (axis.windows(inputs), axis.size)
    assert {(k, o, i) for o, k, i in meetings(exchanged, inputs)} == meetings(axis, inputs)


@given(axes, axes, st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_a_window_is_two_axes(rows, columns, inputs):
    window = Window(*zip(rows, columns, strict=True))
    assert window.axes == (rows, columns)
    assert window.low == (rows.padding[0], columns.padding[0])
    assert window.windows(inputs) == (rows.windows(inputs[0]), columns.windows(inputs[1]))
    assert window.adjoint(inputs).axes[1] == columns.adjoint(inputs[1])
    assert hash(window) == hash(Window(*window))
