"""Suspects that show probabilities: their weights, or the logprobs of an API.

Where text shows one drawn token per position, these show a distribution: the residual between
suspect and reference at the first occurrence of each context in each document. Also how a reference
model reads a suspect's outputs. Knows no marking key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from provenance.errors import ConfigurationMismatchError, DataError
from provenance.marks import Served
from provenance.served.index import Index
from provenance.storage.files import sha256_of_files, unchanging
from provenance.suspect.access.documents import Documents, find_served
from provenance.suspect.access.logprobs import read_logprobs
from provenance.suspect.access.logprobs_part import LogprobsPart
from provenance.suspect.observations import (
    Expectations,
    Observations,
    sum_pairs,
    totals_of_pairs,
)
from provenance.suspect.passes import (
    PART_DOCUMENTS,
    Pass,
    Reader,
    Reading,
    run_pass,
    sum_passes,
)
from provenance.suspect.positions import (
    LAST,
    Positions,
    add_last_windows,
    collect_wide,
    split_positions,
)
from provenance.suspect.quotations import RULE

_FORMAT = 4
_WIDEST_WITH_ENDS = 2
_Chunk = tuple[Positions, NDArray[np.bool_]]
Progress = Callable[[str, int], None]


def observe_weights(
    suspect: Reader,
    reference: Reader | None,
    documents: Documents,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Observations:
    """Let suspect and reference read the documents, and keep how they differ.

    Parameters
    ----------
    suspect, reference : models; without a reference nothing is expected
    documents : what to read; marked responses are left out if either model has another tokenizer
    cache : folder in which finished parts are kept, to go on after an interruption
    progress : called with "suspect" or "reference" and the number of parts done

    Returns
    -------
    Observations with probabilities as masses, over at most `passes.MAXIMUM_PAIRS` pairs: those at
    which suspect and reference differ most (docs/decisions/0009).

    Raises
    ------
    DataError if no position could be read; StorageError, LockedError.

    Notes
    -----
    Cost: one forward pass of each model over the documents. Memory: one batch of logits, one part
    of 256 documents and the pairs kept, however many documents there are.
    """
    models = [model for model in (suspect, reference) if model is not None]
    if any(model.reads_other_tokens for model in models):
        documents = replace(documents, unmarked_only=True)
    with ExitStack() as stack:
        stack.enter_context(unchanging(documents.paths))
        sha256 = sha256_of_files(documents.paths)
        facts = {
            **_describe(documents.index, documents.keyring),
            "documents": list(sha256.values()),
            "limit": documents.limit,
            "unmarked_only": documents.unmarked_only,
        }
        done = [stack.enter_context(_run(suspect, facts, documents, cache, "suspect", progress))]
        if reference is not None and reference.description == suspect.description:
            done.append(done[0])
        elif reference is not None:
            run = _run(reference, facts, documents, cache, "reference", progress)
            done.append(stack.enter_context(run))
        return _observe("weights", done, sha256, (positions for positions, _ in documents))


def observe_logprobs(
    paths: Sequence[Path],
    reference: Reader | None,
    tokenizer: Tokenizer,
    index: Index,
    keyring: Served,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Observations:
    """Join the logprobs of an API with what a reference model says at the same positions.

    Parameters: files, see `access.logprobs`; else as for `observe_weights`. Tokens that
    the API does not list count as probability 0. Returns, raises and costs as `observe_weights`,
    but for the suspect only the file is read. A reference with another tokenizer is refused unless
    the API drew the texts itself: in a marked text, the positions that it can read would be
    selected by coins.
    """

    def parts() -> Iterator[tuple[LogprobsPart, NDArray[np.bool_]]]:
        for part in read_logprobs(paths, tokenizer, keyring.public):
            if reference is not None and reference.reads_other_tokens and not part.generated:
                raise ConfigurationMismatchError(
                    "the reference of logprobs of given texts must have the served tokenizer; it "
                    "has another one. Use another reference, or --reference ngram."
                )
            yield part, find_served(part.positions.contexts, index, keyring)

    def read(chunk: tuple[LogprobsPart, NDArray[np.bool_]]) -> Reading:
        part, wanted = chunk
        return _count(part.positions, part.read(wanted))

    with ExitStack() as stack:
        stack.enter_context(unchanging(paths))
        sha256 = sha256_of_files(paths)
        facts = {**_describe(index, keyring), "logprobs": list(sha256.values())}
        done = [stack.enter_context(run_pass(parts(), read, {"model": {"kind": "api"}}, None))]
        if reference is not None:
            chunks = ((part.positions, wanted & part.listed) for part, wanted in parts())
            run = _run(reference, facts, chunks, cache, "reference", progress)
            done.append(stack.enter_context(run))
        return _observe("logprobs", done, sha256, (part.positions for part, _ in parts()))


def expect_with_model(
    model: Reader,
    positions: Positions,
    index: Index,
    keyring: Served,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Expectations:
    """E(c, t) of a suspect's outputs: the model's probabilities of t, added up where c stands.

    Parameters: a model, the suspect's outputs, and what says which contexts were served; cache and
    progress as for `observe_weights`. Cost: one forward pass over the outputs.

    What is expected of end tokens is kept beside, over the last window of every output too; not for
    models with another tokenizer, which do not share the served end token, nor for contexts of
    three and more ids.
    """
    facts = {**_describe(index, keyring), "outputs": list(positions.sha256.values())}
    sees_ends = not model.reads_other_tokens and keyring.context_width <= _WIDEST_WITH_ENDS
    read = add_last_windows(positions, keyring.context_width) if sees_ends else positions
    chunks = _Outputs(read, index, keyring)
    with _run(model, facts, chunks, cache, "reference", progress) as done:
        summed = sum_passes(done, None)
        visited, visits = np.unique(positions.contexts, return_counts=True)
        stood = totals_of_pairs(summed.contexts, visited, visits.astype(np.int64))
        masses = summed.masses * stood / summed.totals
        kept, ends = np.ones(summed.contexts.shape, dtype=np.bool_), None
        if sees_ends:
            kept = summed.contexts & LAST == 0
            own = np.isin(summed.tokens, np.array(index.manifest.end_tokens, dtype=np.uint32))
            contexts, tokens, [sums] = sum_pairs(
                summed.contexts[own] & ~LAST, summed.tokens[own], summed.masses[own]
            )
            ends = Expectations(contexts, tokens, sums, {})
        return Expectations(
            summed.contexts[kept],
            summed.tokens[kept],
            masses[kept],
            {**model.description, **_shares(done)},
            ends,
        )


class _Outputs:
    """A suspect's outputs in parts, with the positions that matter; can be walked again."""

    def __init__(self, positions: Positions, index: Index, keyring: Served) -> None:
        self._positions = positions
        # the bit LAST is set in no other name of so few ids
        names = positions.contexts
        if keyring.context_width <= _WIDEST_WITH_ENDS:
            names = names & ~LAST
        self._wanted = find_served(names, index, keyring)

    def __iter__(self) -> Iterator[_Chunk]:
        start = 0
        for part in split_positions(self._positions, PART_DOCUMENTS):
            end = start + part.contexts.shape[0]
            yield part, self._wanted[start:end]
            start = end


def _run(
    model: Reader,
    facts: Mapping[str, Any],
    chunks: Iterable[_Chunk],
    cache: Path | None,
    name: str,
    progress: Progress | None,
) -> AbstractContextManager[Pass]:
    def read(chunk: _Chunk) -> Reading:
        positions, wanted = chunk
        return _count(positions, model.read(positions, wanted))

    description = {"format": _FORMAT, **facts, "model": dict(model.description)}
    tell = partial(progress, name) if progress is not None else None
    return run_pass(chunks, read, description, cache, tell)


def _describe(index: Index, keyring: Served) -> dict[str, Any]:
    return {"keyring": keyring.public.id, "index": index.manifest.content_sha256}


def _shares(done: Pass) -> dict[str, float]:
    """Which part of the wanted positions, and of the mass there, could be used."""
    tally = done.tally
    return {
        "positions": tally["positions"],
        "positions_kept": tally["positions_read"] / max(tally["positions"], 1.0),
        "mass_kept": tally["mass_kept"] / max(tally["positions_read"], 1.0),
    }


def _facts_of_api(read: Mapping[str, float]) -> dict[str, float]:
    """Of logprobs, why positions and mass could not be used; nothing for other kinds of access."""
    if "mass_listed" not in read:
        return {}
    cut = read["positions_cut"]
    return {
        "records": read["documents"],
        "records_silent": read["silent"],
        "records_generated": read["generated"],
        "positions_cut": cut,
        "positions_unlisted": read["positions"] - read["positions_read"] - cut,
        "mass_listed": read["mass_listed"] / max(read["positions_read"], 1.0),
    }


def _count(positions: Positions, reading: Reading) -> Reading:
    """The same reading with the documents counted in its tally."""
    seen = {
        "documents": float(len(positions.outputs)),
        "tokens": float(positions.tokens_read),
        "short_outputs": float(positions.short_outputs),
        "repeated": float(positions.repeated),
        "prompted": float(positions.prompted),
        "open_documents": float(positions.open_documents),
        "quoted": float(positions.quoted),
        "with_prompt": float(positions.with_prompt),
    }
    return replace(reading, tally={**seen, **reading.tally})


def _observe(
    access: str, done: Sequence[Pass], sha256: Mapping[str, str], walked: Iterable[Positions]
) -> Observations:
    """Sum the passes of suspect and reference up; `walked` is all that was read, once more."""
    read = done[0].tally
    if not read.get("positions_read"):
        raise DataError(
            f"{', '.join(sha256)}: must hold a context that was served marked; got "
            f"{int(read.get('documents', 0))} documents without one. Read served responses."
        )
    summed = sum_passes(done[0], done[1] if len(done) > 1 else None)
    described = [{**one.description["model"], **_shares(one)} for one in done]
    return Observations(
        contexts=summed.contexts,
        tokens=summed.tokens,
        masses=summed.masses,
        totals=summed.totals,
        expected=summed.expected,
        sampled=False,
        positions=int(read["positions_read"]),
        outputs=int(read["documents"]),
        tokens_read=int(read["tokens"]),
        short_outputs=int(read["short_outputs"]),
        repeated=int(read["repeated"]),
        prompted=int(read["prompted"]),
        quoted=int(read["quoted"]),
        with_prompt=int(read["with_prompt"]),
        sha256=sha256,
        reference=described[1] if len(described) > 1 else {},
        source={
            "access": access,
            "left_out": RULE,
            **described[0],
            "open_documents": int(read.get("open_documents", 0)),
            **_facts_of_api(read),
        },
        wide=collect_wide(walked),
    )
