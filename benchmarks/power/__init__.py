"""Power and frontier: how much training on marked text `check` sees, and what the mark costs."""
