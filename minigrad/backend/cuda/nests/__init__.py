"""Loop nests as CUDA kernels: `loops` chooses between three files that write."""
