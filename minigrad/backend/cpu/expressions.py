"""Each map primitive as Numba source text: the CPU's one table of what an op means.

`{0}`, `{1}`, ... are the arguments. Integer results are cast back to their own width, since Numba
computes narrow integers in 64 bits.
"""

from __future__ import annotations

from minigrad.dtype import DType

# fmt: off
EXPRESSIONS = {
    "neg": "-{0}",
    "exp": "exp_of({0})",
    "log": "log_of({0})",
    "sqrt": "sqrt_of({0})",
    "rsqrt": "{T}(1) / sqrt_of({0})",
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
    "abs": "abs({0})",
    "sign": "select({0} != {0}, {0}, {T}({T}({0} > {T}(0)) - {T}({0} < {T}(0))))",
    "floor": "floor_of({0})",
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "pow": "pow_of({0}, {1})",
    "maximum": "take_maximum({0}, {1})",
    "minimum": "take_minimum({0}, {1})",
    "floor_divide": "{0} // {1}",
    "less": "{0} < {1}",
    "less_equal": "{0} <= {1}",
    "equal": "{0} == {1}",
    "bitwise_and": "{0} & {1}",
    "bitwise_or": "{0} | {1}",
    "bitwise_xor": "{0} ^ {1}",
    "bitwise_invert": "~{0}",
    "where": "select({0}, {1}, {2})",
    "cast": "{0}",
}
# fmt: on
_FLOAT = {"floor_divide": "floor_of({0} / {1})", "abs": "fabs_of({0})"}
_INTEGER = {
    "sign": "{T}({0} > {T}(0)) - {T}({0} < {T}(0))",
}
_BOOL = {
    "bitwise_invert": "not {0}",
    "less": "(not {0}) & {1}",
    "less_equal": "(not {0}) | {1}",
}


def cast(dtype: DType, text: str) -> str:
    """`text` as a value of `dtype`."""
    return f"(({text}) != 0)" if dtype.kind == "bool" else f"types.{dtype.name}({text})"


def constant(dtype: DType) -> tuple[str, str]:
    """How a constant's table word is read, and the expression that makes it a `dtype`."""
    if dtype.is_floating:
        return "float64", f"types.{dtype.name}({{}})"
    return "int64", cast(dtype, "{}")


def render(name: str, dtype: DType, argument: DType, arguments: list[str]) -> str:
    """The source of one map primitive giving `dtype` from arguments of dtype `argument`."""
    template = EXPRESSIONS[name]
    if argument.is_floating:
        template = _FLOAT.get(name, template)
    elif argument.kind == "bool":
        template = _BOOL.get(name, template)
    else:
        template = _INTEGER.get(name, template)
    numba_type = "types.boolean" if argument.kind == "bool" else f"types.{argument.name}"
    text = template.format(*arguments, T=numba_type)
    if name == "cast":
        if argument.kind == "bool" and dtype.kind == "bool":
            return text
        return cast(dtype, text)
    if dtype.kind == "bool":
        return text
    return f"types.{dtype.name}({text})"
