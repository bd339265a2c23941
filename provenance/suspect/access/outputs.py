"""A suspect's outputs (text) -> how often it put which token after which context.

Knows the served tokenizer and the format of outputs; knows no key, no index and no scheme.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from provenance.coins.contexts import check_token_ids
from provenance.errors import DataError, UsageError
from provenance.keys.keyring import Keyring
from provenance.keys.tokenizer import tokenise, tokenise_placed
from provenance.storage.files import Paths, as_paths
from provenance.storage.shapes.reading import RecordFiles
from provenance.storage.shapes.requests import ReadAs
from provenance.suspect.observations import Observations, sum_pairs, totals_of_pairs
from provenance.suspect.planned import Chooser, Wanted
from provenance.suspect.positions import Chat, Positions, extends, find_positions
from provenance.suspect.quotations import RULE, Spelled, Speller, find_quotations
from provenance.suspect.shown import Shown, read_shown

_BATCH: Final = 4096
_BATCH_CHARACTERS: Final = 1 << 22
OUTPUT_FIELDS: Final = frozenset({"output", "outputs", "output_token_ids"})
"""Where a record of our form holds its answers; everything else was shown, or describes it."""
_Ids = NDArray[np.uint32]


@dataclass(frozen=True)
class Output:
    """One output and what was shown before it; `token_ids` wins over `text` if both are given.

    `shown.last_turns` are those that may be an output of `token_ids`; of texts, this is settled.
    """

    origin: str
    shown: Shown
    text: str | None
    token_ids: Sequence[int] | None


def outputs_of(record: Mapping[str, Any], origin: str) -> Iterator[Output]:
    """Outputs of one record of our form, and what the suspect was shown (`shown.read_shown`).

    `output` is a string, `outputs` a list of strings; `output_token_ids` (a list of ids of the
    served tokenizer) may stand instead. Raises DataError naming the place.
    """
    try:
        if "output_token_ids" in record:
            shown = read_shown(record, origin, OUTPUT_FIELDS)
            yield Output(origin, shown, None, record["output_token_ids"])
            return
        texts = [record["output"]] if "output" in record else record.get("outputs")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"{origin}: must have output (a string) or outputs (a list of strings); got "
                f"{sorted(record)}. See docs/formats.md for the shapes that are read."
            )
        if "output" in record and record.get("outputs") is not None:
            raise DataError(f"{origin}: must have output or outputs; got both. Keep one of them.")
        shown = _settle(read_shown(record, origin, OUTPUT_FIELDS), texts)
    except RecursionError as error:
        raise DataError(
            f"{origin}: must be JSON of a moderate depth; it is nested too deeply. Repair it."
        ) from error
    for text in texts:
        yield Output(origin, shown, text, None)


def observe(
    paths: Paths, tokenizer: Tokenizer, keyring: Keyring, reading: ReadAs | None = None
) -> Observations:
    """Count N(c, t) over all outputs of one file or several, see `read_positions`.

    Raises UsageError for anything but paths, and what `read_positions` raises.
    """
    files = as_paths(paths, "outputs")
    if not files:
        raise UsageError("outputs must be at least one file; got none. Name the suspect's outputs.")
    return count_positions(read_positions(files, tokenizer, keyring, reading))


def count_positions(positions: Positions) -> Observations:
    """N(c, t): how often each (context, token) stands at the positions. Cost: one sort."""
    contexts, tokens, (counts,) = sum_pairs(
        positions.contexts, positions.tokens, np.ones(positions.contexts.shape[0])
    )
    visited, visits = np.unique(positions.contexts, return_counts=True)
    return Observations(
        contexts=contexts,
        tokens=tokens,
        masses=counts,
        totals=totals_of_pairs(contexts, visited, visits.astype(np.int64)),
        expected=np.zeros(contexts.shape[0]),
        sampled=True,
        positions=int(positions.contexts.shape[0]),
        outputs=len(positions.outputs),
        tokens_read=positions.tokens_read,
        short_outputs=positions.short_outputs,
        repeated=positions.repeated,
        prompted=positions.prompted,
        quoted=positions.quoted,
        with_prompt=positions.with_prompt,
        sha256=positions.sha256,
        source={"access": "outputs", "left_out": RULE, **positions.reading},
        wide=positions.wide,
        asked=count_positions(positions.asked) if positions.asked else None,
    )


def read_positions(
    paths: Sequence[Path | str],
    tokenizer: Tokenizer,
    keyring: Keyring,
    reading: ReadAs | None = None,
    wanted: Wanted | None = None,
) -> Positions:
    """Read outputs and find the positions that count.

    Parameters
    ----------
    paths : files of outputs, in any shape of docs/formats.md, and folders of them
    tokenizer : the served tokenizer, see `provenance.keys.tokenizer.load_tokenizer`
    keyring : for its context width and vocabulary size
    reading : how the files are to be read; None: their shape is found out
    wanted : which of the outputs a plan wants; None: all

    Raises
    ------
    ConfigurationMismatchError for an output that the plan does not want;
    DataError for a malformed record or if no output has more than k tokens; StorageError.

    Notes
    -----
    Cost: tokenising (about 1 M tokens per second and core), comparing with the prompts
    (`find_quotations`) and sorting; memory about 100 bytes a token.
    """
    files = RecordFiles(paths, reading)
    width = keyring.context_width
    desk = _Desk(tokenizer, keyring.vocabulary_size, width)
    chooser = Chooser(wanted or Wanted())
    for origin, record in files:
        for output in outputs_of(record, origin):
            if chooser.takes(output.shown, output.origin):
                desk.take(output)
    desk.finish()
    if all(ids.shape[0] <= width for ids in desk.outputs):
        raise DataError(
            f"{', '.join(map(str, paths))}: at least one output must have more than {width} "
            f"tokens; got {len(desk.outputs)} outputs without one"
            f"{files.say_empty()}. Collect longer outputs."
        )
    sha256, described = files.sha256, files.describe()
    found = find_positions(desk.outputs, desk.prompts, desk.prompt_rows, width, sha256, desk.quoted)
    asked = find_positions(desk.asked, [], [], width, {})
    return replace(
        found,
        chats=desk.chats if any(desk.chats) else (),
        asked=asked if asked.contexts.size else None,
        reading={**({"reading": described} if described else {}), **chooser.describe()},
    )


def _settle(shown: Shown, outputs: Sequence[str]) -> Shown:
    """The same with its last turns told apart from these outputs; shared by all of them."""
    texts, chat = shown.before(outputs)
    return Shown(texts, shown.token_ids, chat)


def _was_shown_something(shown: Shown) -> bool:
    return bool(shown.texts or shown.last_turns) or shown.token_ids is not None


@dataclass
class _Desk:
    """Tokenises outputs and prompts batch by batch, and compares them as texts.

    outputs, chats, quoted : one per output; prompts, prompt_rows : ids of every part of a prompt
    with the number of its output; asked : ids of every distinct text of a prompt
    """

    tokenizer: Tokenizer
    vocabulary_size: int
    width: int
    outputs: list[_Ids] = field(default_factory=list)
    chats: list[Chat | None] = field(default_factory=list)
    quoted: list[NDArray[np.bool_]] = field(default_factory=list)
    prompts: list[_Ids] = field(default_factory=list)
    prompt_rows: list[int] = field(default_factory=list)
    asked: list[_Ids] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._speller = Speller(self.tokenizer, self.vocabulary_size)
        self._batch: list[Output] = []
        self._characters = 0
        self._seen: set[bytes] = set()

    def take(self, output: Output) -> None:
        """One more output."""
        before = self._batch[-1].shown if self._batch else None
        self._batch.append(output)
        self._characters += len(output.text or output.token_ids or "")
        if output.shown is not before:
            texts, old = output.shown.texts, before.texts if before else ()
            new = texts[len(old) :] if extends(texts, old) else texts
            self._characters += sum(map(len, new))
        if len(self._batch) == _BATCH or self._characters > _BATCH_CHARACTERS:
            self.finish()

    def finish(self) -> None:
        """Work through what is left."""
        batch, self._batch, self._characters = self._batch, [], 0
        if not batch:
            return
        origin = batch[0].origin
        ids, spelled = self._spell(batch, origin)
        settled = [
            output.shown if output.token_ids is None else _settle(output.shown, [one.text])
            for output, one in zip(batch, spelled, strict=True)
        ]
        parts = self._tokenise_prompts(settled, origin)
        shown = []
        for row, (output, one) in enumerate(zip(batch, settled, strict=True)):
            own = [parts[text] for text in one.texts]
            texts = one.texts
            if one.token_ids is not None:
                own.append(check_token_ids(one.token_ids, self.vocabulary_size, output.origin))
                texts += (self._speller.spell(own[-1]).text,)
            self.prompts += own
            self.prompt_rows += [len(self.outputs) + row] * len(own)
            self._ask(texts, own)
            shown.append(texts)
        self.chats += [one.chat for one in settled]
        self.quoted += find_quotations(spelled, shown, self.width, drawn_by_suspect=True)
        self.outputs += ids

    def _spell(self, batch: Sequence[Output], origin: str) -> tuple[list[_Ids], list[Spelled]]:
        """Ids and text of each output, whichever it was given as."""
        compared = [_was_shown_something(output.shown) for output in batch]
        texts = [output.text or "" for output in batch]
        # where each token stands matters only beside something shown, and costs as much again
        placed = iter(tokenise_placed(self.tokenizer, list(compress(texts, compared)), origin))
        alone = [not one for one in compared]
        plain = iter(tokenise(self.tokenizer, list(compress(texts, alone)), origin))
        ids: list[_Ids] = []
        spelled: list[Spelled] = []
        for output, beside in zip(batch, compared, strict=True):
            if beside:
                own, offsets = next(placed)
            else:
                own = next(plain)
                offsets = np.zeros((own.size, 2), dtype=np.int64)
            if output.token_ids is None:
                ids.append(own)
                spelled.append(Spelled.of_offsets(output.text or "", offsets))
            else:
                size, where = self.vocabulary_size, output.origin
                ids.append(check_token_ids(output.token_ids, size, where))
                spelled.append(self._speller.spell(ids[-1]))
        return ids, spelled

    def _tokenise_prompts(self, settled: Sequence[Shown], origin: str) -> dict[str, _Ids]:
        """Ids of every text of a prompt, each once."""
        texts = list(dict.fromkeys(text for one in settled for text in one.texts))
        return dict(zip(texts, tokenise(self.tokenizer, texts, origin), strict=True))

    def _ask(self, texts: Sequence[str], parts: Sequence[_Ids]) -> None:
        """Keep the texts that no earlier output was shown."""
        for text, part in zip(texts, parts, strict=True):
            name = hashlib.blake2b(text.encode("utf-8", "surrogatepass")).digest()
            if name not in self._seen:
                self._seen.add(name)
                self.asked.append(part)
