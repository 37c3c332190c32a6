"""Memory, compiled kernels and the calls that run them."""
