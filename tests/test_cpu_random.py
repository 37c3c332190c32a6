"""Philox on the CPU backend against Random123's known answers and a plain Python version."""

from __future__ import annotations

import pytest
from backend_harness import Prepared, run_program
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrad.backend.cpu import random_bits

# Random123's kat_vectors, "philox4x32 10": counter, key, answer.
KNOWN = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox(counter, key):
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k0, p1 & 0xFFFFFFFF, p0 >> 32 ^ c[3] ^ k1, p0 & 0xFFFFFFFF]
        k0, k1 = k0 + 0x9E3779B9 & 0xFFFFFFFF, k1 + 0xBB67AE85 & 0xFFFFFFFF
    return tuple(c)


def reference(seed, counter, n):
    key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    words = []
    for block in range(-(-n // 4)):
        place = (counter + block) % 2**64
        words += philox((place & 0xFFFFFFFF, place >> 32, 0, 0), key)
    return words[:n]


def draw(seed, counter, shape):
    words = run_program(random_bits.random_bits, [("int64", (2,), [seed, counter])], shape, "int32")
    return [word & 0xFFFFFFFF for word in words]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_the_reference_gives_the_known_answers(counter, key, answer):
    assert philox(counter, key) == answer


def test_the_kernel_gives_the_known_answer():
    assert tuple(draw(0, 0, (4,))) == KNOWN[0][2]


words = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.sampled_from((-1, 2**32 - 1, 2**63 - 1, -(2**63)))
)


@settings(deadline=None, max_examples=100)
@given(words, words, st.integers(0, 70))
def test_any_seed_and_counter(seed, counter, n):
    assert draw(seed, counter, (n,)) == reference(seed, counter, n)


def test_a_large_draw_in_parallel():
    assert draw(-5, 2**32 - 7, (3, 41, 703)) == reference(-5, 2**32 - 7, 3 * 41 * 703)


def test_a_later_counter_continues_the_stream():
    assert draw(9, 100, (40,))[12:] == draw(9, 103, (28,))


def test_the_output_must_be_dense_int32():
    from dataclasses import replace

    state = ("int64", (2,), [0, 0])
    with pytest.raises(TypeError, match="random_bits: expected state"):
        run_program(random_bits.random_bits, [state], (4,), "float32")
    with pytest.raises(ValueError, match="random_bits: expected a dense out"):
        Prepared(
            lambda program, s, out: random_bits.random_bits(
                program, s, replace(out, shape=(2,), strides=(2,))
            ),
            [state],
            (4,),
            "int32",
        )
