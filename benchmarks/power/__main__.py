"""`python -m benchmarks.power`: measure every suspect that was produced, and draw the pictures.

    python -m benchmarks.power.produce      # hours: makes worlds and suspects, resumable
    python -m benchmarks.power [--work DIR]

What was measured of a suspect is kept beside it and not measured again. Writes
benchmarks/results/power.json, power-tokens.svg and power-frontier.svg. See `report`.
"""

from benchmarks.power.report import main

if __name__ == "__main__":
    main()
