"""`python -m benchmarks.innocents`: see `gate`. Apart, so that worker processes can import it."""

from benchmarks.innocents.gate import main

if __name__ == "__main__":
    main()
