"""Master secret, schedule of slots, derived keys and their commitments."""
