"""Models that read: the suspect, and references that say what is expected of an innocent."""
