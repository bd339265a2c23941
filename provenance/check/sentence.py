"""Sentences with computed numbers, which another machine may round to another last digit.

Whoever repeats a check has the numbers, so it asks whether a stated sentence is one that they give;
no number is read out of a sentence.
"""

from __future__ import annotations

from string import Formatter
from typing import Final

_TOLERANCE: Final = 1e-8


class Sentence(str):
    """A text and the numbers in it; a copy is the text alone.

    Parameters: a format string with unnamed fields; what stands in them.

    >>> said = Sentence("{} keys: z {:+.2f}", 7, 1.2349999999)
    >>> said == "7 keys: z +1.23", said.allows("7 keys: z +1.24"), said.allows("7 keys: z +1.25")
    (True, True, False)
    """

    _form: str
    _numbers: tuple[float | str, ...]

    def __new__(cls, form: str, *numbers: float | str) -> Sentence:
        """The text that the form gives."""
        made = super().__new__(cls, form.format(*numbers))
        made._form, made._numbers = form, numbers
        return made

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)

    def allows(self, text: str) -> bool:
        """Whether the text is this sentence with numbers that agree within 1e-8."""
        numbers = iter(self._numbers)
        for words, field, form, _ in Formatter().parse(self._form):
            if not text.startswith(words):
                return False
            text = text[len(words) :]
            if field is None:
                continue
            options = {format(number, form or "") for number in _list_close(next(numbers))}
            found = max((one for one in options if text.startswith(one)), key=len, default=None)
            if found is None:
                return False
            text = text[len(found) :]
        return not text


def _list_close(number: float | str) -> tuple[float | str, ...]:
    """The number, and those at the tolerance; an integer or a name has to be equal."""
    if not isinstance(number, float):
        return (number,)
    step = _TOLERANCE * max(1.0, abs(number))
    return number, number - step, number + step
