"""Random bits by counter: Philox4x32-10, so that every device makes the same stream.

Source: Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", SC'11,
section 3.3 and table 2. Ten rounds; constants as in their Random123 library.

[Note: random layout] `state` is [seed, counter], two int64. All words are uint32, sums wrap:
    key     = (seed & 0xFFFFFFFF, seed >> 32)                         seed taken as uint64
    block b = philox(key, (n & 0xFFFFFFFF, n >> 32, 0, 0))            n = (counter + b) mod 2**64
    out[i]  = word i % 4 of block i // 4, reinterpreted as int32      i counts elements row-major
where one round maps (c0, c1, c2, c3) under key (k0, k1) to
    (high(M1 * c2) ^ c1 ^ k0, low(M1 * c2), high(M0 * c0) ^ c3 ^ k1, low(M0 * c0))
with M0 = 0xD2511F53, M1 = 0xCD9E8D57, and k0 += 0x9E3779B9, k1 += 0xBB67AE85 between rounds.
A draw of n elements uses ceil(n / 4) blocks: the next draw's counter is that much higher.
"""

from __future__ import annotations

from minigrad.backend.checks import require_random_bits
from minigrad.backend.cpu.kernel_text import shares
from minigrad.backend.cpu.runtime.jit import compile_kernel
from minigrad.backend.launch import Operand, Program

# Every word sits in the low half of a uint64 lane, where LLVM finds the 32 x 32 -> 64 bit multiply
# (vpmuludq), and so vectorizes over the blocks.
_SOURCE = """
u64 = types.uint64
LOW = u64(0xFFFFFFFF)
HALF = u64(32)
M0, M1 = u64(0xD2511F53), u64(0xCD9E8D57)
W0, W1 = u64(0x9E3779B9), u64(0xBB67AE85)


@njit(inline="always", **OPTIONS)
def philox(n, k0, k1):
    c0, c1, c2, c3 = n & LOW, n >> HALF, u64(0), u64(0)
    for _ in range(10):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (p1 >> HALF) ^ c1 ^ k0, p1 & LOW, (p0 >> HALF) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
    return c0, c1, c2, c3


def kernel(table, begin, end):
    state, step = load_int64(table, 0), load_int64(table, 1)
    out, size = load_int64(table, 2), load_int64(table, 3)
    seed, counter = u64(load_int64(state, 0)), u64(load_int64(state, step))
    k0, k1 = seed & LOW, seed >> HALF
    for block in range(begin, min(end, size // 4)):
        c0, c1, c2, c3 = philox(counter + u64(block), k0, k1)
        store_int32(out, 4 * block, types.int32(c0))
        store_int32(out, 4 * block + 1, types.int32(c1))
        store_int32(out, 4 * block + 2, types.int32(c2))
        store_int32(out, 4 * block + 3, types.int32(c3))
    if 4 * end > size:  # the last block is cut short
        words = philox(counter + u64(size // 4), k0, k1)
        for i in range(size % 4):
            store_int32(out, size - size % 4 + i, types.int32(words[i]))
"""


def random_bits(program: Program, state: Operand, out: Operand) -> None:
    """Fill out with uniform random 32-bit words. See [Note: random layout].

    Shapes: state (2,) int64 -> out any shape, dense, int32.
    """
    require_random_bits(state, out)
    if out.size == 0:
        return
    blocks = -(-out.size // 4)
    args = (state.pointer, state.strides[0], out.pointer, out.size)
    program.launch(compile_kernel("random_bits", _SOURCE), args, blocks, shares(8 * blocks, blocks))
