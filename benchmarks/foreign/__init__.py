"""Other people's schemes: false-positive rates, speed beside the originals, and one end to end."""
