"""Comments in other people's JSON: taken out before the strict parser reads it.

`// ...`, `# ...` and `/* ... */` outside strings become blanks; everything else stays as it is and
must be strict JSON. Nothing else of JSON5 is read: what a field means must not depend on a parser.
"""

from __future__ import annotations

import re
from typing import Final

_TOKENS: Final = re.compile(
    # A string, to its end or that of its line; then what is no string. One pass, no backtracking:
    # every alternative takes all that it started with, and an open /* takes the rest of the file.
    r'"(?:[^"\\\n]|\\.)*"?|//[^\n]*|\#[^\n]*|/\*(?s:.*?)(?:\*/|\Z)'
)


def blank_comments(text: str) -> str:
    r"""The same text with comments blanked; line breaks stay, so that errors name the right line.

    >>> blank_comments('{"a": 1, // one\n "b": "# no // comment"} /* end */')
    '{"a": 1,       \n "b": "# no // comment"}          '

    An open block comment is left in place, so that the parser refuses the file.
    """
    return _TOKENS.sub(_blank, text)


def _blank(match: re.Match[str]) -> str:
    found = match.group()
    if found[0] == '"' or (
        found.startswith("/*") and not (len(found) >= 4 and found.endswith("*/"))
    ):
        return found
    return re.sub(r"[^\n]", " ", found)
