"""Loop nests as Numba kernels: `loops` chooses, `rows` and `lanes` write, `split` makes parts."""
