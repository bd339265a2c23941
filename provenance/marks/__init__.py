"""The mark under test: our own keyring, or somebody else's scheme under its key."""

from __future__ import annotations

from provenance.marks.base import Mark, OpenKey, Served, TextCoins
from provenance.marks.own import KeyringMark, SchemeKey, as_mark

__all__ = ["KeyringMark", "Mark", "OpenKey", "SchemeKey", "Served", "TextCoins", "as_mark"]
