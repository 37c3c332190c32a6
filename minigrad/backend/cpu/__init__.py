"""The CPU backend: our own aligned memory and kernels compiled by Numba."""
