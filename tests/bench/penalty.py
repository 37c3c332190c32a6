"""What a gradient penalty costs with each normalization, beside the same network without one.

    python -m tests.bench penalty

The penalty needs the derivative of a derivative. A hand-written backward makes that expensive; a
derived one should not: the ratio of a penalized step to a plain one is the network's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import layers
import minigrad as mg
from layers.norm.registry import NORMALIZATIONS, norm_factory
from tests.bench.timing import median

ROUNDS = 7


def _critic(norm: layers.norm.NormFactory) -> layers.Module:
    """Three convolutions of 32 maps, each with the norm and tanh."""
    widths = [(3, 32), (32, 32), (32, 32)]
    return layers.Sequential(
        *[
            part
            for a, b in widths
            for part in (layers.Conv2d(a, b, 3, padding=1), norm(b), layers.Tanh())
        ]
    )


def _step(critic: layers.Module, penalized: bool) -> Callable[[], object]:
    """The loss and its gradients for 64 images; see `tests.bench.models.gradient_penalty`."""
    x = mg.random.normal((64, 3, 32, 32)).requires_grad_()
    parameters = list(critic.parameters())

    @mg.compile
    def step(x: mg.Tensor) -> list[mg.Tensor]:
        score = critic(x).mean(axis=(1, 2, 3))
        loss = score.mean()
        if penalized:
            (dx,) = mg.gradients([score.sum()], [x], create_graph=True)
            norm = mg.sqrt((dx * dx).sum(axis=(1, 2, 3)) + 1e-12)
            loss = loss + 10 * ((norm - 1) ** 2).mean()
        return [loss, *mg.gradients([loss], parameters)]

    return lambda: step(x)


def _seconds(step: Callable[[], object]) -> float:
    begin = time.perf_counter()
    step()
    mg.synchronize()
    return time.perf_counter() - begin


def penalty_costs() -> None:
    """Print a row for each normalization that has a name."""
    names = [None, *[row.name for row in NORMALIZATIONS if row.name]]
    plain_cost = 1.0
    print(
        f"{'gradient penalty: norm':32} {'plain ms':>9} {'penalized':>9} {'cost':>7}   beside none"
    )
    for name in names:
        critic = _critic(norm_factory(f"{name}:8" if name in ("group", "decorrelated") else name))
        steps = [_step(critic, penalized) for penalized in (False, True)]
        for step in steps * 3:  # record, compile, warm up
            step()
        rounds = [[_seconds(step) for step in steps] for _ in range(ROUNDS)]
        plain, penalized = (1e3 * median([r[k] for r in rounds]) for k in (0, 1))
        cost = median([r[1] / r[0] for r in rounds])
        plain_cost = cost if name is None else plain_cost
        print(
            f"{name or 'none':32} {plain:9.2f} {penalized:9.2f} {cost:6.2f}x   "
            f"{cost / plain_cost:.2f}",
            flush=True,
        )
