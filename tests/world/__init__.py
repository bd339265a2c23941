"""Worlds that tests and benchmarks both need; nothing here imports `benchmarks`."""
