"""The gates: how it fails, and the figures of it."""
