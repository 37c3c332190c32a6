"""The bodies of the window kernels; `window.py` chooses among them and fills their tables.

A kernel has a thread for each output element, neighbours taking neighbouring columns. Windows of
few taps have them compiled in (`taps_h`, `taps_w` are constants then), so that the loads of all
taps are under way together.
"""

from __future__ import annotations

_DECODE = """\
    const index_t line = by_columns.quotient(flat), column = flat - line * (index_t)by_columns.d;
    const index_t plane = by_rows.quotient(line), row = line - plane * (index_t)by_rows.d;
    const index_t a = by_depth.quotient(plane), b = plane - a * (index_t)by_depth.d;
"""


def _planes(names: str, written: str = "") -> str:
    """`x_plane`: where plane (a, b) of operand x starts."""
    kinds = dict.fromkeys(names.split(), "const ") | dict.fromkeys(written.split(), "")
    return "".join(
        f"    {const}{x}_type* {x}_plane = {x} + (a * {x}_0 + b * {x}_1);\n"
        for x, const in kinds.items()
    )


def _taps(step: str, unrolled: bool) -> str:
    """`step` for each tap: `value`, x under tap (i, j), where `inside` says there is one."""
    pragma = "#pragma unroll\n" if unrolled else ""
    return f"""\
{pragma}    for (index_t i = 0; i < taps_h; ++i) {{
        const index_t y = top + i * dilation_h;
        const bool row_inside = y >= 0 && y < height;
{pragma}        for (index_t j = 0; j < taps_w; ++j) {{
            const index_t z = left + j * dilation_w;
            const bool inside = row_inside && z >= 0 && z < width;
            x_value value = 0;
            if (inside) value = read(x_plane + (y * x_2 + z * x_3));
            {step}
        }}
    }}
"""


_CORNER = (
    "    const index_t top = row * stride_h - padding_h, left = column * stride_w - padding_w;\n"
)
_STORE = "    store(out_plane + (row * out_2 + column * out_3), {});\n"


def _windows(operands: str, body: str, result: str) -> str:
    """A thread for each window: `body` finds its `result`."""
    return _DECODE + _planes(operands, written="out") + _CORNER + body + _STORE.format(result)


def window_sum(unrolled: bool) -> str:
    """The sum of each window."""
    taps = _taps("sum = plus(sum, value);", unrolled)
    return _windows("x", "    x_value sum = 0;\n" + taps, "sum")


def window_max(unrolled: bool) -> str:
    """The maximum of each window, `lowest` where a window holds no element of x."""
    taps = _taps("if (inside && improves(value, best)) best = value;", unrolled)
    return _windows("x", "    x_value best = lowest();\n" + taps, "best")


_WINS = (
    "if (inside && (winner < 0 || improves(value, best))) best = value, winner = i * taps_w + j;"
)


def _winner(unrolled: bool) -> str:
    """`winner`: the number of the tap that holds the first maximum, -1 in an empty window."""
    return "    x_value best = lowest();\n    index_t winner = -1;\n" + _taps(_WINS, unrolled)


_PICK = """\
    u_value picked = 0;
    if (winner >= 0) {
        const index_t i = winner / taps_w, y = top + i * dilation_h;
        const index_t z = left + (winner - i * taps_w) * dilation_w;
        picked = read(u_plane + (y * u_2 + z * u_3));
    }
"""


def window_select(unrolled: bool) -> str:
    """The value of u at the first maximum of x in each window."""
    return _windows("x u", _winner(unrolled) + _PICK, "picked")


def winners(unrolled: bool) -> str:
    """The winning tap of each window, dense; `nobody` in an empty one."""
    store = "    out[flat] = (out_type)(winner < 0 ? nobody : winner);\n"
    return _DECODE + _planes("x") + _CORNER + _winner(unrolled) + store


# Solves position + i * dilation = 0 modulo spacing for the least i >= 0, if i < taps, and gives the
# steps from one solution to the next. No division but by what the host knows.
SPACED = """\
struct Spaced {
    index_t first, place;  // the first tap that meets an element, and which element
    DEVICE Spaced(index_t position, index_t taps, index_t dilation, index_t lift, index_t turn, const divisor_t& spacing) {
        const index_t d = (index_t)spacing.d, lifted = position + lift;
        index_t rest = lifted - spacing.quotient(lifted) * d;
        first = 0;
        while (rest != 0 && first < taps) {
            rest += turn;
            if (rest >= d) rest -= d;
            ++first;
        }
        place = spacing.quotient(lifted + first * dilation) - spacing.quotient(lift);
    }
};
"""  # noqa: E501

# x's elements lie `spacing` apart, so that few taps meet one. A lift is a multiple of the spacing
# that makes positions positive, a turn the dilation modulo the spacing.
SPACED_SUM = _windows(
    "x",
    """\
    const Spaced down(top, taps_h, dilation_h, lift_h, turn_h, by_spacing_h);
    const Spaced across(left, taps_w, dilation_w, lift_w, turn_w, by_spacing_w);
    x_value sum = 0;
    index_t y = down.place;
    for (index_t i = down.first; i < taps_h; i += every_h, y += step_h) {
        if (y < 0 || y >= height) continue;
        const x_type* x_line = x_plane + y * x_2;
        index_t z = across.place;
        for (index_t j = across.first; j < taps_w; j += every_w, z += step_w)
            if (z >= 0 && z < width) sum = plus(sum, read(x_line + z * x_3));
    }
""",
    "sum",
)

# Windows that do not overlap: a thread owns the stride_h x stride_w elements (a cell) that a window
# starts with, and writes them all. There are cells where no window is, too, so all of out has one.
CELLS = (
    _DECODE
    + _planes("x g", written="out")
    + """\
    const index_t window_row = row + first_row, window_column = column + first_column;
    const index_t top = window_row * stride_h - padding_h;
    const index_t left = window_column * stride_w - padding_w;
    g_value gained = 0;
    index_t winner = -1;
    if (window_row >= 0 && window_row < rows && window_column >= 0 && window_column < columns) {
    gained = read(g_plane + (window_row * g_2 + window_column * g_3));
    x_value best = lowest();
"""
    + _taps(_WINS, unrolled=True)
    + """\
    }
#pragma unroll
    for (index_t i = 0; i < stride_h; ++i) {
        const index_t y = top + i;
        if (y < 0 || y >= height) continue;
        out_type* out_line = out_plane + y * out_2;
#pragma unroll
        for (index_t j = 0; j < stride_w; j += pack) {
            const index_t z = left + j;
            if (z < 0 || z >= width) continue;
            Pack<out_type, pack> cells;
#pragma unroll
            for (index_t k = 0; k < pack; ++k) {
                const bool wins = i < taps_h && j + k < taps_w && winner == i * taps_w + j + k;
                store(&cells.at[k], wins ? gained : (g_value)0);
            }
            store_pack(out_line + z * out_3, cells);
        }
    }
"""
)

# Windows that may overlap: a thread adds up, in row-major order, the g of the windows over its
# element that this element is the winner of.
GATHER = (
    _DECODE
    + _planes("g", written="out")
    + """\
    const index_t y = row + padding_h, z = column + padding_w;
    const index_t last_row = y < 0 ? -1 : at_most(by_stride_h.quotient(y), rows - 1);
    const index_t last_column = z < 0 ? -1 : at_most(by_stride_w.quotient(z), columns - 1);
    // The first windows that reach as far: division rounded up.
    const index_t over_h = y - (taps_h - 1) * dilation_h, over_w = z - (taps_w - 1) * dilation_w;
    const index_t first_row = over_h <= 0 ? 0 : by_stride_h.quotient(over_h + stride_h - 1);
    const index_t first_column = over_w <= 0 ? 0 : by_stride_w.quotient(over_w + stride_w - 1);
    g_value sum = 0;
    for (index_t r = first_row; r <= last_row; ++r) {
        const index_t down = y - r * stride_h, i = by_dilation_h.quotient(down);
        if (i * dilation_h != down) continue;
        const winner_type* winner_line = winner + (plane * rows + r) * columns;
        for (index_t c = first_column; c <= last_column; ++c) {
            const index_t across = z - c * stride_w, j = by_dilation_w.quotient(across);
            if (j * dilation_w == across && (index_t)winner_line[c] == i * taps_w + j)
                sum = plus(sum, read(g_plane + (r * g_2 + c * g_3)));
        }
    }
"""
    + _STORE.format("sum")
)
AT_MOST = "DEVICE index_t at_most(index_t n, index_t most) { return n < most ? n : most; }\n"
