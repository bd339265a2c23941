"""Gates: faults of the disk, files of malicious authors, and what runs them fast."""
