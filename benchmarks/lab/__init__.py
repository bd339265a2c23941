"""Training laboratory: small real models from real text, for fixtures and measurements.

It knows nothing of keys, coins or watermarks: that is the business of the stages built on top.
"""
