"""A suspect with another tokenizer: two vocabularies, and the positions in both."""
