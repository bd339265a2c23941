"""A verdict as evidence for people outside: what they read, check and recompute."""
