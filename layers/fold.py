"""Batch normalization of inference, merged into the layer before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import minigrad as mg
from layers.activation import Identity
from layers.container import Flatten, Sequential
from layers.conv import Conv2d
from layers.dropout import Dropout
from layers.linear import Linear
from layers.module import Module, Parameter
from layers.norm import BatchNorm
from minigrad import Tensor

__all__ = ["fold_batch_norm"]


_PASS_ON = (Identity, Dropout)  # in inference mode they give what they are given


class _Call(NamedTuple):
    """A layer's turn in a forward pass, and the layer whose output it was given, if any."""

    module: Module
    source: Module | None


def fold_batch_norm(
    model: Module,
    input_shape: tuple[int, ...] | None = None,
    strict: bool = True,
    explain: bool = False,
) -> Module:
    """Merge each `BatchNorm` of a model in inference mode into the layer before it.

        y = scale * (W x + b - running_mean) + bias
          = (scale * W) x + (scale * (b - running_mean) + bias)
        scale = weight / sqrt(running_var + eps), one number for each output channel

    The batch norm becomes an `Identity`. The model is changed in place and returned; in inference
    mode its outputs stay equal to rounding.

    Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2.

    Args:
        input_shape: of an input, batch included; a forward pass then shows what follows what, and
            a second one that the outputs are the same. Without it only `Sequential` is understood.
        strict: raise if a batch norm cannot be folded; False folds those that can be.
        explain: print for each fold its derivation and a bound on the difference in float32.

    Raises:
        ValueError: with the reason for each batch norm that cannot be folded, such as training
            mode, an activation or nothing before it, a convolution that is used twice. Nothing is
            changed then.
    """
    x = None if input_shape is None else _input(model, input_shape)
    calls = _chained(model) if x is None else _traced(model, x)
    names = {id(m): name for name, m in model.named_modules()}
    folds: list[tuple[Conv2d | Linear, BatchNorm]] = []
    refused: list[str] = []
    for norm in [m for m in model.modules() if isinstance(m, BatchNorm)]:
        layer = _layer_before(norm, calls, model, x is not None)
        if isinstance(layer, str):
            refused.append(f"\n  {names[id(norm)]}: {layer}")
        else:
            folds.append((layer, norm))
    if refused and strict:
        raise ValueError(
            f"fold_batch_norm: expected batch norms that can be merged into the layer before, got "
            f"{len(refused)} that cannot. strict=False folds the others.{''.join(refused)}"
        )
    before = None if x is None else model(x)
    if explain:
        for layer, norm in folds:
            print(f"{names[id(layer)]} + {names[id(norm)]}:\n{_explanation(layer, norm)}")  # noqa: T201
    undo = [_merge(model, layer, norm) for layer, norm in folds]
    if x is not None and before is not None:
        change = _relative_difference(model(x), before)
        if not change < 1e-3:
            for restore in reversed(undo):
                restore()
            raise ValueError(
                f"fold_batch_norm: expected the outputs of before, got a relative difference of "
                f"{change:.1g}: the output of a convolution is used outside of its batch norm, "
                f"too. Nothing was changed."
            )
    return model


def _chained(model: Module) -> list[_Call]:
    """What follows what in a model that is a `Sequential`; of others nothing is known."""
    calls: list[_Call] = []
    if isinstance(model, Sequential):
        _follow(model, None, calls)
    return calls


def _follow(chain: Sequential, before: Module | None, calls: list[_Call]) -> Module | None:
    """Append the calls of a chain; the layer that its output comes from."""
    for module in chain.children():
        if isinstance(module, Sequential):
            before = _follow(module, before, calls)
        else:
            calls.append(_Call(module, before))
            before = before if isinstance(module, _PASS_ON) else module  # pass their input on
    return before


def _traced(model: Module, x: Tensor) -> list[_Call]:
    """What follows what in a forward pass: a layer follows another if its input has those values.

    Values and not tensors are compared, since a model may reshape what one layer hands the next.
    """
    turns: list[tuple[Module, Tensor, Tensor]] = []

    def note(module: Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            turns.append((module, args[0], output))

    hooks = [m.register_forward_hook(note) for m in model.modules() if not list(m.children())]
    try:
        mg.evaluate(model(x))
    finally:
        for hook in hooks:
            hook.remove()
    calls: list[_Call] = []
    for i, (module, given, _) in enumerate(turns):
        # The first is taken: what a dropout or an identity passes on is the output of both.
        makers = (m for m, _, made in turns[:i] if given is made or _equal(given, made))
        calls.append(_Call(module, next(makers, None)))
    return calls


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.size == b.size and bool(mg.all(a.flatten() == b.flatten()).item())


def _input(model: Module, shape: tuple[int, ...]) -> Tensor:
    """Random numbers, always the same, of the model's type and on its device.

    16 samples at least, of sizes from 0.01 to 1000: among few numbers, or small ones, an activation
    may change none.
    """
    like = next(iter(model.parameters()))
    shape = (max(shape[0], 16), *shape[1:])
    x = mg.random.normal(shape, device=like.device, generator=mg.random.Generator(0))
    n = x.shape[0]
    sizes = mg.tensor([10 ** (5 * i / (n - 1) - 2) for i in range(n)], device=like.device)
    return (x * sizes.reshape((n, *(1,) * (x.ndim - 1)))).astype(like.dtype)


def _layer_before(
    norm: BatchNorm, calls: list[_Call], model: Module, known: bool
) -> Conv2d | Linear | str:
    """The layer that can take a batch norm in, or why there is none."""
    if norm.training:
        return "it is in training mode; call model.eval()"
    if norm.running_mean is None:
        return "it has no running statistics, so each batch is normalized by its own"
    turns = [c for c in calls if c.module is norm]
    if not turns:
        return "what comes before it is not known; pass input_shape"
    if len(turns) > 1:
        return f"it is used {len(turns)} times"
    layer = turns[0].source
    if isinstance(layer, Linear) and not known and not _flattens_before(layer, calls):
        return (
            "a Linear comes before it, whose output may have more than two axes; pass input_shape"
        )
    if not isinstance(layer, Conv2d | Linear):
        what = "another computation" if layer is None else f"a {type(layer).__name__}"
        return (
            f"{what} comes before it, and no convolution or linear layer. (The layer behind it "
            f"cannot take it in: a convolution pads with zeros after the batch norm.)"
        )
    uses = sum(c.module is layer for c in calls)
    sharing = sum(value is layer.weight for m in model.modules() for value in vars(m).values())
    if uses > 1 or sharing > 1:
        return f"the {type(layer).__name__} before it is shared: used {max(uses, sharing)} times"
    readers = [c for c in calls if c.source is layer and not isinstance(c.module, _PASS_ON)]
    if len(readers) > 1:
        return f"the output of the {type(layer).__name__} before it is used elsewhere, too"
    if layer.weight.shape[0] != norm.num_features:
        return f"it does not normalize the {layer.weight.shape[0]} channels of the layer before it"
    return layer


def _flattens_before(layer: Linear, calls: list[_Call]) -> bool:
    """Whether a `Flatten` of all but the samples has left the layer's input two axes."""
    before = [c.module for c in calls[: [c.module for c in calls].index(layer)]]
    return any(isinstance(m, Flatten) and (m.start_dim, m.end_dim) == (1, -1) for m in before)


def _scale(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """What a batch norm of inference multiplies and shifts by: y = scale * x + shift; float64."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    scale = mg.rsqrt(var.astype(mg.float64) + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.astype(mg.float64)
    shift = -mean.astype(mg.float64) * scale
    return scale, shift if norm.bias is None else shift + norm.bias.astype(mg.float64)


def _merge(model: Module, layer: Conv2d | Linear, norm: BatchNorm) -> Callable[[], None]:
    """Change the layer's weight and bias, put an identity for the norm; gives what undoes it."""
    places = [(m, k) for m in model.modules() for k, v in vars(m).items() if v is norm]
    weight, bias = layer.weight.detach(), layer.bias
    with mg.no_grad():
        scale, shift = _scale(norm)
        if bias is not None:
            shift = shift + bias.astype(mg.float64) * scale
        axes = (weight.shape[0], *(1,) * (weight.ndim - 1))
        scaled = weight.astype(mg.float64) * scale.reshape(axes)
        layer.weight.assign(scaled.astype(weight.dtype))
        layer.bias = Parameter(shift.astype(weight.dtype), requires_grad=layer.weight.requires_grad)
    identity = Identity()
    for parent, name in places:
        setattr(parent, name, identity)

    def restore() -> None:
        layer.weight.assign(weight)
        layer.bias = bias
        for parent, name in places:
            setattr(parent, name, norm)

    return restore


def _relative_difference(a: Tensor, b: Tensor) -> float:
    return mg.max(mg.abs(a - b)).item() / max(mg.max(mg.abs(b)).item(), 1e-30)


def _explanation(layer: Conv2d | Linear, norm: BatchNorm) -> str:
    """The derivation of one fold, and a bound on its rounding.

    Both forms round each of their at most K + 6 steps by u = 2**-24, relative to the sum of the
    absolute values of what is added; K products are added for an output.
    """
    scale, shift = _scale(norm)
    weight = mg.abs(layer.weight.astype(mg.float64))
    sums = mg.sum(weight, axis=tuple(range(1, weight.ndim)))  # of |W|, for each channel
    offset = mg.abs(shift)
    if norm.running_mean is not None:
        offset += mg.abs(norm.running_mean.astype(mg.float64) * scale)
    if layer.bias is not None:
        offset += mg.abs(layer.bias.astype(mg.float64) * scale)
    products = layer.weight.size // layer.weight.shape[0]
    roundings = 2 * (products + 6) * 2.0**-24
    grows = mg.max(sums * mg.abs(scale)).item() * roundings
    fixed = mg.max(offset).item() * roundings
    return (
        "  y = scale * (W x + b - mean) + bias             scale = weight / sqrt(var + eps)\n"
        "    = scale * (W x) + scale * (b - mean) + bias   a factor multiplies each term of a sum\n"
        "    = (scale * W) x + (scale * (b - mean) + bias) W x is linear in W\n"
        f"  in float32 the outputs differ by at most {fixed:.1e} + {grows:.1e} * max|x|"
    )
