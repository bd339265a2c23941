"""The test: weigh, score, tail, control, attribute, conclude. Integers in, a verdict out."""
