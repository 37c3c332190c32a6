"""scatter_add, the adjoint of `take`: a sum over equal indices, in their order.

[Note: tiles] A block owns a tile of the output, some rows by some columns, so nobody else adds to
it. It reads all indices, 1024 at a time, and lists those that fall into its rows, in order. When
the list is full, or at the end, the entries of equal rows are linked to chains, and each element of
the tile follows its row's chain. No atomic takes part: sums do not depend on timing.

Tiles are as large as leaves the chip busy, since each reads all indices.
"""

from __future__ import annotations

from minigrad.backend.checks import out_of_range, require_additive, require_indexed
from minigrad.backend.cuda.expressions import memory_type
from minigrad.backend.cuda.kernel_text import SUMS, KernelText, span
from minigrad.backend.cuda.prelude import THREADS, floor_power_of_two
from minigrad.backend.launch import Operand, Pointer, Program

_MOST_ROWS = 2048  # of a tile: two words of 16 bits each in shared memory
_MOST_ELEMENTS = 1 << 15
_TILES = 8  # for each multiprocessor

_SHARED = """\
    // The list: place and row (in the tile) of an entry, the next entry of the same row.
    __shared__ index_t listed[2048];
    __shared__ short rows_of[2048], next[2048];
    __shared__ short heads[2048], tails[2048];
    __shared__ int matches[8];
"""

_BODY = """\
    const index_t plane_tile = by_chunks.quotient(blockIdx.x);
    const index_t chunk = blockIdx.x - plane_tile * (index_t)by_chunks.d;
    const index_t a = by_tiles.quotient(plane_tile);
    const index_t top = (plane_tile - a * (index_t)by_tiles.d) * rows;
    const index_t left = chunk * columns;
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    const u32 below = (1u << lane) - 1;  // the lanes before this one
    for (int r = threadIdx.x; r < rows; r += 256) heads[r] = -1;
    __syncthreads();
    int held = 0;
    bool first = true;
    for (index_t start = 0;; start += 1024) {
        if (start >= count || held > 1024) {
            // Chain the entries of each row.
            if (warp == 0)
                for (int from = 0; from < held; from += 32) {
                    const int e = from + lane, row = e < held ? rows_of[e] : -1 - lane;
                    const u32 same = __match_any_sync(0xFFFFFFFFu, row);
                    const u32 after = same & ~below & ~(1u << lane);
                    if (e < held) {
                        next[e] = after ? from + __ffs(after) - 1 : -1;
                        if (!(same & below)) {
                            if (heads[row] < 0) heads[row] = e;
                            else next[tails[row]] = e;
                        }
                    }
                    __syncwarp();
                    if (e < held && !after) tails[row] = e;
                    __syncwarp();
                }
            __syncthreads();
            for (int k = threadIdx.x; k < rows * columns; k += 256) {
                const int row = k >> columns_log2;
                const index_t r = top + row, b = left + (k & (columns - 1));
                int e = heads[row];
                if (r >= length || b >= width || (e < 0 && !first)) continue;
                out_type* target = out + (a * out_0 + r * out_1 + b * out_2);
                const updates_type* source = updates + (a * updates_0 + b * updates_2);
                out_value sum = first ? 0 : load(target);
                while (e >= 0) {
                    // Four loads are under way together; that of nothing is 0, which adds nothing.
                    out_value values[4];
#pragma unroll
                    for (int n = 0; n < 4; ++n) {
                        values[n] = 0;
                        if (e >= 0) {
                            values[n] = read(source + listed[e] * updates_1);
                            e = next[e];
                        }
                    }
#pragma unroll
                    for (int n = 0; n < 4; ++n) sum = plus(sum, values[n]);
                }
                store(target, sum);
            }
            __syncthreads();
            if (start >= count) break;
            for (int r = threadIdx.x; r < rows; r += 256) heads[r] = -1;
            held = 0;
            first = false;
            __syncthreads();
        }
        // A warp takes four times 32 indices in a row.
        const index_t begin = start + warp * 128 + lane;
        int row[4];
        u32 votes[4];
        int own = 0;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const index_t i = begin + n * 32;
            row[n] = -1;
            if (i < count) {
                const i64 index = indices[i * indices_0];
                const i64 r = index < 0 ? index + length : index;
                if (r < 0 || r >= length) *status = index + 1;
                else if (r >= top && r < top + rows) row[n] = (int)(r - top);
            }
            votes[n] = __ballot_sync(0xFFFFFFFFu, row[n] >= 0);
            own += __popc(votes[n]);
        }
        if (lane == 0) matches[warp] = own;
        __syncthreads();
        int at = held;
#pragma unroll
        for (int w = 0; w < 8; ++w) {
            at += w < warp ? matches[w] : 0;
            held += matches[w];
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            if (row[n] >= 0) {
                const int e = at + __popc(votes[n] & below);
                listed[e] = begin + n * 32;
                rows_of[e] = row[n];
            }
            at += __popc(votes[n]);
        }
        __syncthreads();
    }
"""


def scatter_add(
    program: Program, indices: Operand, updates: Operand, out: Operand, processors: int
) -> None:
    """out[a, indices[i], b] += updates[a, i, b], starting from zeros. See [Note: tiles].

    Duplicates add up in the order of i.
    Shapes: indices (I,), updates (A, I, B), out (A, R, B). A numeric dtype; integers wrap.
    Raises: IndexError as `take`.
    """
    require_indexed("scatter_add", out, updates, indices)
    require_additive(out)
    if out.size == 0:
        return  # and so is updates, since no index fits an empty axis
    planes, length, width = out.shape
    elements = max(THREADS, min(out.size // (_TILES * processors), _MOST_ELEMENTS))
    columns = floor_power_of_two(min(2 * width - 1, elements))
    rows = min(floor_power_of_two(elements) // columns, _MOST_ROWS)
    tiles, chunks = -(-length // rows), -(-width // columns)
    count = updates.shape[1]
    blocks = planes * tiles * chunks
    text = KernelText(
        max(span(indices, updates, out), count + 2048, length + rows, width + columns, blocks)
    )
    text.types("indices", memory_type(indices.dtype), "i64")
    text.place("indices", indices, "indices_type")
    text.operand("updates", updates)
    text.operand("out", out, written=True)
    text.word("length", length)
    text.word("width", width)
    text.word("count", count)
    text.word("rows", rows, "int")
    text.word("columns", columns, "int")
    text.word("columns_log2", columns.bit_length() - 1, "int")
    text.divisor("by_tiles", tiles)
    text.divisor("by_chunks", chunks)
    status = program.status_slot(out_of_range("scatter_add", length))
    text.pointer("status", Pointer(status), "i64", written=True)
    body = _SHARED + _BODY
    text.launch_blocks(program, "scatter_add", body, blocks, THREADS, before=SUMS)
