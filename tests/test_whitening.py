"""Whitening of inputs against mpmath, its properties, its files; eigenvalues; merged moments."""

from __future__ import annotations

import itertools

import mpmath
import pytest

import minigrad as mg
from minigrad.data import DataLoader, PooledMoments, TensorDataset, Whitening
from minigrad.data.eigen import eigh

GOLDEN = [[2.0, 0], [0, 1], [-2, 0], [0, -1], [1, 1], [-1, -1]]


def normal(*shape, seed=0, dtype="float64"):
    return mg.random.normal(shape, dtype=dtype, generator=mg.random.Generator(seed))


def correlated(n, d, seed=0, device=None):
    """Rows with means, scales and correlations of their own."""
    x = normal(n, d, seed=seed) @ normal(d, d, seed=seed + 1) + 3 * normal(d, seed=seed + 2)
    return x.to(device) if device else x


def covariance(x):
    z = x - mg.mean(x, axis=0)
    return z.T @ z / x.shape[0]


def worst(a, b):
    return mg.max(mg.abs(a - b)).item()


# Eigenvalues.


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 12])
def test_eigenvalues_against_mpmath(n, device):
    half = normal(n, n + 2, seed=n)
    matrix = (half @ half.T).to(device)
    values, vectors = eigh(matrix)
    expected = sorted(mpmath.eigsy(mpmath.matrix(matrix.tolist()), eigvals_only=True), reverse=True)
    assert values.tolist() == pytest.approx([float(v) for v in expected], rel=1e-12)
    assert worst((vectors * values) @ vectors.T, matrix) < 1e-13 * values[0].item()
    assert worst(vectors.T @ vectors, mg.eye(n, dtype="float64", device=device)) < 1e-14 * n


def test_eigenvalues_of_special_matrices():
    for matrix in ([[0.0, 0], [0, 0]], [[2.0, 0], [0, 2]], [[0.0, 1], [1, 0]], [[1.0, 1], [1, 1]]):
        m = mg.tensor(matrix, dtype="float64")
        values, vectors = eigh(m)
        assert worst((vectors * values) @ vectors.T, m) < 1e-15
    assert eigh(mg.tensor([[0.0, 1], [1, 0]]))[0].tolist() == pytest.approx([1, -1], abs=1e-15)


def test_eigenvalues_need_a_square():
    with pytest.raises(ValueError, match=r"eigh: expected a square matrix, got shape \(2, 3\)"):
        eigh(mg.zeros((2, 3)))


# Moments.


@pytest.mark.parametrize("full", [False, True])
def test_moments_of_uneven_batches_are_those_of_all(full):
    x = 1e6 + normal(23, 4)
    pooled = PooledMoments(full)
    for start, stop in itertools.pairwise((0, 1, 6, 6, 20, 23)):
        pooled.add(x[start:stop])
    expected = covariance(x) if full else mg.var(x, axis=0)
    assert pooled.count == 23
    assert worst(pooled.mean, mg.mean(x, axis=0)) < 1e-9
    assert worst(pooled.variance, expected) < 1e-9


def test_moments_of_batches_that_are_not_alike():
    pooled = PooledMoments()
    for batch in ([1, 3, 5, 7], [2, 2, 4, 8], [0, 1, 0, 3]):
        pooled.add(mg.tensor([[float(v)] for v in batch]))
    assert pooled.mean.tolist() == pytest.approx([3])
    assert pooled.variance.tolist() == pytest.approx([37 / 6])
    with pytest.raises(ValueError, match=r"expected rows of shape \(n, 1\), got \(2, 3\)"):
        pooled.add(mg.zeros((2, 3)))


# Whitening.


def by_definition(kind, x, eps):
    """Computed with 40 digits; with the principal axes of largest first component > 0."""
    with mpmath.workdps(40):
        rows, (n, d) = x.tolist(), x.shape
        mean = [mpmath.fsum(r[j] for r in rows) / n for j in range(d)]
        z = mpmath.matrix([[v - m for v, m in zip(r, mean, strict=True)] for r in rows])
        cov = z.T * z / n
        if kind == "mean":
            return z.tolist()
        if kind == "zscore":
            return (z * mpmath.diag([1 / mpmath.sqrt(cov[j, j] + eps) for j in range(d)])).tolist()
        values, u = mpmath.eigsy(cov)
        order = sorted(range(d), key=lambda k: -values[k])
        u = mpmath.matrix([[u[i, k] for k in order] for i in range(d)])
        gain = mpmath.diag([1 / mpmath.sqrt(values[k] + eps) for k in order])
        return {"rotate": z * u, "pca": z * u * gain, "zca": z * u * gain * u.T}[kind].tolist()


def aligned(y, expected):
    """y with the sign of each column as in `expected`: a principal axis has none."""
    return y * mg.where(mg.sum(y * expected, axis=0) < 0, -1.0, 1.0)


@pytest.mark.parametrize("kind", ["mean", "zscore", "rotate", "pca", "zca"])
def test_against_the_definition(kind, device):
    x = correlated(30, 5, device=device)
    white = Whitening(kind, eps=0.01).fit([x[:13], (x[13:], None)])
    expected = [[float(v) for v in row] for row in by_definition(kind, x, 0.01)]
    expected = mg.tensor(expected, dtype="float64", device=device)
    y = white(x)
    y = aligned(y, expected) if kind in ("rotate", "pca") else y
    assert worst(y, expected) < 1e-11
    assert worst(white.inverse(white(x)), x) < 1e-11


def test_golden_matrix():
    white = Whitening("zca", eps=0.0).fit([mg.tensor(GOLDEN, dtype="float64")])
    rows = white(mg.eye(2, dtype="float64")).tolist()
    assert rows[0] == pytest.approx([0.800640769, -0.1601281538], abs=1e-10)
    assert rows[1] == pytest.approx([-0.1601281538, 1.2810252304], abs=1e-10)


@pytest.mark.parametrize("kind", ["rotate", "pca", "zca"])
def test_covariances(kind):
    x, eps = correlated(40, 4), 0.5
    values, u = eigh(covariance(x))
    diagonal = mg.eye(4, dtype="float64")
    expected = {
        "rotate": diagonal * values,
        "pca": diagonal * (values / (values + eps)),
        "zca": (u * (values / (values + eps))) @ u.T,
    }[kind]
    assert worst(covariance(Whitening(kind, eps).fit([x])(x)), expected) < 1e-12


def test_zca_is_the_closest_map_that_whitens():
    x = correlated(40, 4)
    z = x - mg.mean(x, axis=0)
    distance = {k: mg.sum((Whitening(k, 0.0).fit([x])(x) - z) ** 2).item() for k in ("pca", "zca")}
    assert distance["zca"] < distance["pca"]


def test_zca_of_uncorrelated_features_is_the_zscore():
    x = mg.tensor([[1.0, 5], [-1, 5], [1, -5], [-1, -5]], dtype="float64") + 3
    assert worst(Whitening("zca").fit([x])(x), Whitening("zscore").fit([x])(x)) < 1e-15


def test_fewer_components():
    x = correlated(40, 5)
    full, part = Whitening("pca").fit([x]), Whitening("pca", components=2).fit([x])
    assert part(x).shape == (40, 2)
    assert worst(part(x), full(x)[:, :2]) < 1e-12
    back = part.inverse(part(x))
    assert back.shape == x.shape
    lost = mg.sum((back - x) ** 2).item() / 40
    assert lost == pytest.approx(mg.sum(eigh(covariance(x))[0][2:]).item(), rel=1e-3)  # eps


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_what_does_not_vary_comes_out_as_zero(kind):
    x = correlated(4, 9)  # 3 dimensions at most
    y = Whitening(kind, eps=0.0).fit([x])(x)
    values = eigh(covariance(y))[0].tolist()
    assert values == pytest.approx([1.0] * 3 + [0.0] * 6, abs=1e-9)


def test_a_constant_feature_has_zscore_zero():
    x = mg.concat([normal(7, 2), mg.full((7, 1), 0.1, dtype="float64")], axis=1)
    for eps in (0.0, 1e-5):
        y = Whitening("zscore", eps).fit([x[:3], x[3:]])(x)
        assert mg.abs(y[:, 2]).tolist() == pytest.approx([0.0] * 7, abs=1e-12)


def test_channels_of_images():
    x = 2 + 3 * normal(6, 3, 4, 5)
    y = Whitening("zscore", eps=0.0, per="channel").fit([x])(x)
    assert y.shape == x.shape
    assert worst(mg.mean(y, axis=(0, 2, 3)), mg.zeros((3,), dtype="float64")) < 1e-14
    assert worst(mg.var(y, axis=(0, 2, 3)), mg.ones((3,), dtype="float64")) < 1e-14
    colours = Whitening("pca", per="channel", components=2).fit([x])
    assert colours(x).shape == (6, 2, 4, 5)
    assert colours.inverse(colours(x)).shape == x.shape


def test_samples_keep_their_shape():
    x = normal(9, 2, 3, 2)
    for kind in ("mean", "zscore", "zca"):
        assert Whitening(kind).fit([x])(x).shape == x.shape
    pca = Whitening("pca", components=3).fit([x])
    assert pca(x).shape == (9, 3)
    assert pca.inverse(pca(x)).shape == x.shape


def test_gradient_is_that_of_a_linear_map():
    white = Whitening("zca").fit([correlated(20, 3)])
    mg.gradcheck(white, normal(4, 3), order=2)


def test_in_a_loader():
    data = TensorDataset(correlated(50, 3).astype("float32"), [0] * 50)
    plain = DataLoader(data, batch_size=16)
    white = Whitening("zca", eps=0.0).fit(plain)
    rows = mg.concat([x for x, _ in DataLoader(data, batch_size=7, transform=white)])
    assert rows.dtype is mg.float32
    assert worst(covariance(rows), mg.eye(3)) < 1e-5
    assert repr(white) == "Whitening('zca', eps=0.0, per='feature')"


@pytest.mark.parametrize("kind", ["zscore", "pca"])
def test_state_goes_through_a_file(kind, tmp_path):
    x = correlated(20, 4).reshape((20, 2, 2))
    fitted = Whitening(kind).fit([x])
    mg.save(tmp_path / "white.safetensors", fitted.state_dict())
    again = Whitening(kind).load_state_dict(mg.load(tmp_path / "white.safetensors"))
    assert again(x).tolist() == fitted(x).tolist()
    assert again.inverse(again(x)).tolist() == fitted.inverse(fitted(x)).tolist()


def test_messages():
    with pytest.raises(ValueError, match=r"expected kind of mean, zscore, .* got 'sphere'"):
        Whitening("sphere")
    with pytest.raises(ValueError, match=r"Whitening\.eps: expected a number >= 0, got -1"):
        Whitening(eps=-1)
    with pytest.raises(ValueError, match="for rotate and pca alone, got 2 for 'zca'"):
        Whitening(components=2)
    with pytest.raises(ValueError, match="expected 5 features or more, got 3"):
        Whitening("pca", components=5).fit([normal(4, 3)])
    with pytest.raises(ValueError, match="expected at least one sample, got none"):
        Whitening().fit([])
    with pytest.raises(ValueError, match="expected fit or load_state_dict"):
        Whitening()(normal(4, 3))
    with pytest.raises(ValueError, match=r"expected x of shape \(N, features, ...\), got \(4,\)"):
        Whitening().fit([normal(4)])
    with pytest.raises(
        ValueError, match="expected mean, shape, variance, vectors for 'zca', got a"
    ):
        Whitening().load_state_dict({"a": normal(1)})


def test_integers_are_whitened_as_floats():
    x = mg.tensor([[0, 10], [255, 30], [17, 20]], dtype="uint8")
    whitening = Whitening("zscore").fit([x])
    y = whitening(x)
    assert y.dtype == mg.float32
    assert y.tolist() == whitening(x.astype("float32")).tolist()
    with pytest.raises(ValueError, match=r"samples of shape \(2,\), .* got \(3,\)"):
        whitening(mg.ones((4, 3)))
