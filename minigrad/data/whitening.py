"""Whitening of inputs by constants that were fitted once, on the training set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

from minigrad.creation import asarray, ones_like
from minigrad.data.eigen import eigh
from minigrad.data.moments import PooledMoments
from minigrad.dtype import float32, int64
from minigrad.execution.compute import evaluate
from minigrad.functions import max as max_of
from minigrad.functions import moveaxis, sqrt, where
from minigrad.tensor import Tensor

__all__ = ["Whitening"]

SEPARATE = ("mean", "zscore")  # each feature by itself
KINDS = (*SEPARATE, "rotate", "pca", "zca")


class Whitening:
    """Inputs with mean 0, and as far as asked with variance 1 and without correlation.

    With the mean, the variances v and the covariance U diag(v) U' of the rows x that it was fitted
    on, and z = x - mean:

        mean     z
        zscore   z / sqrt(v + eps)                  each feature by itself
        rotate   z U                                onto the principal axes, largest variance first
        pca      z U / sqrt(v + eps)
        zca      z U / sqrt(v + eps) U'             the closest to z of all that whiten

    A callable on batches, so a DataLoader takes it as (the last) transform.

    >>> import minigrad as mg
    >>> x = mg.tensor([[2.0, 0.0], [0.0, 1.0], [-2.0, 0.0], [0.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
    >>> white = mg.data.Whitening("zca", eps=0.0).fit([x])
    >>> [[round(v, 4) for v in row] for row in white(x)[:2].tolist()]
    [[1.6013, -0.3203], [-0.1601, 1.281]]

    Source: LeCun et al. 1998, "Efficient BackProp"; Bell & Sejnowski 1997 (ZCA).
    Shapes: x (N, *sample) -> the same; (N, components) for rotate and pca.
    Precision: fitted in float64, in one pass; applied in the dtype of x. Fitting all but mean and
        zscore takes time with the cube of the features: seconds for 400, minutes for 1000.

    Args:
        kind: one of the above.
        eps: added to a variance, in units of x squared, >= 0. What does not vary becomes 0.
        components: of rotate and pca: how many axes to keep; None: all.
        per: "feature": a row is a whole sample. "channel": a row is one pixel, its features the
            channels of x (N, C, *spatial); then "zscore" is the usual scaling of images.
    """

    def __init__(
        self,
        kind: str = "zca",
        eps: float = 1e-5,
        components: int | None = None,
        per: str = "feature",
    ):
        if kind not in KINDS or per not in ("feature", "channel"):
            raise ValueError(
                f"Whitening: expected kind of {', '.join(KINDS)} and per 'feature' or 'channel', "
                f"got {kind!r} and {per!r}."
            )
        if not eps >= 0:
            raise ValueError(f"Whitening.eps: expected a number >= 0, got {eps}.")
        if components is not None and (kind not in ("rotate", "pca") or components < 1):
            raise ValueError(
                f"Whitening.components: expected a number >= 1, and for rotate and pca alone, got "
                f"{components} for {kind!r}."
            )
        self.kind, self.eps, self.components, self.per = kind, eps, components, per
        self._state: dict[str, Tensor] = {}
        self._constants: dict[str, Tensor] = {}

    def fit(self, batches: Iterable[Any]) -> Self:
        """Take mean and covariance of all batches: tensors x, or tuples (x, ...) as of a loader.

        Raises:
            ValueError: no batch, or more components than features.
        """
        moments = PooledMoments(covariance=self.kind not in SEPARATE)
        shape: tuple[int, ...] = ()
        for batch in batches:
            x: Tensor = batch if isinstance(batch, Tensor) else batch[0]
            shape = x.shape[1:]
            moments.add(self._rows(x))
        if not moments.count:
            raise ValueError("Whitening.fit: expected at least one sample, got none.")
        features, kept = moments.mean.shape[0], self.components
        if kept is not None and kept > features:
            raise ValueError(f"Whitening.fit: expected {kept} features or more, got {features}.")
        state = {"mean": moments.mean, "variance": moments.variance}
        if moments.covariance:
            values, vectors = eigh(moments.variance)
            state |= {"variance": values[:kept], "vectors": vectors[:, :kept]}
        return self.load_state_dict({**state, "shape": asarray(list(shape), dtype=int64)})

    def __call__(self, x: Tensor) -> Tensor:
        """x whitened. The fitted numbers are constants: its gradient is that of a linear map.

        Raises:
            ValueError: x's samples have another shape than those that were fitted.
        """
        x = x if x.dtype.is_floating else x.astype(float32)
        fitted = tuple(self._state["shape"].tolist()) if "shape" in self._state else x.shape[1:]
        if self.per != "channel" and x.shape[1:] != fitted:
            raise ValueError(
                f"Whitening: expected samples of shape {fitted}, as those it was fitted on, got "
                f"{x.shape[1:]}."
            )
        rows = self._rows(x) - self._constant("mean", x)
        return self._unrows(_times(rows, self._constant("forward", x)), x)

    def inverse(self, y: Tensor) -> Tensor:
        """The x that became y; of reduced components, the nearest that the others allow."""
        rows = _times(self._rows(y), self._constant("inverse", y)) + self._constant("mean", y)
        if self.per == "channel":
            return self._unrows(rows, y)
        return rows.reshape((y.shape[0], *self._state["shape"].tolist()))

    def state_dict(self) -> dict[str, Tensor]:
        """What was fitted, for `mg.save`."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """Take what another Whitening of the same arguments was fitted to.

        Raises:
            ValueError: a name is missing or unexpected.
        """
        names = {"mean", "shape", "variance", *(() if self.kind in SEPARATE else ("vectors",))}
        if set(state) != names:
            raise ValueError(
                f"Whitening.load_state_dict: expected {', '.join(sorted(names))} for "
                f"{self.kind!r}, got {', '.join(sorted(state))}."
            )
        self._state = {name: asarray(value).detach() for name, value in state.items()}
        forward, inverse = self._maps()
        self._constants = {"mean": self._state["mean"], "forward": forward, "inverse": inverse}
        evaluate(*self._constants.values())
        return self

    def _maps(self) -> tuple[Tensor, Tensor]:
        """A and B of y = z A and z = y B; vectors, where each feature is by itself."""
        v, u = self._state["variance"], self._state.get("vectors")
        if u is None:  # equal numbers seem to vary a little, where their mean is rounded
            nothing = (self._state["mean"] * 2.0**-50) ** 2
        else:
            nothing = max_of(v) * (u.shape[0] * 2.0**-52)
        if self.kind in ("mean", "rotate"):
            gain = deviation = ones_like(v)
        else:
            deviation = sqrt(v + self.eps)
            gain = where(v <= nothing, 0.0, 1 / where(v <= nothing, 1.0, deviation))
        if u is None:
            return gain, deviation
        if self.kind == "zca":
            return (u * gain) @ u.T, (u * deviation) @ u.T
        return u * gain, (u * deviation).T

    def _constant(self, name: str, x: Tensor) -> Tensor:
        if not self._state:
            raise ValueError("Whitening: expected fit or load_state_dict before its use.")
        return self._constants[name].to(x.device).astype(x.dtype)

    def _rows(self, x: Tensor) -> Tensor:
        """(N, *sample) as one row for each sample, or for each pixel."""
        if x.ndim < 2:
            raise ValueError(f"Whitening: expected x of shape (N, features, ...), got {x.shape}.")
        if self.per == "channel":
            x = moveaxis(x, 1, -1)
            return x.reshape((-1, x.shape[-1]))
        return x.reshape((x.shape[0], -1))

    def _unrows(self, rows: Tensor, x: Tensor) -> Tensor:
        """Rows of `_rows(x)`, mapped, in the shape of x but for the number of features."""
        if self.per == "channel":
            return moveaxis(rows.reshape((x.shape[0], *x.shape[2:], -1)), -1, 1)
        return rows if self.kind in ("rotate", "pca") else rows.reshape(x.shape)

    def __repr__(self) -> str:
        of = f"components={self.components}, " if self.components is not None else ""
        return f"Whitening({self.kind!r}, eps={self.eps}, {of}per={self.per!r})"


def _times(rows: Tensor, a: Tensor) -> Tensor:
    return rows @ a if a.ndim == 2 else rows * a
