"""Random bits by counter: Philox4x32-10, the stream of [Note: random layout] in the CPU's."""

from __future__ import annotations

from minigrad.backend.checks import require_random_bits
from minigrad.backend.cuda.kernel_text import KernelText
from minigrad.backend.launch import Operand, Program

_PHILOX = """\
struct Words { u32 at[4]; };
DEVICE Words philox(u64 counter, u32 k0, u32 k1) {
    u32 c0 = (u32)counter, c1 = (u32)(counter >> 32), c2 = 0, c3 = 0;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u32 high0 = high_product(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const u32 high1 = high_product(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}
"""

_BODY = """\
    const u64 seed = (u64)state[0], counter = (u64)state[step] + (u64)flat;
    const Words words = philox(counter, (u32)seed, (u32)(seed >> 32));
    const index_t first = 4 * flat;
    if (whole && size - first >= 4) {
        Pack<int, 4> pack;
#pragma unroll
        for (int k = 0; k < 4; ++k) pack.at[k] = (int)words.at[k];
        store_pack(out + first, pack);
    } else {
#pragma unroll
        for (int k = 0; k < 4; ++k)
            if (first + k < size) out[first + k] = (int)words.at[k];
    }
"""


def random_bits(program: Program, state: Operand, out: Operand) -> None:
    """Fill out with uniform random 32-bit words, a thread for each Philox block of four.

    Shapes: state (2,) int64 -> out any shape, dense, int32.
    """
    require_random_bits(state, out)
    text = KernelText(2 * out.size + 2048)
    text.pointer("state", state.pointer, "i64", written=False)
    text.pointer("out", out.pointer, "int", written=True)
    text.word("step", state.strides[0])
    text.word("size", out.size)
    text.word("whole", int(out.offset % 4 == 0), "bool")
    text.launch(program, "random_bits", _BODY, -(-out.size // 4), before=_PHILOX)
