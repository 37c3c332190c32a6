"""Random numbers: the documented stream, distributions, seeding, replay, errors."""

from __future__ import annotations

import math

import pytest

import minigrad as mg
from minigrad.random import Generator

MASK = 2**32 - 1


def philox(counter, key):
    """Philox4x32-10 as published (Salmon et al. 2011), in plain Python."""
    c = [(counter >> 32 * i) & MASK for i in range(4)]
    k = [(key >> 32 * i) & MASK for i in range(2)]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & MASK, (a >> 32) ^ c[3] ^ k[1], a & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def signed(word):
    return word - 2**32 if word >= 2**31 else word


def words(seed, first_block, n):
    stream = [w for block in range(-(-n // 4)) for w in philox(first_block + block, seed)]
    return [signed(w) for w in stream[:n]]


def test_the_published_known_answer():
    assert philox(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_bits_follow_the_documented_layout(device):
    generator = Generator(7)
    assert generator.bits((2, 3), device).tolist() == [words(7, 0, 6)[:3], words(7, 0, 6)[3:]]
    assert generator.bits(5, device).tolist() == words(7, 2, 5)  # after two blocks
    assert generator.state(device).tolist() == [7, 4]


def test_floats_are_exact_functions_of_the_bits(device):
    u = mg.random.uniform(3, device=device, generator=Generator(1)).tolist()
    assert u == [((w + 2**31) >> 8) * 2.0**-24 for w in words(1, 0, 3)]
    u = mg.random.uniform(2, dtype="float64", device=device, generator=Generator(1)).tolist()
    w = words(1, 0, 4)
    expected = [
        (a + 2**31) * 2.0**-32 + (b & (2**21 - 1)) * 2.0**-53
        for a, b in ((w[0], w[1]), (w[2], w[3]))
    ]
    assert u == expected


def test_normal_is_box_muller_of_two_draws():
    z = mg.random.normal(3, dtype="float64", generator=Generator(5)).tolist()
    stream = Generator(5)
    u, v = (mg.random.uniform(3, dtype="float64", generator=stream).tolist() for _ in range(2))
    expected = [
        math.sqrt(-2 * math.log(1 - a)) * math.cos(2 * math.pi * b)
        for a, b in zip(u, v, strict=True)
    ]
    assert z == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moments_of_the_distributions(dtype):
    n = 40000
    u = mg.random.uniform(n, -2, 4, dtype, generator=Generator(0))
    assert u.dtype.name == dtype
    assert (u.min().item() >= -2, u.max().item() < 4) == (True, True)
    assert u.mean().item() == pytest.approx(1, abs=5 * math.sqrt(3 / n))
    assert u.var().item() == pytest.approx(3, rel=0.03)
    z = mg.random.normal(n, 3, 2, dtype, generator=Generator(0))
    assert z.mean().item() == pytest.approx(3, abs=5 * 2 / math.sqrt(n))
    assert z.var().item() == pytest.approx(4, rel=5 * math.sqrt(2 / n))
    cubes = mg.mean(((z - 3) / 2) ** 3).item()
    assert abs(cubes) < 5 * math.sqrt(15 / n)


def test_uniform_never_reaches_its_upper_end():
    """In float32, 1 + 2**-24 rounds to 1 and 16777216 + u to the next number."""
    u = mg.random.uniform(2000, 2.0**24, 2.0**24 + 2, generator=Generator(0))
    assert set(u.tolist()) <= {2.0**24}


@pytest.mark.parametrize(("dtype", "digits"), [(mg.float16, 11), (mg.bfloat16, 8)])
def test_halves_are_drawn_in_float32_and_cast(dtype, digits):
    """On a GPU that is not there: the graph of a draw, up to where the words come from."""
    place, drawn = mg.Device("cuda"), []

    class Words(Generator):
        def draw(self, shape, device):
            drawn.append(mg.graph.leaf(None, shape, mg.int32, device))
            return drawn[-1]

    words = Words()
    u = mg.random._unit((3,), dtype, place, words)
    assert u.dtype is mg.float32
    masks = [n.attrs["value"] for n in mg.graph.topological([u]) if n.op.name == "const"]
    assert -(2 ** (32 - digits)) in masks
    for draw in (mg.random.uniform, mg.random.normal):
        assert draw(3, dtype=dtype, device=place, generator=words).dtype is dtype
    assert mg.random.uniform(3, 2.0, 5.0, dtype, place, words).dtype is dtype
    p = mg.tensor_base.wrap(mg.graph.leaf(None, (3,), dtype, place))
    assert mg.random.bernoulli(3, p, generator=words).dtype is mg.bool
    assert len(drawn) == 6
    assert {w.shape for w in drawn} == {(3,)}


def test_randint():
    x = mg.random.randint(-3, 4, 7000, generator=Generator(1)).tolist()
    counts = [x.count(k) for k in range(-3, 4)]
    assert sum(counts) == 7000
    assert all(abs(c - 1000) < 5 * math.sqrt(1000) for c in counts)
    assert mg.random.randint(0, 256, 10, dtype="uint8").dtype is mg.uint8
    assert set(mg.random.randint(5, 6, 10).tolist()) == {5}


def test_bernoulli():
    x = mg.random.bernoulli(10000, 0.3, generator=Generator(1))
    assert x.dtype is mg.bool
    assert mg.sum(x).item() == pytest.approx(3000, abs=5 * math.sqrt(2100))
    assert set(mg.random.bernoulli(100, 0.0).tolist()) == {False}
    assert set(mg.random.bernoulli(100, 1.0).tolist()) == {True}
    p = mg.tensor([[0.0], [1.0]])
    rows = mg.random.bernoulli((2, 50), p, dtype="float32").tolist()
    assert (set(rows[0]), set(rows[1])) == ({0.0}, {1.0})


def test_permutation():
    p = mg.random.permutation(100, generator=Generator(4)).tolist()
    assert sorted(p) == list(range(100))
    assert p != list(range(100))
    assert p == mg.random.permutation(100, generator=Generator(4)).tolist()
    firsts = [mg.random.permutation(3, generator=Generator(s)).tolist()[0] for s in range(300)]
    assert all(abs(firsts.count(k) - 100) < 50 for k in range(3))
    assert mg.random.permutation(0).tolist() == []


def test_seed_begins_again():
    mg.random.seed(3)
    a = mg.random.uniform(5).tolist()
    b = mg.random.uniform(5).tolist()
    mg.random.seed(3)
    assert (mg.random.uniform(5).tolist(), mg.random.uniform(5).tolist()) == (a, b)
    assert a != b
    mg.random.seed(4)
    assert mg.random.uniform(5).tolist() != a
    mg.random.seed(0)


def test_any_integer_is_a_seed():
    assert Generator(-1).bits(4).tolist() == Generator(2**64 - 1).bits(4).tolist()
    assert Generator(-1).bits(4).tolist() == words(2**64 - 1, 0, 4)


def test_state_can_be_put_back():
    generator = Generator(9)
    mg.random.uniform(10, generator=generator)
    before = generator.state().detach()
    a = mg.random.normal(4, generator=generator).tolist()
    generator.state().assign(before)
    assert mg.random.normal(4, generator=generator).tolist() == a


def test_a_draw_does_not_look_at_the_state(monkeypatch):
    """On a GPU, it would wait for the device."""
    generator = mg.random.Generator(3)
    looked = []
    read = mg.random._read
    monkeypatch.setattr(mg.random, "_read", lambda node: looked.append(node) or read(node))
    draws = [generator.bits((5,)) for _ in range(3)]
    generator.seed(3)
    assert generator.bits((5,)).tolist() == draws[0].tolist()
    assert not looked
    generator.state().assign(mg.tensor([3, 2]))
    assert generator.bits((5,)).tolist() == draws[1].tolist()
    assert len(looked) == 1


def test_draws_do_not_pile_up():
    generator = Generator(0)
    for _ in range(100):
        mg.random.uniform(4, generator=generator)
    assert generator.state().node.inputs == ()


def test_a_compiled_step_draws_new_numbers_each_time():
    generator = Generator(2)

    @mg.compile
    def draw(x):
        return x + mg.random.uniform(6, generator=generator)

    seen = [draw(mg.zeros(6)).tolist() for _ in range(4)]
    plain = Generator(2)
    assert seen == [mg.random.uniform(6, generator=plain).tolist() for _ in range(4)]


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match="expected an integer seed, got float"):
        Generator(1.5)
    with pytest.raises(TypeError, match="uniform: expected a floating dtype, got int32"):
        mg.random.uniform(3, dtype="int32")
    with pytest.raises(ValueError, match="normal: expected std of 0 or more, got -1"):
        mg.random.normal(3, std=-1)
    with pytest.raises(ValueError, match=r"randint: expected low < high.* got 3 and 3"):
        mg.random.randint(3, 3)
    with pytest.raises(TypeError, match="randint: expected an integer dtype, got float32"):
        mg.random.randint(0, 3, dtype="float32")
    with pytest.raises(ValueError, match=r"bernoulli: expected p in \[0, 1\], got 2"):
        mg.random.bernoulli(3, 2)
    with pytest.raises(ValueError, match="expected extents of 0 or more"):
        mg.random.uniform(-1)
    with pytest.raises(ValueError, match="uniform: expected low <= high, got 1 and 0"):
        mg.random.uniform(3, 1, 0)
