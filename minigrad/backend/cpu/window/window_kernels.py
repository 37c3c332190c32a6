"""The sources of the window kernels; `window.py` chooses among them and fills their tables.

Every kernel walks output rows (of all planes, one after the other) and, inside a row, blocks of
LANES columns whose running value stays in a register while the taps of the window go by. A tap
reads its x columns at one of three steps: 1, 2 (two loads and a shuffle), or any (a gather).
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import indent

from minigrad.backend.cpu.machine import vector_bytes
from minigrad.backend.launch import Operand


def lanes_of(*operands: Operand) -> int:
    """Lanes of a block: one register of the widest type, but no more than of int32 indices."""
    return vector_bytes() // max(4, *(operand.dtype.itemsize for operand in operands))


def imports(operands: Mapping[str, Operand]) -> str:
    """`x_lanes` and `x_gather`, the vector loads of each operand's dtype."""
    lines = ["from minigrad.backend.cpu.vector.masked import *"]
    for x, operand in operands.items():
        kind = operand.dtype.name
        lines.append(f"{x}_lanes, {x}_gather = load_lanes_{kind}, gather_lanes_{kind}")
    return "\n".join(lines)


def _rows(operands: str) -> str:
    """The loop over rows begin .. end - 1, counted through all planes."""
    planes = "".join(
        f"        {name}_plane = {name} + a * {name}_0 + b * {name}_1\n"
        for name in operands.split()
    )
    return f"""
    for plane in range(begin // rows, (end + rows - 1) // rows):
        a = plane // depth
        b = plane - a * depth
{planes}        for row in range(max(begin - plane * rows, 0), min(end - plane * rows, rows)):
"""


# The x values under tap j of a block of columns.
TAP_LOADS = {
    "unit": "x_lanes(line, first + column, valid)",
    "pairs": (
        "even(x_lanes(line, first + 2 * column, bit_lanes(bits >> 16, LANES)), "
        "x_lanes(line, first + 2 * column + LANES, bit_lanes(bits >> (16 + LANES), LANES)))"
    ),
    "any": "x_gather(line, first + column * x_step, x_step, valid)",
}

_TAP = """
                            first = load_int64(table, TAIL + j)
                            bits = load_int64(table, masks + j)
                            valid = bit_lanes(bits, LANES)
"""


def mask_word(low: int, high: int, lanes: int) -> int:
    """Which lanes are inside x: low .. high - 1 of a block, as a word of the table.

    Bits 0 to 15 are the lanes. From bit 16 on are the 2 * lanes elements that "pairs" loads, of
    which the even ones are used; nothing past the last one used is touched.
    """
    low, high = max(low, 0), min(high, lanes)
    if low >= high:
        return 0
    return (1 << high) - (1 << low) | (1 << 2 * high - 1) - (1 << 2 * low) << 16


def window_max(load: str) -> str:
    """Maximum of each window; LOWEST where a window holds no element of x."""
    return f"""
{_rows("x out")}
            target = out_plane + row * out_2
            masks = TAIL + taps_w
            for column in range(0, columns, LANES):
                best = spread(x_type(LOWEST), LANES)
                for i in range(taps_h):
                    y = row * stride_h + i * dilation_h - padding_h
                    if y >= 0 and y < height:
                        line = x_plane + y * x_2
                        for j in range(taps_w):
{_TAP}
                            value = {TAP_LOADS[load]}
                            better = both(improves(value, best), valid)
                            best = choose(better, value, best)
                scatter_first(target, column * out_3, out_3, columns - column, best)
                masks += taps_w
"""


def window_sum(load: str) -> str:
    """Sum of each window of a dilated x.

    The columns are taken by phase (their number modulo `phases`): the columns of a phase see the
    same taps of x, others fall on the zeros between x's columns. Phase p has the taps up to the
    p-th of the words that follow the taps'.
    """
    return f"""
{_rows("x out")}
            target = out_plane + row * out_2
            masks = TAIL + taps_w + phases
            start = types.int64(0)
            for phase in range(phases):
                stop = load_int64(table, TAIL + taps_w + phase)
                count = (columns - phase + phases - 1) // phases
                for column in range(0, count, LANES):
                    total = spread(x_type(0), LANES)
                    for i in range(taps_h):
                        dilated = row * stride_h + i * dilation_h - padding_h
                        y = dilated // spacing_h
                        if dilated >= 0 and y < height and y * spacing_h == dilated:
                            line = x_plane + y * x_2
                            for j in range(start, stop):
{indent(_TAP, "    ")}
                                total = add(total, {TAP_LOADS[load]})
                    step = phases * out_3
                    first = phase * out_3 + column * step
                    scatter_first(target, first, step, count - column, total)
                    masks += stop - start
                masks += start - stop
                start = stop
"""


def _first_maximum(load: str, like: str) -> str:
    """`index`: the first maximum's place in the plane of `like`, in elements, or NOWHERE."""
    return f"""
                best = spread(x_type(LOWEST), LANES)
                nowhere = spread(index_type(NOWHERE), LANES)
                index = nowhere
                for i in range(taps_h):
                    y = row * stride_h + i * dilation_h - padding_h
                    if y >= 0 and y < height:
                        line = x_plane + y * x_2
                        for j in range(taps_w):
{_TAP}
                            value = {TAP_LOADS[load]}
                            better = both(
                                either(improves(value, best), equal(index, nowhere)),
                                valid,
                            )
                            place = y * row_step + load_int64(table, TAIL + taps_w + j)
                            places = ramp(
                                index_type(place + column * column_step),
                                index_type(column_step),
                                LANES,
                            )
                            best = choose(better, value, best)
                            index = choose(better, places, index)
                chosen = spill(index)
                masks += taps_w
"""


def window_select(load: str) -> str:
    """The value of u at the first maximum of x in each window, or 0 for an empty window."""
    return f"""
{_rows("x u out")}
            target = out_plane + row * out_2
            masks = TAIL + 2 * taps_w
            for column in range(0, columns, LANES):
{_first_maximum(load, "u")}
                for lane in range(min(columns - column, LANES)):
                    where = load_index(chosen, lane)
                    picked = u_type(0)
                    if where != NOWHERE:
                        picked = load_u(u_plane, where)
                    store_out(target, (column + lane) * out_3, picked)
"""


def window_scatter(load: str) -> str:
    """The adjoint of `window_select`: a share owns whole planes, since windows may overlap."""
    return f"""
    for plane in range(begin, end):
        a = plane // depth
        b = plane - a * depth
        x_plane = x + a * x_0 + b * x_1
        g_plane = g + a * g_0 + b * g_1
        out_plane = out + a * out_0 + b * out_1
        nothing = spread(out_type(0), LANES)
        for y in range(height):
            for column in range(0, width, LANES):
                left = width - column
                scatter_first(out_plane + y * out_2, column * out_3, out_3, left, nothing)
        for row in range(rows):
            line_g = g_plane + row * g_2
            masks = TAIL + 2 * taps_w
            for column in range(0, columns, LANES):
{_first_maximum(load, "out")}
                for lane in range(min(columns - column, LANES)):
                    where = load_index(chosen, lane)
                    if where != NOWHERE:
                        total = load_out(out_plane, where) + load_g(line_g, (column + lane) * g_3)
                        store_out(out_plane, where, out_type(total))
"""


# ---- windows of 2 x 2 at stride 2 without padding: a window is a pair of columns of a row pair


def _cells(name: str) -> str:
    """`{name}0` .. `{name}3`: the cells of LANES windows, in row-major order."""
    loads = "".join(
        f"                low_{name} = {name}_lanes({line}_{name}, 2 * column, low)\n"
        f"                high_{name} = {name}_lanes({line}_{name}, 2 * column + LANES, high)\n"
        f"                {name}{cell} = even(low_{name}, high_{name})\n"
        f"                {name}{cell + 1} = odd(low_{name}, high_{name})\n"
        for line, cell in (("top", 0), ("bottom", 2))
    )
    return loads


def _lines(names: str) -> str:
    """The addresses of each operand's row pair."""
    return "".join(
        f"            top_{name} = {name}_plane + 2 * row * {name}_2\n"
        f"            bottom_{name} = top_{name} + {name}_2\n"
        for name in names.split()
    )


# A row's last block overlaps the one before, so that only a row of less than a block is cut short:
# the masks are made once, not in every row.
_MASKS = """
    valid = first_lanes(columns, LANES)
    low = first_lanes(2 * columns, LANES)
    high = first_lanes(2 * columns - LANES, LANES)"""

_BLOCKS = """            for start in range(0, columns, LANES):
                column = max(0, min(start, columns - LANES))
                left = columns - column
"""

# The last row of an odd height is in no window.
_LONE_ROW = """            if 2 * row + 1 == height:
                for column in range(width):
                    store_out(top_out, column, out_type(0))
                continue
"""


def _pairs(operands: str, lines: str, cells: str, body: str, before: str = "") -> str:
    """A kernel that does `body` for each block of windows.

    `lines` are the operands of two rows for each row of windows, of which `cells` are loaded.
    """
    loads = "".join(map(_cells, cells.split()))
    return _MASKS + _rows(operands) + _lines(lines) + before + _BLOCKS + loads + body


def _write_cells(top_left: str, top_right: str, bottom_left: str, bottom_right: str) -> str:
    """Write four vectors into the cells of LANES windows of `out`.

    The column that an odd width leaves over becomes zero.
    """
    return f"""
                at, beyond = 2 * column, 2 * left - LANES
                store_first(top_out, at, 2 * left, zip_low({top_left}, {top_right}))
                store_first(top_out, at + LANES, beyond, zip_high({top_left}, {top_right}))
                store_first(bottom_out, at, 2 * left, zip_low({bottom_left}, {bottom_right}))
                store_first(bottom_out, at + LANES, beyond, zip_high({bottom_left}, {bottom_right}))
            if 2 * columns < width:
                store_out(top_out, width - 1, out_type(0))
                store_out(bottom_out, width - 1, out_type(0))
"""


_MAX = """
                best = choose(improves(x1, x0), x1, x0)
                best = choose(improves(x2, best), x2, best)
                best = choose(improves(x3, best), x3, best)
                store_first(out_plane + row * out_2, column, left, best)
"""
_SUM = """
                store_first(out_plane + row * out_2, column, left, add(add(x0, x1), add(x2, x3)))
"""
_SELECT = """
                better = improves(x1, x0)
                best = choose(better, x1, x0)
                picked = choose(better, u1, u0)
                better = improves(x2, best)
                best = choose(better, x2, best)
                picked = choose(better, u2, picked)
                better = improves(x3, best)
                picked = choose(better, u3, picked)
                store_first(out_plane + row * out_2, column, left, picked)
"""
_SCATTER = """
                nothing = spread(out_type(0), LANES)
                value = g_lanes(g_plane + row * g_2, column, valid)
                second = improves(x1, x0)
                best = choose(second, x1, x0)
                third = improves(x2, best)
                best = choose(third, x2, best)
                fourth = improves(x3, best)
                g3 = choose(fourth, value, nothing)
                value = choose(fourth, nothing, value)
                g2 = choose(third, value, nothing)
                value = choose(third, nothing, value)
                g1 = choose(second, value, nothing)
                g0 = choose(second, nothing, value)
"""
_SPREAD = """
                value = x_lanes(x_plane + row * x_2, column, valid)
"""
PAIRS = {
    "pair_max": _pairs("x out", "x", "x", _MAX),
    "pair_sum": _pairs("x out", "x", "x", _SUM),
    "pair_select": _pairs("x u out", "x u", "x u", _SELECT),
    "pair_scatter": _pairs(
        "x g out", "x out", "x", _SCATTER + _write_cells("g0", "g1", "g2", "g3"), _LONE_ROW
    ),
    "pair_spread": _pairs("x out", "out", "", _SPREAD + _write_cells(*["value"] * 4), _LONE_ROW),
}
