"""What the suspect model shows of itself, turned into observations."""
