"""Benchmarks of multichat and its alternatives."""
