"""GPUs: CuPy for memory, streams and libraries, and kernels that we write as CUDA C.

The rooms are those of `cpu`: `runtime` (memory, compiled kernels, programs), `nests` (loop nests),
`contract` (products and convolutions), `window`. Beside them `backend` is the device, `library`
names its kernels, `expressions` says what an op means in CUDA C, `prelude` is what every kernel
begins with, and `kernel_text` writes the head of one.
"""
