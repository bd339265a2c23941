"""`python cli.py ...` is the same program as the installed `provenance` command."""

from provenance.__main__ import main

if __name__ == "__main__":
    main()
