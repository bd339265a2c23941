"""The command line: parse, call, print, nothing else. One file per noun."""
