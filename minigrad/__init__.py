"""minigrad: a NumPy-free autodiff mini-framework."""
