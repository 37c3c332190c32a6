"""Loop nests as CUDA kernels."""
