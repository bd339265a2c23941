"""The front door: what checks have in common is opened once, and what is asked of it."""
