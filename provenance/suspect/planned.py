"""Which of a suspect's outputs a plan wants: the first so many, and answers to which prompts.

A plan that fixes a number of outputs takes the first of them in the order of the files: what comes
after is left out and counted, so that collecting more than was planned chooses nothing. A plan that
commits a file of prompts refuses an output of any other prompt. Knows records; no token and no key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from provenance.errors import ConfigurationMismatchError
from provenance.storage.files import sha256_of_file
from provenance.suspect.collect.prompts import Prompts
from provenance.suspect.shown import Shown, read_shown

_OWN: Final = frozenset[str]()


@dataclass(frozen=True)
class Wanted:
    """What a plan wants of outputs.

    Attributes
    ----------
    most : how many outputs are taken; None: all
    prompts : number of each prompt, by all that it shows; empty if the plan commits none
    prompts_sha256 : of the file of the prompts; None if the plan commits none
    """

    most: int | None = None
    prompts: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    prompts_sha256: str | None = None

    @classmethod
    def of(cls, most: int | None, prompts: Path | None, sha256: str | None) -> Wanted:
        """With the prompts of a file (JSONL of `collect`), which must have this hash.

        Raises ConfigurationMismatchError, DataError, StorageError.
        """
        if sha256 is None or prompts is None:
            return cls(most)
        if (found := sha256_of_file(prompts)) != sha256:
            raise ConfigurationMismatchError(
                f"{prompts}: expected SHA-256 {sha256[:16]}..., which the plan commits, found "
                f"{found[:16]}... Put the committed file there."
            )
        return cls(most, read_prompts(prompts), sha256)


def read_prompts(path: Path) -> dict[tuple[str, ...], int]:
    """Number of each prompt of a file (from 1), by the texts that it shows; of equals, the first.

    Raises DataError, StorageError.
    """
    found: dict[tuple[str, ...], int] = {}
    for number, record in enumerate(Prompts.read(path).records, start=1):
        shown = {name: record[name] for name in ("prompt", "messages") if name in record}
        texts, _ = read_shown(shown, f"{path}: prompt {number}", _OWN).before(())
        found.setdefault(texts, number)
    return found


@dataclass
class Chooser:
    """Takes outputs one after another; counts what it took and left.

    taken, left_out : outputs; answered : numbers of the committed prompts that have an output
    """

    wanted: Wanted
    taken: int = 0
    left_out: int = 0
    answered: set[int] = field(default_factory=set)

    def takes(self, shown: Shown, origin: str) -> bool:
        """Whether the next output is one of those; ConfigurationMismatchError for its prompt."""
        if self.wanted.most is not None and self.taken >= self.wanted.most:
            self.left_out += 1
            return False
        if self.wanted.prompts_sha256 is not None:
            number = self.wanted.prompts.get(shown.texts)
            if number is None or shown.token_ids is not None:
                raise ConfigurationMismatchError(
                    f"{origin}: expected an output of one of the {len(self.wanted.prompts)} "
                    f"prompts that the plan commits ({self.wanted.prompts_sha256[:16]}...), found "
                    "another prompt. Check outputs of these, or without the plan: exploratory."
                )
            self.answered.add(number)
        self.taken += 1
        return True

    def describe(self) -> dict[str, Any]:
        """What stands in a verdict beside the counts; empty if nothing was planned."""
        found: dict[str, Any] = {}
        if self.wanted.most is not None:
            found |= {"taken": self.taken, "left_out": self.left_out}
        if self.wanted.prompts_sha256 is not None:
            found |= {
                "prompts_sha256": self.wanted.prompts_sha256,
                "prompts": len(self.wanted.prompts),
                "prompts_answered": len(self.answered),
            }
        return {"planned": found} if found else {}
