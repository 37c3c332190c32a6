"""The CUDA backend: CuPy for memory, streams and libraries, kernels generated as CUDA C."""
