"""Vector code: loads and stores, instructions, elementary functions."""
