"""Evidence: a verdict with all that is needed to recompute it, signed, verified and reported."""
