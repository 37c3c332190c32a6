"""A Caffe network as a module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import minigrad as mg
from layers.caffe.definition import PHASES, Input, LayerPlan, LayerStep, inputs_and_steps
from layers.caffe.text import read
from layers.module import Buffer, IncompatibleKeys, Module, Parameter
from minigrad import Tensor

__all__ = ["Net", "load_prototxt"]

Shape = tuple[int, ...]
Values = dict[str, Tensor]


class Net(Module):
    """The layers of a Caffe network, connected by the names of their blobs.

    `net(*inputs)` runs them in the order of the file. With losses among them it returns what
    Caffe's solver minimizes, the sum of all tops times their loss_weight; else the output: the blob
    that no other layer reads, or a dict of them if there are several.
    `net(*inputs, blobs=["prob"])` returns a dict of the blobs that are named instead.

    Training is Caffe's phase TRAIN and eval its phase TEST, each with its own layers and with
    parameters in common. Inputs may be left out from the last on: then the layers that need them,
    losses and accuracy, do not run.

    Each layer is an attribute of its own name, which `summary` and the state dict show, too:
    `getattr(net, "conv1")`. A name that a module has already, as "forward", gets "_" behind it.

    Args:
        inputs: by name, in the order of the call.
        steps: the layers. They are made when the shapes of the inputs are known: from the file,
            from `build`, or from the first call.
    """

    def __init__(self, inputs: dict[str, Input], steps: Sequence[tuple[LayerStep, LayerPlan]]):
        self.inputs = tuple(inputs)
        self._shapes = tuple(inputs.values())
        self._steps = tuple(step for step, _ in steps)
        self._plans = tuple(plan for _, plan in steps)  # empty once the layers are made
        self._names: tuple[str, ...] = ()
        self._names = tuple(self._attributes())

    def forward(self, *inputs: Tensor, blobs: Sequence[str] | None = None) -> Any:
        if len(inputs) > len(self.inputs):
            raise ValueError(f"Net: expected inputs {self.inputs}, got {len(inputs)} of them.")
        values: Values = dict(zip(self.inputs, inputs, strict=False))
        self.build({name: x.shape for name, x in values.items()})
        objective: Tensor | None = None
        unread: dict[str, None] = {}
        for step, name in self._active("TRAIN" if self.training else "TEST"):
            if all(b in values for b in step.bottoms):
                _run(step, getattr(self, name), values)
                for b in step.bottoms:
                    unread.pop(b, None)
                unread.update(dict.fromkeys(step.tops))
                objective = _with_losses(objective, step, values)
        if blobs is not None:
            return {name: self._blob(name, values) for name in blobs}
        if objective is not None:
            return objective
        outputs = {name: values[name] for name in unread}
        return outputs if len(outputs) != 1 else outputs.popitem()[1]

    def build(self, shapes: Mapping[str, Shape]) -> None:
        """Make the layers for inputs of these shapes, else those of the file; once.

        Raises: ValueError for a shape that is missing, or a layer that does not fit its bottoms.
        """
        if not self._plans:
            return
        full = self._all_shapes(shapes)
        made: dict[str, Module] = {}
        plans = dict(zip(self._names, self._plans, strict=True))
        with mg.no_grad():
            for phase in PHASES:
                values = {name: mg.zeros(shape) for name, shape in full.items()}
                for step, name in self._active(phase):
                    with plans[name].layer.located():
                        if name not in made:
                            bottoms = [values[b].shape for b in step.bottoms]
                            made[name] = plans[name].module(*bottoms).eval()
                        _run(step, made[name], values)
        self._plans = ()
        for name, module in made.items():
            setattr(self, name, module.train(self.training))
        self._share()
        self._freeze()

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups for an optimizer, by the lr_mult and decay_mult of the definition.

        Parameters with lr_mult 0 are frozen and in no group.
        """
        groups: dict[tuple[float, float], list[Parameter]] = {}
        seen: set[int] = set()
        for blob, multipliers in self._specified():
            if blob.requires_grad and id(blob) not in seen:
                seen.add(id(blob))
                groups.setdefault(multipliers, []).append(blob)
        return [
            {"params": params, "lr_mult": lr_mult, "decay_mult": decay_mult}
            for (lr_mult, decay_mult), params in groups.items()
        ]

    def load_blobs(
        self, blobs: Mapping[str, Sequence[Tensor]], strict: bool = True
    ) -> IncompatibleKeys:
        """Take weights and statistics by the names of the layers, as from `load_caffemodel`.

        Args:
            blobs: the blobs of each layer.
            strict: whether missing and unexpected layers are errors.

        Raises: ValueError for those, and for blobs of other shapes; then nothing is changed.
        """
        state: dict[str, Tensor] = {}
        for layer, values in blobs.items():
            name = next((n for s, n in self._active() if s.name == layer), layer)
            own = _blobs(getattr(self, name)) if name in self._names else []
            for i, value in enumerate(values):
                key, fitted = str(i), value
                if i < len(own):
                    key, fitted = own[i][0], _fitted(value, own[i][1].shape)
                state[f"{name}.{key}"] = fitted
        return self.load_state_dict(state, strict)

    def summary(self, input_shape: Shape) -> str:
        """The table of `Module.summary`; `input_shape` is that of the first input."""
        self.build({self.inputs[0]: input_shape})
        return super().summary(input_shape)

    def _named_tensors(self, kind: Any) -> Iterator[tuple[str, Any]]:
        if self._plans:
            missing = [n for n, i in zip(self.inputs, self._shapes, strict=True) if not i.shape]
            raise ValueError(
                f"Net: expected the shapes of its inputs before its parameters are asked for, got "
                f"none for {', '.join(missing)}. Pass shapes={{{missing[0]!r}: (N, C, H, W)}} to "
                f"load_prototxt, or call the net once."
            )
        return super()._named_tensors(kind)

    def _attributes(self) -> Iterator[str]:
        """For each step the name of the attribute that holds its layer."""
        taken: set[str] = set()
        for i, step in enumerate(self._steps):
            name = step.name or f"layer{i}"
            while hasattr(self, name) or name in taken:
                name += "_"
            taken.add(name)
            yield name

    def _active(self, phase: str | None = None) -> Iterator[tuple[LayerStep, str]]:
        """The steps of a phase, or of both, each with its attribute."""
        for step, name in zip(self._steps, self._names, strict=True):
            if phase is None or phase in step.phases:
                yield step, name

    def _all_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        full: dict[str, Shape] = {}
        for name, of_file in zip(self.inputs, self._shapes, strict=True):
            shape = shapes.get(name, of_file.shape)
            if name not in shapes and of_file.is_label and full:
                shape = next(iter(full.values()))[:1]  # one label a sample
            if shape is None:
                raise ValueError(
                    f"load_prototxt: expected the shape of input {name!r}, which the data have and "
                    f"the file has not, got none. Pass shapes={{{name!r}: (N, C, H, W)}}."
                )
            full[name] = tuple(shape)
        return full

    def _blob(self, name: str, values: Values) -> Tensor:
        if name not in values:
            raise ValueError(
                f"Net: expected the name of a blob that was made, got {name!r}. There are "
                f"{', '.join(values)}."
            )
        return values[name]

    def _share(self) -> None:
        """Give layers of one name in different phases the same blobs, as Caffe does."""
        first: dict[str, tuple[LayerStep, Module]] = {}
        for step, name in self._active():
            module = getattr(self, name)
            other, owner = first.setdefault(step.name, (step, module))
            if set(other.phases).isdisjoint(step.phases):
                for (key, blob), (_, own) in zip(_blobs(owner), _blobs(module), strict=False):
                    if blob.shape == own.shape:
                        setattr(module, key, blob)

    def _freeze(self) -> None:
        for blob, (lr_mult, _) in self._specified():
            if lr_mult == 0:
                blob.requires_grad_(False)

    def _specified(self) -> Iterator[tuple[Parameter, tuple[float, float]]]:
        """Each parameter with its lr_mult and decay_mult, which are 1 where nothing is said."""
        if self._plans:
            list(self.parameters())  # says what is missing
        for step, name in self._active():
            for i, (_, blob) in enumerate(_blobs(getattr(self, name))):
                if isinstance(blob, Parameter):
                    yield blob, step.multipliers[i] if i < len(step.multipliers) else (1.0, 1.0)


def load_prototxt(
    path: str | Path, shapes: Mapping[str, Shape] | None = None, stages: Iterable[str] = ()
) -> Net:
    """The network of a Caffe definition, in text format: a train_val or a deploy file.

    Parameters get the values of the definition's fillers; one without a filler is 0, as in Caffe.

    Args:
        path: a file; nothing in it is executed, and no other file is opened.
        shapes: of inputs (N, C, H, W), by name, where the file does not give them (it does not if
            they come from a database) or others are wanted. Without them the layers are made at
            the first call.
        stages: names that the definition's include and exclude rules ask for.

    Raises:
        ValueError: what is not supported, each with its line and layer.
        ImportError: the package protobuf is not installed.
    """
    message, layers = read(path)
    inputs, steps = inputs_and_steps(message, layers, stages)
    net = Net(inputs, steps)
    unknown = [name for name in shapes or () if name not in inputs]
    if unknown:
        raise ValueError(
            f"load_prototxt: expected shapes of inputs among {', '.join(inputs)}, got {unknown}."
        )
    if shapes or all(i.shape or i.is_label for i in inputs.values()):
        net.build(shapes or {})
    return net


def _run(step: LayerStep, module: Module, values: Values) -> None:
    """Let a layer make its tops."""
    bottoms = [
        mg.stop_gradient(values[b]) if blocked else values[b]
        for b, blocked in zip(step.bottoms, step.blocked, strict=True)
    ]
    y = module(*bottoms)
    tops = cast("tuple[Tensor, ...]", y if isinstance(y, tuple) else (y,))
    values.update(zip(step.tops, tops, strict=True))


def _with_losses(objective: Tensor | None, step: LayerStep, values: Values) -> Tensor | None:
    """The objective and the step's tops, each times its loss_weight."""
    for top, weight in zip(step.tops, step.loss_weights, strict=False):
        if weight:
            term = weight * mg.sum(values[top])
            objective = term if objective is None else objective + term
    return objective


def _blobs(module: Module) -> list[tuple[str, Parameter | Buffer]]:
    """A layer's blobs in Caffe's order, which is that of its attributes, with their names."""
    return [(n, t) for n, t in vars(module).items() if isinstance(t, Parameter | Buffer)]


def _fitted(value: Tensor, shape: Shape) -> Tensor:
    """A blob in a shape that says the same: old files have four axes, the first of extent 1."""

    def essential(s: Shape) -> Shape:
        return s[next((i for i, n in enumerate(s) if n != 1), len(s)) :]

    return value.reshape(shape) if essential(value.shape) == essential(shape) else value
