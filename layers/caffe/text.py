"""Reading a definition in protobuf's text format, within bounds and with the line of each field."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from layers.caffe.schema import enum_values, message_class

LARGEST_FILE = 2 << 20  # bytes; the definition of ResNet-152 has 0.1 MiB
MOST_LAYERS = 10_000
DEEPEST = 8  # messages within messages; Caffe's own are four deep
RENAMED = {  # types of layers whose old names are not the new ones in capitals
    "ABSVAL": "AbsVal",
    "BNLL": "BNLL",
    "HDF5_DATA": "HDF5Data",
    "LRN": "LRN",
    "MVN": "MVN",
    "RELU": "ReLU",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
}
# What may stand behind a colon, beside numbers and text in quotes; the longest first.
VALUES = "|".join(sorted({"true", "false", *enum_values()}, key=len, reverse=True))
SYMBOL = re.compile(
    rf"""(?P<glued>:[ \t]*(?:{VALUES})(?=[A-Za-z_]\w*\s*[:{{<]))"""
    r"""
      | (?P<string>"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?)
      | (?P<comment>\#[^\n]*)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<number>0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?:[fF]\b)?)
      | (?P<mark>\S)
      | (?P<line>\n)""",
    re.VERBOSE,
)


class Layer(NamedTuple):
    """One `layer { ... }` of a definition, and the lines of the file that its fields stand in."""

    message: Any
    lines: dict[str, int]  # "pooling_param.pool" -> line; "" is the layer's own
    file: str

    def fail(self, field: str, text: str) -> NoReturn:
        """Raise ValueError that `text` says, about a field of this layer.

        Args:
            field: dotted; where the file does not mention it, the line is that of what holds it.
            text: "expected ..., got ....", and what to do.
        """
        parts = field.split(".")
        within = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        line = next((self.lines[f] for f in [*within, ""] if f in self.lines), 0)
        raise ValueError(
            f"load_prototxt: {self.file}, line {line}, layer {self.message.name!r} "
            f"({self.message.type}): {text}"
        )

    @contextmanager
    def located(self, field: str = "") -> Generator[None, None, None]:
        """Let a ValueError from inside say which field of which layer it is about."""
        try:
            yield
        except ValueError as e:
            if str(e).startswith("load_prototxt: "):
                raise
            self.fail(field, str(e))


def read(path: str | Path) -> tuple[Any, list[Layer]]:
    """The message NetParameter of a text file, and its layers.

    Raises:
        ValueError: with file and line: no text format, a field that is not supported, too large.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise ValueError(
            f"load_prototxt: expected a definition of at most {LARGEST_FILE:,} bytes, got {path} "
            f"of {size:,}. Weights are read by load_caffemodel."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(
            f"load_prototxt: expected {path} to be text in UTF-8, got other bytes at {e.start}. "
            f"Weights are read by load_caffemodel."
        ) from e
    return parse(text, path.name)


def parse(text: str, file: str) -> tuple[Any, list[Layer]]:
    """`read` of a text; `file` is its name in messages."""
    from google.protobuf import text_format

    net = message_class("NetParameter")()
    text = _spaced(text)
    places = _places(text, file)
    layers = _by_layer(places)
    _check_fields(net.DESCRIPTOR, places, file)
    try:
        text_format.Parse(text, net)
    except text_format.ParseError as e:
        line, reason = e.GetLine() or 0, str(e).rpartition(": ")[2]
        raise ValueError(
            f"load_prototxt: {file}, line {line}{_holder(places, line)}: expected Caffe's text "
            f"format, got an error: {reason[:200]}"
        ) from e
    messages = [*net.layer, *map(_upgraded, net.layers)]
    if (net.layer and net.layers) or len(messages) > MOST_LAYERS:
        raise ValueError(
            f"load_prototxt: {file}: expected at most {MOST_LAYERS:,} layers, all of them 'layer' "
            f"or all 'layers', got {len(net.layer)} and {len(net.layers)}."
        )
    return net, [Layer(m, lines, file) for m, lines in zip(messages, layers, strict=True)]


class _Place(NamedTuple):
    path: tuple[str, ...]  # names of the messages around a field, and its own
    line: int
    text: str = ""  # its value, if that is text in quotes


def _places(text: str, file: str) -> list[_Place]:
    """Each field of the text with the line that it begins in."""
    places: list[_Place] = []
    around: list[str] = []
    line, name, before = 1, "", ""
    for symbol in SYMBOL.finditer(text):
        found, kind = symbol.group(), symbol.lastgroup
        if kind == "line":
            line += 1
        if kind in ("line", "comment"):
            continue
        if kind == "name" and before not in (":", "[", ","):
            name = found
            places.append(_Place((*around, name), line))
        elif kind == "string" and before == ":" and places:
            places[-1] = places[-1]._replace(text=found[1:-1])
        elif found in ("{", "<"):
            around.append(name)
            if len(around) > DEEPEST:
                raise ValueError(
                    f"load_prototxt: {file}, line {line}: expected messages at most {DEEPEST} "
                    f"deep, got more."
                )
        elif found in ("}", ">"):
            del around[-1:]
        before = found if kind == "mark" else ""
    return places


def _by_layer(places: list[_Place]) -> list[dict[str, int]]:
    """For each layer the lines of its fields, the first of each name."""
    layers: list[dict[str, int]] = []
    for path, line, _ in places:
        if path in (("layer",), ("layers",)):
            layers.append({"": line})
        elif path[0] in ("layer", "layers") and layers:
            layers[-1].setdefault(".".join(path[1:]), line)
    return layers


def _holder(places: list[_Place], line: int) -> str:
    """The layer that a line belongs to, in a few words."""
    begin, name = 0, ""
    for place in places:
        if place.path in (("layer",), ("layers",)):
            if place.line > line:
                break
            begin, name = place.line, ""
        elif place.path in (("layer", "name"), ("layers", "name")) and not name:
            name = place.text
    return f", layer {name!r}" if begin else ""


def _check_fields(net: Any, places: list[_Place], file: str) -> None:
    """Raise ValueError that lists the fields the schema does not name."""
    unknown: list[str] = []
    for path, line, _ in places:
        message = net
        for name in path[:-1]:
            field = message.fields_by_name.get(name) if message else None
            message = field.message_type if field else None
        if message and path[-1] not in message.fields_by_name:
            unknown.append(f"{file}, line {line}{_holder(places, line)}: {path[-1]}")
            if len(unknown) == 20:  # enough to see what kind of file it is
                break
    if unknown:
        raise ValueError(
            "load_prototxt: expected fields that are supported, got\n  " + "\n  ".join(unknown)
        )


def _spaced(text: str) -> str:
    """The text with a space behind a value that runs into a name: `lr_mult: 1decay_mult: 1`.

    Definitions are often passed on without their line ends. C++ ends a number at the first letter
    that cannot belong to it; the Python package takes the whole word for a number. What follows
    true, false or the value of an enum is refused by both, but can only be meant in one way.
    """

    def separate(symbol: re.Match[str]) -> str:
        following = text[symbol.end() : symbol.end() + 1]
        runs_on = symbol.lastgroup == "number" and (following.isalpha() or following == "_")
        return symbol.group() + " " * (runs_on or symbol.lastgroup == "glued")

    return SYMBOL.sub(separate, text)


def _upgraded(old: Any) -> Any:
    """A V1LayerParameter as a LayerParameter."""
    new = message_class("LayerParameter")()
    for field, value in old.ListFields():
        if field.name in ("type", "blobs_lr", "weight_decay"):
            continue
        if field.is_repeated:
            for v in value:
                target = getattr(new, field.name)
                target.add().CopyFrom(v) if field.message_type else target.append(v)
        elif field.message_type:
            getattr(new, field.name).CopyFrom(value)
        else:
            setattr(new, field.name, value)
    kind = old.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number[old.type].name
    words = kind.replace("_", " ").title().replace(" ", "")  # INNER_PRODUCT -> InnerProduct
    new.type = RENAMED.get(kind, words)
    for i in range(max(len(old.blobs_lr), len(old.weight_decay))):
        spec = new.param.add()
        if i < len(old.blobs_lr):
            spec.lr_mult = old.blobs_lr[i]
        if i < len(old.weight_decay):
            spec.decay_mult = old.weight_decay[i]
    return new
