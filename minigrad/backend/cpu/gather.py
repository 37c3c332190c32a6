"""Indexing along the middle axis of (A, R, B): take, its adjoint scatter_add, and argmax.

Indices are int32 or int64; negative ones count from the end. One that is out of range is never
followed: a word in a status slot makes the run raise.
"""

from __future__ import annotations

from dataclasses import replace
from textwrap import indent

from minigrad import dtype as dtypes
from minigrad.backend import checks
from minigrad.backend.cpu import kernel_text
from minigrad.backend.cpu.runtime.driver import num_threads
from minigrad.backend.cpu.runtime.jit import compile_kernel
from minigrad.backend.launch import Operand, Pointer, Program

# Shares split columns at multiples of this many elements, so that no two write to a cache line.
_COLUMNS = 64

# Types of the same size: take moves elements as bits, and bools compare as bytes.
_BITS = {1: dtypes.uint8, 4: dtypes.int32, 8: dtypes.int64}

_RESOLVE = """\
index = types.int64(load_indices(indices, i * indices_0))
r = index + length if index < 0 else index
inside = r >= 0 and r < length
if not inside:
    store_int64(status, 0, index + 1)
"""

_TAKE = f"""\
    for line in range(begin, end):
        a = line // count
        i = line - a * count
        target = out + a * out_0 + i * out_1
{indent(_RESOLVE, " " * 8)}
        if inside:
            chosen = x + a * x_0 + r * x_1
            for b in range(columns):
                store_out(target, b * out_2, load_x(chosen, b * x_2))
        else:
            for b in range(columns):
                store_out(target, b * out_2, out_type(0))
"""

# A share is one `a` and the columns first .. last - 1.
_SHARES = """\
    for share in range(begin, end):
        a = share // blocks
        first = (share - a * blocks) * block
        last = min(first + block, columns)
"""

_SCATTER_ADD = f"""\
{_SHARES}
        for r in range(length):
            target = out + a * out_0 + r * out_1
            for b in range(first, last):
                store_out(target, b * out_2, out_type(0))
        for i in range(count):
{indent(_RESOLVE, " " * 12)}
            if inside:
                target = out + a * out_0 + r * out_1
                update = updates + a * updates_0 + i * updates_1
                for b in range(first, last):
                    total = load_out(target, b * out_2) + load_updates(update, b * updates_2)
                    store_out(target, b * out_2, out_type(total))
"""

# Greater, or the first NaN: as [Note: ties] in cpu/window/window.py has it.
_IMPROVES = "(value > best) | ((value != value) & (best == best))"

_ARGMAX_ROWS = f"""\
    for line in range(begin, end):
        a = line // columns
        b = line - a * columns
        row = x + a * x_0 + b * x_1
        best = load_x(row, 0)
        where = types.int64(0)
        for r in range(1, length):
            value = load_x(row, r * x_2)
            if {_IMPROVES}:
                best = value
                where = r
        store_out(out + a * out_0, b * out_1, where)
"""

_ARGMAX_COLUMNS = f"""\
{_SHARES}
        target = out + a * out_0
        maxima = best_so_far + a * best_so_far_0
        for b in range(first, last):
            store_out(target, b * out_1, 0)
            store_best_so_far(maxima, b, load_x(x + a * x_0, b * x_2))
        for r in range(1, length):
            row = x + a * x_0 + r * x_1
            for b in range(first, last):
                value = load_x(row, b * x_2)
                best = load_best_so_far(maxima, b)
                better = {_IMPROVES}
                store_best_so_far(maxima, b, value if better else best)
                store_out(target, b * out_1, r if better else load_out(target, b * out_1))
"""


def take(program: Program, x: Operand, indices: Operand, out: Operand) -> None:
    """out[a, i, b] = x[a, indices[i], b].

    Shapes: x (A, R, B), indices (I,), out (A, I, B). Any dtype: elements are moved as bits.
    Raises: IndexError, when the program runs, if an index is outside [-R, R); nothing is looked up
        where out is empty.
    """
    checks.require_indexed("take", x, out, indices)
    if out.size == 0:
        return
    bits = _BITS[x.dtype.itemsize]
    operands = {"x": replace(x, dtype=bits), "indices": indices, "out": replace(out, dtype=bits)}
    sizes = {"length": x.shape[1], "count": out.shape[1], "columns": out.shape[2]}
    extent = out.shape[0] * out.shape[1]
    _launch(program, "take", _TAKE, operands, sizes, extent, out.size, status=True)


def scatter_add(program: Program, indices: Operand, updates: Operand, out: Operand) -> None:
    """out[a, indices[i], b] += updates[a, i, b], starting from zeros; the adjoint of `take`.

    Duplicates add up in the order of i, so the result does not depend on the threads.
    Shapes: indices (I,), updates (A, I, B), out (A, R, B). A numeric dtype; integers wrap.
    Raises: IndexError as `take`.
    """
    checks.require_indexed("scatter_add", out, updates, indices)
    checks.require_additive(out)
    if out.size == 0 and updates.size == 0:
        return
    operands = {"indices": indices, "updates": updates, "out": out}
    work = out.size + updates.size
    sizes = {"length": out.shape[1], "count": updates.shape[1], "columns": out.shape[2]}
    sizes |= _blocks(out.shape[0], out.shape[2], work)
    extent = out.shape[0] * sizes["blocks"]
    _launch(program, "scatter_add", _SCATTER_ADD, operands, sizes, extent, work, status=True)


def argmax(program: Program, x: Operand, out: Operand) -> None:
    """The place of the first maximum along the middle axis; NaN counts as the maximum.

    Shapes: x (A, R, B) -> out (A, B) int64; R > 0. Any dtype.
    """
    checks.require_argmax(x, out)
    if out.size == 0:
        return
    length, columns = x.shape[1:]
    if x.dtype.kind == "bool":
        x = replace(x, dtype=_BITS[1])
    if columns == 1 or x.strides[1] == 1:
        a, r, b = x.strides
        rows = replace(x, shape=(x.shape[0], columns, length), strides=(a, b, r))
        sizes = {"length": length, "columns": columns}
        operands = {"x": rows, "out": out}
        _launch(program, "argmax_rows", _ARGMAX_ROWS, operands, sizes, out.size, x.size)
        return
    slot = program.scratch_slot(out.size * x.dtype.itemsize)
    maxima = Operand(slot, x.dtype, out.shape, (columns, 1))
    operands = {"x": x, "out": out, "best_so_far": maxima}
    sizes = {"length": length, "columns": columns} | _blocks(out.shape[0], columns, x.size)
    extent = out.shape[0] * sizes["blocks"]
    _launch(program, "argmax_columns", _ARGMAX_COLUMNS, operands, sizes, extent, x.size)


def _blocks(rows: int, columns: int, work: int) -> dict[str, int]:
    """How columns are split, if there are fewer rows than threads and enough work."""
    wanted = kernel_text.shares(work, num_threads())
    parts = max(1, min(-(-wanted // max(rows, 1)), -(-columns // _COLUMNS)))
    block = -(-columns // (parts * _COLUMNS)) * _COLUMNS
    return {"blocks": -(-columns // max(block, 1)), "block": block}


def _launch(
    program: Program,
    name: str,
    body: str,
    operands: dict[str, Operand],
    sizes: dict[str, int],
    extent: int,
    work: int,
    status: bool = False,
) -> None:
    # The last strides are known to be 1 in all operands or assumed in none: two kernels, not eight.
    inner = [x for x, operand in operands.items() if len(operand.shape) > 1]
    dense = all(operands[x].strides[-1] == 1 or operands[x].shape[-1] == 1 for x in inner)
    names = list(sizes)
    values: list[int | Pointer] = [*sizes.values()]
    if status:
        message = checks.out_of_range(name, sizes["length"])
        names.append("status")
        values.append(Pointer(program.status_slot(message)))
    text = kernel_text.source(operands, names, body, unit=inner if dense else ())
    kinds = "_".join(dict.fromkeys(operand.dtype.name for operand in operands.values()))
    kernel = compile_kernel(f"{name}_{kinds}", text)
    args = (*kernel_text.words(operands), *values)
    program.launch(kernel, args, extent, kernel_text.shares(work, extent))
