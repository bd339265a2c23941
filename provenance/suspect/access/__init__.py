"""The ways to look at a suspect: its outputs, its logprobs, its weights, and twins."""
