"""What a definition says as a whole: inputs, layers of each phase, and how blobs connect them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from layers.caffe.kinds import KINDS, LayerKind, Maker, Shape, decimal
from layers.caffe.text import Layer
from layers.module import Module

PHASES = ("TRAIN", "TEST")
# Layers that produce data: their tops are the inputs of the net. With some the file gives shapes.
DATA = ("Input", "DummyData", "MemoryData", "Data", "ImageData", "HDF5Data")
LABELLED = ("MemoryData", "Data", "ImageData")  # the second top is one label a sample


class Input(NamedTuple):
    """An input of a net."""

    shape: Shape | None  # None where only the data have it
    is_label: bool = False  # of shape (N,), N that of the first input


class LayerStep(NamedTuple):
    """A layer among the others: which blobs it reads and makes, and when."""

    name: str  # the layer's
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    phases: tuple[str, ...]
    loss_weights: tuple[float, ...]  # of the tops; all 0 but for losses
    blocked: tuple[bool, ...]  # for each bottom whether no gradient passes to it
    multipliers: tuple[tuple[float, float], ...]  # (lr_mult, decay_mult) of the first blobs


class LayerPlan(NamedTuple):
    """What a step is made from."""

    layer: Layer
    prepared: Module | Maker

    def module(self, *bottoms: Shape) -> Module:
        """The module for bottoms of these shapes."""
        made = self.prepared
        return made if isinstance(made, Module) else made(*bottoms)


def inputs_and_steps(
    net: Any, layers: list[Layer], stages: Iterable[str]
) -> tuple[dict[str, Input], list[tuple[LayerStep, LayerPlan]]]:
    """The inputs by name and the layers in the order of the file.

    Raises: ValueError that lists what is not supported, or for blobs that do not connect.
    """
    inputs = _legacy_inputs(net)
    steps: list[tuple[LayerStep, LayerPlan]] = []
    errors: list[str] = []
    active = {*stages, *net.state.stage}
    for layer in layers:
        try:
            phases = _phases(layer, net.state.level, active)
            if phases and layer.message.type in DATA:
                for name, found in _data(layer).items():
                    inputs.setdefault(name, found)
            elif phases:
                steps.append(_step(layer, phases))
        except ValueError as e:
            errors.append(str(e))
    if errors:
        raise ValueError("\n".join(errors))
    for phase in PHASES:
        _connect(phase, set(inputs), steps)
    return inputs, steps


def _legacy_inputs(net: Any) -> dict[str, Input]:
    """The fields `input`, `input_shape` and `input_dim` of the net itself."""
    shapes = [tuple(s.dim) for s in net.input_shape]
    dims = list(net.input_dim)
    shapes = shapes or [tuple(dims[i : i + 4]) for i in range(0, len(dims), 4)]
    fits = len(shapes) == len(net.input) and all(map(_is_shape, shapes)) and len(dims) % 4 == 0
    if shapes and not fits:
        raise ValueError(
            f"load_prototxt: expected for each of {len(net.input)} inputs one input_shape or four "
            f"input_dim, all positive, got {shapes}."
        )
    return {name: Input(shapes[i] if shapes else None) for i, name in enumerate(net.input)}


def _is_shape(shape: Shape) -> bool:
    return all(0 < n <= 1 << 24 for n in shape)


def _data(layer: Layer) -> dict[str, Input]:
    """The inputs that a layer of data stands for."""
    m, tops = layer.message, list(layer.message.top)
    shapes: list[Shape] = []
    if m.type == "Input":
        shapes = [tuple(s.dim) for s in m.input_param.shape]
    elif m.type == "DummyData":
        p = m.dummy_data_param
        shapes = [tuple(s.dim) for s in p.shape]
        shapes = shapes or list(zip(p.num, p.channels, p.height, p.width, strict=False))
    elif m.type == "MemoryData":
        p = m.memory_data_param
        shapes = [(p.batch_size, p.channels, p.height, p.width), (p.batch_size,)]
    if len(shapes) == 1:
        shapes = shapes * len(tops)
    if shapes and (len(shapes) < len(tops) or not all(map(_is_shape, shapes))):
        layer.fail("", f"expected one shape for each of {tops}, all positive, got {shapes}.")
    labelled = m.type in LABELLED
    return {
        name: Input(shapes[i] if shapes else None, labelled and i == 1)
        for i, name in enumerate(tops)
    }


def _phases(layer: Layer, level: int, stages: set[str]) -> tuple[str, ...]:
    """The phases in which a layer takes part, by its rules `include` or `exclude`."""
    m = layer.message
    if m.include and m.exclude:
        layer.fail("exclude", "expected include or exclude rules, got both.")

    def meets(rule: Any, phase: int) -> bool:
        return (
            (not rule.HasField("phase") or rule.phase == phase)
            and (not rule.HasField("min_level") or level >= rule.min_level)
            and (not rule.HasField("max_level") or level <= rule.max_level)
            and stages.issuperset(rule.stage)
            and stages.isdisjoint(rule.not_stage)
        )

    included = [
        any(meets(rule, i) for rule in m.include) if m.include
        else not any(meets(rule, i) for rule in m.exclude)
        for i in range(2)
    ]  # fmt: skip
    return tuple(phase for phase, inside in zip(PHASES, included, strict=True) if inside)


def _step(layer: Layer, phases: tuple[str, ...]) -> tuple[LayerStep, LayerPlan]:
    m = layer.message
    kind = KINDS.get(m.type)
    if kind is None:
        layer.fail(
            "type", f"expected a type of layer among {', '.join([*DATA, *KINDS])}, got {m.type!r}."
        )
    _check_counts(layer, kind)
    weights = [decimal(w) for w in m.loss_weight]
    if not weights:
        weights = [float(m.type.endswith("Loss"))]
    specs = [(decimal(s.lr_mult), decimal(s.decay_mult)) for s in m.param]
    if any(number < 0 for spec in specs for number in spec):
        layer.fail("param", f"expected multipliers of 0 or more, got {specs}.")
    step = LayerStep(
        name=m.name,
        bottoms=tuple(m.bottom),
        tops=tuple(m.top),
        phases=phases,
        loss_weights=tuple(weights),
        blocked=tuple(not p for p in m.propagate_down) or (False,) * len(m.bottom),
        multipliers=tuple(specs),
    )
    with layer.located():
        return step, LayerPlan(layer, kind.prepare(layer))


def _check_counts(layer: Layer, kind: LayerKind) -> None:
    m = layer.message
    for field, (least, most), count in (
        ("bottom", kind.bottoms, len(m.bottom)),
        ("top", kind.tops, len(m.top)),
        ("loss_weight", (0, len(m.top)), len(m.loss_weight)),
    ):
        if not least <= count <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            layer.fail(field, f"expected {wanted} of the field {field}, got {count}.")
    if len(m.propagate_down) not in (0, len(m.bottom)):
        layer.fail("propagate_down", "expected propagate_down once for each bottom.")


def _connect(phase: str, known: set[str], steps: list[tuple[LayerStep, LayerPlan]]) -> None:
    """Raise ValueError where a blob is read before it is made, or made twice."""
    for step, plan in steps:
        if phase not in step.phases:
            continue
        for name in step.bottoms:
            if name not in known:
                plan.layer.fail(
                    "bottom", f"expected a bottom made before, got {name!r} in phase {phase}."
                )
        for name in step.tops:
            if name in known and name not in step.bottoms:
                plan.layer.fail(
                    "top",
                    f"expected a top of a new name, or that of a bottom, got {name!r}, which "
                    f"another layer makes in phase {phase}.",
                )
            known.add(name)
