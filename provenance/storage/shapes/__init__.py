"""Files in the shapes that the field writes, turned into records of our own form by one table."""
