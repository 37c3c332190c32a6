"""Windows: sums, maxima and what maxima select."""
