"""The command line, as the shell calls it."""

import sys

import pytest

from provenance.commands.app import main


@pytest.fixture
def run(monkeypatch, capsys):
    """Call `main` as the shell would; returns (exit code, stdout, stderr)."""

    monkeypatch.setenv("COLUMNS", "80")  # as a terminal: `tests/commands/test_expectations.py`

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["provenance", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        code = stopped.value.code
        return (0 if code is None else code), captured.out, captured.err

    return call
