"""How programs run: `memory`, `executable` (a program bound to it) and `runtime` (all of CuPy).

`jit` knows sources, `native` turns them into machine code. `loans` and `pinned` keep memory that
other libraries, or copies under way, still use.
"""
