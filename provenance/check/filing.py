"""What a result is filed under: case number, suspect and author. Computes nothing."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass
from typing import Final

from provenance.errors import UsageError

_LONGEST: Final = 200


@dataclass(frozen=True)
class Filing:
    """What a person says of a result for the file: it stands on every page of the report.

    Attributes
    ----------
    number : of the case, as its keeper counts; "" if none was given
    suspect : which model, in words; "" if only the plan says it, or nobody
    author : who answers for the check: a name, an office; "" if none was given

    Raises UsageError unless each is printable and of at most 200 characters.
    """

    number: str = ""
    suspect: str = ""
    author: str = ""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if len(value) > _LONGEST or not value.isprintable():
                raise UsageError(
                    f"the {name} of a filing must be printable and have at most {_LONGEST} "
                    f"characters; got {len(value)}. Shorten it."
                )

    def complete(self, other: Filing) -> Filing:
        """What this one says, and of what it leaves out what the other says.

        >>> Filing(author="B").complete(Filing("7", "m", "A"))
        Filing(number='7', suspect='m', author='B')
        """
        return Filing(*(a or b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def to_json(self) -> dict[str, str]:
        """JSON-able form."""
        return asdict(self)

    def __bool__(self) -> bool:
        """Whether it says anything."""
        return any(asdict(self).values())
