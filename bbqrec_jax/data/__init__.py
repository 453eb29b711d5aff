"""Datasets: NumPy only."""
