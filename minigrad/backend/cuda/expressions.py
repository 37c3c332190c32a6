"""Each map primitive as CUDA C: this backend's one table of what an op means.

`{0}`, `{1}`, ... are the arguments. A value in a register has the type of its dtype, but float16
and bfloat16 are computed in float32 and rounded where they are stored, or where a cast says so.
"""

from __future__ import annotations

from minigrad.dtype import DType

# dtype -> (type in memory, type in a register)
_TYPES = {
    "bool": ("bool", "bool"),
    "uint8": ("u8", "u8"),
    "int32": ("int", "int"),
    "int64": ("i64", "i64"),
    "float16": ("float16", "float"),
    "bfloat16": ("bfloat16", "float"),
    "float32": ("float", "float"),
    "float64": ("double", "double"),
}

# fmt: off
EXPRESSIONS = {
    "neg": "-{0}",
    "exp": "exp_of({0})",
    "log": "log_of({0})",
    "sqrt": "sqrt_of({0})",
    "rsqrt": "1 / sqrt_of({0})",
    "sin": "sin_of({0})",
    "cos": "cos_of({0})",
    "tanh": "tanh_of({0})",
    "erf": "erf_of({0})",
    "expm1": "expm1_of({0})",
    "log1p": "log1p_of({0})",
    "erfc": "erfc_of({0})",
    "sigmoid": "sigmoid_of({0})",
    "softplus": "softplus_of({0})",
    "gelu": "gelu_of({0})",
    "abs": "abs_of({0})",
    "sign": "sign_of({0})",
    "floor": "floor_of({0})",
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "pow": "pow_of({0}, {1})",
    "maximum": "maximum_of({0}, {1})",
    "minimum": "minimum_of({0}, {1})",
    "floor_divide": "floor_of({0} / {1})",
    "less": "{0} < {1}",
    "less_equal": "{0} <= {1}",
    "equal": "{0} == {1}",
    "bitwise_and": "{0} & {1}",
    "bitwise_or": "{0} | {1}",
    "bitwise_xor": "{0} ^ {1}",
    "bitwise_invert": "~{0}",
    "where": "{0} ? {1} : {2}",
    "cast": "{0}",
}
# fmt: on
_INTEGER = {
    "neg": "wrap_sub(({T})0, {0})",
    "add": "wrap_add({0}, {1})",
    "sub": "wrap_sub({0}, {1})",
    "mul": "wrap_mul({0}, {1})",
    "floor_divide": "floor_quotient({0}, {1})",
}
_BOOL = {"bitwise_invert": "!{0}"}


def memory_type(dtype: DType) -> str:
    """What an array of this dtype holds."""
    return _TYPES[dtype.name][0]


def register_type(dtype: DType) -> str:
    """What a value of this dtype is computed in."""
    return _TYPES[dtype.name][1]


def is_rounded(dtype: DType) -> bool:
    """Whether a register holds more digits than the dtype has."""
    return dtype.is_floating and register_type(dtype) != memory_type(dtype)


def constant(dtype: DType, word: str) -> str:
    """A constant's table word as a value."""
    kind = register_type(dtype)
    if dtype.is_floating:
        return f"({kind})as_double({word})"
    return f"{word} != 0" if dtype.kind == "bool" else f"({kind}){word}"


def cast(dtype: DType, text: str, source: DType) -> str:
    """`text`, of dtype `source`, as a value of `dtype`."""
    if dtype.kind == "bool":
        return f"({text}) != 0"
    if dtype.kind == "uint" and source.is_floating:
        text = f"(int)({text})"  # a negative number wraps
    if is_rounded(dtype) and dtype != source:
        if source.itemsize == 8:
            return f"round_{dtype.name}(to_odd({text}))"
        if source.itemsize == 4 and not source.is_floating:
            return f"round_{dtype.name}(to_odd((double)({text})))"
        return f"round_{dtype.name}((float)({text}))"
    return f"({register_type(dtype)})({text})"


def render(name: str, dtype: DType, argument: DType, arguments: list[str]) -> str:
    """The source of one map primitive giving `dtype` from arguments of dtype `argument`."""
    template = EXPRESSIONS[name]
    if argument.kind == "bool":
        template = _BOOL.get(name, template)
    elif not argument.is_floating:
        template = _INTEGER.get(name, template)
    text = template.format(*arguments, T=register_type(argument))
    if name == "cast":
        return cast(dtype, text, argument)
    return text  # the local that it is assigned to has the result's type
