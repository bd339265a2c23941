"""Files, lines, databases: bytes that are whole or absent. Knows no key and no token."""
