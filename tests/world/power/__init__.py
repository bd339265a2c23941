"""What the power benchmark is made of: its settings, the published tests, the response curves."""
