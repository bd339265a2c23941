"""Null laws, class tables and exact tails: integers in, log10 p out.

Knows no token, no key, no scheme and no file. Whoever can fill a class table (weight, law of one
score under H0, number of coins, sum of scores) gets a p-value that is exact or an upper bound.
"""
