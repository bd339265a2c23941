"""Putting the mark into text while it is sampled: the core and one adapter per serving stack."""
