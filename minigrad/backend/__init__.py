"""Devices: each backend allocates and copies memory, compiles kernels and runs programs."""
