"""Matrix products by cuBLAS; those of integers, which it does not have, as loop nests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minigrad.backend.checks import require_product
from minigrad.backend.cuda.nests.loops import dense, emit
from minigrad.backend.launch import Operand, Program
from minigrad.backend.loopnest import Access, LoopNest, Reduction, simplified
from minigrad.config import config


class MatrixProduct:
    """A launch of cuBLAS. The words of A, B and C: see `Runtime.matrix_product`; then the batch."""

    setting = staticmethod(config.allows_tf32)

    def __init__(self, dtype: str):
        self.dtype = dtype
        self.name = f"cublas_gemm_{dtype}"
        self.source = f"// cublasGemmStridedBatchedEx of {dtype}\n"

    def __call__(self, runtime: Any, words: Sequence[int]) -> None:
        """Launch it on the words of its arguments."""
        a, b, c, batch = words[:6], words[6:12], words[12:18], words[18]
        runtime.matrix_product(self.dtype, self.setting(), a, b, c, batch)


def dot(program: Program, a: Operand, b: Operand, out: Operand, processors: int) -> None:
    """Append the launches of out = a @ b.

    Shapes: a (B, M, K), b (B, K, N) -> out (B, M, N). Strides may be any, 0 and negative included,
    of a and b. An empty sum (K == 0) is 0. float16 and bfloat16 are summed in float32; integers
    wrap.
    Raises: ValueError for shapes that do not fit, TypeError for unequal or boolean dtypes.
    """
    require_product(a, b, out)
    if not out.size:
        return
    if not out.dtype.is_floating or a.shape[2] == 0:
        emit(program, simplified(_nest(a, b, out)), processors)
        return
    words: list[Any] = []
    for operand in (a, b):
        layout = _layout(operand)
        if layout is None:
            operand = dense(program, operand, processors)
            layout = _layout(operand)
            assert layout is not None
        words += _words(operand, layout)
    layout = _layout(out)
    assert layout is not None
    assert not layout[1], "a result is written row by row"
    words += [*_words(out, layout), out.shape[0]]
    program.launch(MatrixProduct(out.dtype.name), tuple(words), 1)


def _words(operand: Operand, layout: tuple[int, bool]) -> list[Any]:
    leading, is_transposed = layout
    _, rows, columns = operand.shape
    return [operand.pointer, rows, columns, leading, int(is_transposed), operand.strides[0]]


def _layout(operand: Operand) -> tuple[int, bool] | None:
    """(Leading stride, whether columns are contiguous); None where cuBLAS has no name for it."""
    (batch, rows, columns), (apart, down, along) = operand.shape, operand.strides
    if apart < 0 and batch > 1:  # cuBLAS does not say that it can go backwards
        return None
    if (columns == 1 or along == 1) and (rows == 1 or down >= columns):
        return (down if rows > 1 else columns), False
    if (rows == 1 or down == 1) and (columns == 1 or along >= rows):
        return (along if columns > 1 else rows), True
    return None


def _nest(a: Operand, b: Operand, out: Operand) -> LoopNest:
    """The product as a sum over the last of the axes (B, M, N, K)."""
    (batch, m, k), n = a.shape, b.shape[2]
    dtype = out.dtype
    left = Access(a.slot, dtype, (a.strides[0], a.strides[1], 0, a.strides[2]), a.offset)
    right = Access(b.slot, dtype, (b.strides[0], 0, b.strides[2], b.strides[1]), b.offset)
    result = Access(out.slot, dtype, (*out.strides, 0), out.offset)
    expressions = [("load", left), ("load", right), ("mul", dtype.name, 0, 1)]
    reductions = [Reduction("sum", 2, dtype, result, 0)]
    kept = (True, True, True, False)
    return LoopNest((batch, m, n, k), kept, expressions, [dtype] * 3, reductions)
