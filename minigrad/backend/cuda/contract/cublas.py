"""cuBLAS, called directly: CuPy's functions for it refuse a stream that is captured into a graph.

CuPy finds and loads the library. The handle is ours, so that its stream, memory and rounding are
set once, and nobody else who uses cuBLAS on this GPU changes them.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int64, c_void_p
from functools import cache
from typing import Any

# Bytes that cuBLAS may use for itself, as NVIDIA advises for an H100. A handle without memory of
# its own would allocate in each product of a graph.
WORKSPACE = 1 << 25

# dtype -> (cudaDataType, cublasComputeType_t, the type of alpha and beta)
_TYPES: dict[str, tuple[int, int, Any]] = {
    "float16": (2, 68, ctypes.c_float),
    "bfloat16": (14, 68, ctypes.c_float),
    "float32": (0, 68, ctypes.c_float),
    "float64": (1, 70, ctypes.c_double),
}
_TF32 = 77  # CUBLAS_COMPUTE_32F_FAST_TF32
_DEFAULT_ALGORITHM = -1  # CUBLAS_GEMM_DEFAULT
# CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: parts of a sum of halves are added as float32.
_MATH_MODE = 16

_MATRIX = (c_void_p, c_int, c_int64, c_int64)  # address, type, leading stride, batch stride
_PRODUCT = (
    *(c_void_p, c_int, c_int, c_int64, c_int64, c_int64),  # handle, operations, m, n, k
    *(c_void_p, *_MATRIX, *_MATRIX),  # alpha, A, B
    *(c_void_p, *_MATRIX),  # beta, C
    *(c_int64, c_int, c_int),  # batch, compute type, algorithm
)


@cache
def library() -> Any:
    """The library that CuPy loads.

    Raises:
        ImportError: it is not installed.
    """
    from cupy_backends.cuda.libs import cublas

    found = ctypes.CDLL(cublas.__file__)  # what it is linked with is searched, too
    found.cublasCreate_v2.argtypes = (c_void_p,)
    found.cublasSetStream_v2.argtypes = (c_void_p, c_void_p)
    found.cublasSetWorkspace_v2.argtypes = (c_void_p, c_void_p, ctypes.c_size_t)
    found.cublasSetMathMode.argtypes = (c_void_p, c_int)
    found.cublasGemmStridedBatchedEx_64.argtypes = _PRODUCT
    found.cublasGetStatusString.argtypes = (c_int,)
    found.cublasGetStatusString.restype = ctypes.c_char_p
    return found


class CublasHandle:
    """Launches products on one stream of the GPU that is current.

    Args:
        stream: its handle.
        workspace: the address of WORKSPACE bytes, which belong to the stream's products.
    """

    def __init__(self, stream: int, workspace: int):
        self._library = library()
        self._handle = c_void_p()
        self._call("cublasCreate_v2", ctypes.byref(self._handle))
        self._call("cublasSetStream_v2", self._handle, stream)
        self._call("cublasSetWorkspace_v2", self._handle, workspace, WORKSPACE)
        self._call("cublasSetMathMode", self._handle, _MATH_MODE)

    def multiply(self, dtype: str, tf32: bool, a: Any, b: Any, c: Any, batch: int) -> None:
        """C = A @ B: see `Runtime.matrix_product`."""
        kind, compute, scalar = _TYPES[dtype]
        if tf32 and dtype == "float32":
            compute = _TF32
        one, zero = scalar(1.0), scalar(0.0)
        # cuBLAS is column-major: a row-major C is C^T there, and C^T = B^T A^T.
        self._call(
            "cublasGemmStridedBatchedEx_64", self._handle, b[4], a[4], c[2], c[1], a[2],
            ctypes.byref(one), b[0], kind, b[3], b[5], a[0], kind, a[3], a[5],
            ctypes.byref(zero), c[0], kind, c[3], c[5], batch, compute, _DEFAULT_ALGORITHM,
        )  # fmt: skip

    def _call(self, name: str, *args: Any) -> None:
        status = getattr(self._library, name)(*args)
        if status:
            what = self._library.cublasGetStatusString(status).decode()
            raise RuntimeError(f"{name}: {what} (cuBLAS status {status})")
