"""A fast world of innocent suspects: is the mean of z zero, whatever the traffic? See `gate`."""
