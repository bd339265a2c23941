"""`python -m benchmarks.calibration`: see `gate`. Apart, so that worker processes can import it."""

from benchmarks.calibration.gate import main

if __name__ == "__main__":
    main()
