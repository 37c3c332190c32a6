"""The CPU: our own aligned memory, and kernels that Numba compiles.

The rooms are those of `cuda`: `runtime` (memory, compiled kernels, programs), `nests` (loop nests),
`contract` (products and convolutions), `window`; and `vector`, the instructions they are made of.
Beside them `backend` is the device, `library` names its kernels, `expressions` says what an op
means in Numba's Python, and `kernel_text` writes the head of a kernel.
"""
