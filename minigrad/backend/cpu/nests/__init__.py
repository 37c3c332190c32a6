"""Loop nests as Numba kernels."""
