"""Indexing along the middle axis of (A, R, B): take and argmax; `scatter_add.py` has the adjoint.

Indices are int32 or int64; negative ones count from the end. One that is out of range is never
followed: a word in a status slot makes the run raise, when a value is next looked at.
"""

from __future__ import annotations

from minigrad.backend.checks import out_of_range, require_argmax, require_indexed
from minigrad.backend.cuda.expressions import memory_type
from minigrad.backend.cuda.kernel_text import IMPROVES, KernelText, span
from minigrad.backend.cuda.prelude import LEAST, THREADS, WARP, power_of_two, team_size
from minigrad.backend.launch import Operand, Pointer, Program

_PACK_BYTES = 16
_PART_BLOCKS = 4  # of one multiprocessor, in a search that is cut into parts

# Types of the same size: elements are moved as bits.
_BITS = {1: "u8", 2: "u16", 4: "int", 8: "i64"}

_TAKE = """\
    const index_t line = by_packs.quotient(flat), b = (flat - line * (index_t)by_packs.d) * lanes;
    const index_t a = by_count.quotient(line), i = line - a * (index_t)by_count.d;
    const i64 index = indices[i * indices_0];
    const i64 r = index < 0 ? index + length : index;
    Pack<x_type, lanes> elements = {};
    if (r >= 0 && r < length)
        elements = read_pack<lanes>(x + (a * x_0 + (index_t)r * x_1 + b * x_2));
    else
        *status = index + 1;
    store_pack(out + (a * out_0 + i * out_1 + b * out_2), elements);
"""

# The first maximum of each of two sets of places: a total order, so it does not matter which pairs
# of threads compare.
_BETTER = f"""\
{IMPROVES}\
DEVICE bool wins(x_value value, i64 place, x_value best, i64 where) {{
    return improves(value, best) || (!improves(best, value) && place < where);
}}
"""

# A team's threads take every `team`-th element of a part of a line. Threads beyond the last part
# work on it, too, since all are needed where teams combine. `again` is the search among the places
# that parts have found.
_SEARCH = """\
    const index_t number = (index_t)blockIdx.x * points + point;
    const bool writes = member == 0 && number < lines * parts;
    const index_t flat = number < lines * parts ? number : lines * parts - 1;
    const index_t part = by_lines.quotient(flat), line = flat - part * lines;
    const index_t a = by_columns.quotient(line), b = line - a * (index_t)by_columns.d;
    const x_type* row = x + (a * x_0 + b * x_2);
    const index_t begin = part * share, end = length - begin < share ? length : begin + share;
    const index_t start = begin + member < end ? begin + member : begin;
    index_t where = again ? (index_t)candidates[start * lines + line] : start;
    x_value best = read(row + where * x_1);
    // Turns are counted, since the compiler does not unroll a loop whose step it does not know.
    const index_t turns = (end - begin - member + team - 1) >> team_log2;
#pragma unroll 4
    for (index_t t = 1; t < turns; ++t) {
        const index_t r = begin + member + t * team;
        const index_t place = again ? (index_t)candidates[r * lines + line] : r;
        const x_value value = read(row + place * x_1);
        if (improves(value, best)) best = value, where = place;
    }
"""

# Members lie side by side, so that they read a row together.
_ARGMAX_ROWS = (
    """\
    const int member = threadIdx.x & (team - 1), point = threadIdx.x / team;
"""
    + _SEARCH
    + """\
    for (int d = (team < 32 ? team : 32) / 2; d > 0; d /= 2) {
        const x_value value = __shfl_xor_sync(0xFFFFFFFFu, best, d);
        const index_t place = __shfl_xor_sync(0xFFFFFFFFu, where, d);
        if (wins(value, place, best, where)) best = value, where = place;
    }
    if (team > 32) {
        const int warp = threadIdx.x / 32;
        if (threadIdx.x % 32 == 0) values[warp] = best, places[warp] = where;
        __syncthreads();
        for (int w = warp; member == 0 && w < warp + team / 32; ++w)
            if (wins(values[w], places[w], best, where)) best = values[w], where = places[w];
    }
"""
)

# Points lie side by side, so that they read neighbouring columns.
_ARGMAX_COLUMNS = (
    """\
    const int member = threadIdx.x / points, point = threadIdx.x & (points - 1);
"""
    + _SEARCH
    + """\
    if (team > 1) {
        values[threadIdx.x] = best;
        places[threadIdx.x] = where;
        __syncthreads();
        for (int t = point + points; member == 0 && t < team * points; t += points)
            if (wins(values[t], places[t], best, where)) best = values[t], where = places[t];
    }
"""
)
_STORE_WHERE = "    if (writes) out[part * lines + a * out_0 + b * out_1] = where;\n"


def take(program: Program, x: Operand, indices: Operand, out: Operand) -> None:
    """out[a, i, b] = x[a, indices[i], b].

    Shapes: x (A, R, B), indices (I,), out (A, I, B). Any dtype: elements are moved as bits.
    Raises: IndexError, when the program has run, if an index is outside [-R, R); nothing is looked
        up where out is empty.
    """
    require_indexed("take", x, out, indices)
    if out.size == 0:
        return
    bits = _BITS[x.dtype.itemsize]
    lanes = _lanes(x, out)
    packs = out.size // lanes
    text = KernelText(max(span(x, indices, out), 2 * packs + THREADS))
    text.types("x", bits, bits)
    text.types("indices", memory_type(indices.dtype), "i64")
    for name, operand in (("x", x), ("indices", indices), ("out", out)):
        kind = "x" if name == "out" else name
        text.place(name, operand, f"{kind}_type", written=name == "out")
    text.fixed("lanes", lanes)
    text.divisor("by_packs", out.shape[2] // lanes)
    text.divisor("by_count", out.shape[1])
    text.word("length", x.shape[1], "i64")
    status = program.status_slot(out_of_range("take", x.shape[1]))
    text.pointer("status", Pointer(status), "i64", written=True)
    text.launch(program, "take", _TAKE, packs)


def argmax(program: Program, x: Operand, out: Operand, processors: int) -> None:
    """The place of the first maximum along the middle axis; NaN counts as the maximum.

    A team of threads shares a line; it is larger where there are few lines. Few long ones are cut
    into parts, and the places that these give are compared by a second launch.
    Shapes: x (A, R, B) -> out (A, B) int64; R > 0. Any dtype.
    """
    require_argmax(x, out)
    if out.size == 0:
        return
    length = x.shape[1]
    team, points = _team(x, length, processors)
    blocks = -(-out.size // points)
    parts = 1
    if blocks < processors:  # else a second launch costs more than it gains
        parts = max(1, min(_PART_BLOCKS * processors // blocks, length // (LEAST * team)))
    share = -(-length // parts)
    parts = -(-length // share)
    if parts == 1:
        _search(program, x, out, processors, length)
        return
    slot = program.scratch_slot(parts * out.size * out.dtype.itemsize)
    places = Operand(slot, out.dtype, out.shape, (out.shape[1], 1))
    _search(program, x, places, processors, length, share)
    _search(program, x, out, processors, parts, candidates=places)


def _search(
    program: Program,
    x: Operand,
    out: Operand,
    processors: int,
    length: int,
    share: int | None = None,
    candidates: Operand | None = None,
) -> None:
    """The first maximum of each part of `share` elements, or among the `length` candidates."""
    share = share or length
    parts = -(-length // share)
    team, points = _team(x, length, processors)
    blocks = -(-out.size * parts // points)
    reach = max(span(x, out), 2 * blocks * points, length + 2 * team, length * out.size)
    text = KernelText(reach)
    # Small integers are compared, and handed between threads, as int.
    text.operand("x", x, register="int" if x.dtype.itemsize == 1 else None)
    text.operand("out", out, written=True)
    text.pointer("candidates", (candidates or out).pointer, "i64", written=False)
    text.fixed("again", int(candidates is not None))
    text.word("length", length)
    text.word("share", share)
    text.word("lines", out.size)
    text.word("parts", parts)
    text.word("team", team, "int")
    text.word("team_log2", team.bit_length() - 1, "int")
    text.word("points", points, "int")
    text.divisor("by_lines", out.size)
    text.divisor("by_columns", out.shape[1])
    text.head.append("__shared__ x_value values[256];")
    text.head.append("__shared__ index_t places[256];")
    along = _is_along(x)
    body = (_ARGMAX_ROWS if along else _ARGMAX_COLUMNS) + _STORE_WHERE
    name = "argmax_rows" if along else "argmax_columns"
    text.launch_blocks(program, name, body, blocks, team * points, before=_BETTER)


def _is_along(x: Operand) -> bool:
    """Whether neighbours in memory are on the same line."""
    return x.shape[2] == 1 or abs(x.strides[1]) < abs(x.strides[2])


def _team(x: Operand, length: int, processors: int) -> tuple[int, int]:
    """How many threads share a line of so many elements, and lines of a block."""
    lines = x.shape[0] * x.shape[2]
    most = THREADS if _is_along(x) else THREADS // min(WARP, power_of_two(x.shape[2]))
    team = team_size(most, length, lines, processors)
    return team, max(min(THREADS // team, power_of_two(lines)), WARP // team, 1)


def _lanes(x: Operand, out: Operand) -> int:
    """How many neighbouring elements move at once."""
    lanes = _PACK_BYTES // x.dtype.itemsize
    both = (x, out)
    steps = [out.shape[2], *(n for o in both for n in (o.offset, *o.strides[:2]))]
    if any(o.strides[2] != 1 for o in both):
        return 1
    while any(n % lanes for n in steps):
        lanes //= 2
    return lanes
