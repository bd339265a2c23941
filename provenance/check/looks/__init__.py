"""A check that may be looked at after every batch of outputs, and its state on disk."""
