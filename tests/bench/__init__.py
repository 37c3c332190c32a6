"""Side-by-side benchmarks against PyTorch: `python -m tests.bench`."""
