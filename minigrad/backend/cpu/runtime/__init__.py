"""How programs run: `memory`, `executable` (a program bound to it) and `driver` (its threads).

`jit` turns sources into native code, by `native` (Numba and LLVM), `kernel_cache` (what is on disk)
and `compile_workers` (other processes that compile a share).
"""
