"""Innocent suspects in a fast world: words as integers, no files; see docs/validity.md."""
