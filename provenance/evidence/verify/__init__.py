"""Verification: every step of a bundle, repeated from its files."""
