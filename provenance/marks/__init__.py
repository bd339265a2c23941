"""The mark under test: our own keyring, or somebody else's scheme under its key."""

from __future__ import annotations

from provenance.marks.base import Mark, OpenKey, Placebos, Served, TextCoins
from provenance.marks.own.mark import KeyringMark, SchemeKey, SchemePlacebos, as_mark

__all__ = [
    "KeyringMark",
    "Mark",
    "OpenKey",
    "Placebos",
    "SchemeKey",
    "SchemePlacebos",
    "Served",
    "TextCoins",
    "as_mark",
]
