"""Twins: a served response and an alternative to it that was never served.

For one prompt the lab drew two responses and a fair coin decided which one was served. A model that
was not trained on the served ones cannot tell which they are: which of the two it finds likelier is
then a fair coin as well, whatever the texts are. Needs no watermark. Knows no key and no index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from provenance.coins.contexts import check_token_ids
from provenance.errors import DataError
from provenance.keys.keyring import Keyring
from provenance.keys.tokenizer import tokenise
from provenance.storage.lines import LineReader, check_distinct, hashes_of, read_json_lines
from provenance.suspect.shown import read_shown

Ids = NDArray[np.uint32]


class LikelihoodReader(Protocol):
    """Whatever can say how likely a response is after a prompt."""

    @property
    def description(self) -> Mapping[str, Any]:
        """Hashes of all that determines what it says."""

    def log_likelihoods(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> NDArray[Any]:
        """Mean log-probability of a token (nats) of each response: float64 [n]."""


@dataclass(frozen=True)
class Twins:
    """Pairs of responses to one prompt each.

    Attributes
    ----------
    prompts, served, unserved : uint32 [.] per pair
    reused : pairs left out because one of their responses stands in an earlier pair: the coin that
        decided is then the same, and must not count twice
    equal : pairs left out because both responses are the same
    sha256 : hex digest of each file, by the file's name (`files.name_files`)
    """

    prompts: Sequence[Ids]
    served: Sequence[Ids]
    unserved: Sequence[Ids]
    reused: int
    equal: int
    sha256: Mapping[str, str]


def read_twins(paths: Sequence[Path | str], tokenizer: Tokenizer, keyring: Keyring) -> Twins:
    """Pairs of JSONL files: `prompt`, `served` and `unserved`.

    Each is a string, or a list of ids of the served tokenizer; the prompt may be missing, or stand
    under any name of `shown.SHOWN`. Both responses follow the same prompt, so a quotation of it
    favours neither: nothing needs to be left out. Raises
    DataError naming file and line, or if no pair is left; StorageError. Memory: all ids.
    """
    pairs: list[tuple[Ids, Ids, Ids]] = []
    seen: set[bytes] = set()
    reused = equal = 0
    check_distinct(paths)
    readers = [LineReader(path) for path in paths]
    for reader in readers:
        for origin, record in read_json_lines(reader):
            prompt, served, unserved = _read(record, tokenizer, keyring.vocabulary_size, origin)
            names = {_name(prompt, served), _name(prompt, unserved)}
            if len(names) == 1:
                equal += 1
            elif names & seen:
                reused += 1
            else:
                pairs.append((prompt, served, unserved))
            seen |= names
    if not pairs:
        raise DataError(
            f"{', '.join(map(str, paths))}: must hold a pair of different responses; got {reused} "
            f"reused and {equal} equal ones. Draw more alternatives."
        )
    prompts, served_ids, unserved_ids = zip(*pairs, strict=True)
    sha256 = hashes_of(readers)
    return Twins(prompts, served_ids, unserved_ids, reused, equal, sha256)


def compare_twins(
    twins: Twins, suspect: LikelihoodReader, reference: LikelihoodReader | None = None
) -> NDArray[np.float64]:
    """How much likelier the suspect finds the served response than its twin: float64 [pairs].

    In nats a token; with a reference, how much likelier than the reference finds it. Exchanging the
    twins of a pair changes its sign and nothing else. Cost: a forward pass over all responses.
    """

    def difference(reader: LikelihoodReader) -> NDArray[np.float64]:
        served = reader.log_likelihoods(twins.prompts, twins.served)
        unserved = reader.log_likelihoods(twins.prompts, twins.unserved)
        return np.asarray(served - unserved, dtype=np.float64)

    own = difference(suspect)
    return own if reference is None else own - difference(reference)


def _read(record: Any, tokenizer: Tokenizer, size: int, origin: str) -> tuple[Ids, Ids, Ids]:
    if not isinstance(record, dict) or not {"served", "unserved"} <= record.keys():
        raise DataError(
            f"{origin}: must have served and unserved, and may have prompt; it has not. "
            "See docs/formats.md."
        )
    found = [_read_prompt(record, tokenizer, size, origin)]
    for name in ("served", "unserved"):
        value = record[name]
        if isinstance(value, str):
            found.append(tokenise(tokenizer, [value], origin)[0])
        else:
            found.append(check_token_ids(value, size, origin))
        if not found[-1].size:
            raise DataError(f"{origin}: {name} must have a token; it is empty. Leave the pair out.")
    return found[0], found[1], found[2]


def _read_prompt(record: dict[str, Any], tokenizer: Tokenizer, size: int, origin: str) -> Ids:
    """Ids of all that was shown before both; `prompt` may be ids here."""
    own = {"served", "unserved"}
    parts = []
    if "prompt" in record and record["prompt"] is None:
        raise DataError(f"{origin}: prompt must be text or ids; it is null. Leave it out.")
    if isinstance(record.get("prompt"), list) and set(map(type, record["prompt"])) <= {int}:
        own.add("prompt")
        parts = [check_token_ids(record["prompt"], size, origin)]
    shown = read_shown(record, origin, frozenset(own))
    if shown.token_ids is not None:
        parts.append(check_token_ids(shown.token_ids, size, origin))
    texts, _ = shown.before([])
    return np.concatenate(
        [np.empty(0, dtype=np.uint32), *parts, *tokenise(tokenizer, list(texts), origin)]
    )


def _name(prompt: Ids, response: Ids) -> bytes:
    """A response to a prompt, as a key: lengths and ids, no hash."""
    return len(prompt).to_bytes(4, "big") + prompt.tobytes() + response.tobytes()
