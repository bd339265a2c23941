"""Collecting a suspect's outputs from an API or from batches, with a ledger of every request."""
