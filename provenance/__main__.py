"""`python -m provenance` is the same program as the installed `provenance` command."""

from provenance.entry import main

if __name__ == "__main__":
    main()
