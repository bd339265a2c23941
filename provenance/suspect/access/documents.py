"""Documents for a model to read: rows of a served log, and the positions in them that matter.

A position matters if its context was served marked at all: reached, whatever was drawn there, the
end token too, so a document is read with the token that ended it. Documents must be all that was
generated, or a choice made without looking at what was generated: whoever keeps the good responses
keeps the tokens that a good innocent model likes, see docs/validity.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tokenizers import Tokenizer

from provenance.errors import DataError
from provenance.marks import Served
from provenance.served.index import Index
from provenance.served.log import read_log
from provenance.suspect.passes import PART_DOCUMENTS
from provenance.suspect.positions import Positions, find_positions
from provenance.suspect.quotations import Speller, find_quotations


@dataclass(frozen=True)
class Documents:
    """Documents to read, in parts.

    Attributes
    ----------
    paths : files of a served log
    tokenizer : the served one, for records without token ids
    index, keyring : say which contexts were served (the selector and the counts, no marking key)
    limit : read at most so many, the first ones; None: all
    unmarked_only : leave marked responses out. For a model with another tokenizer this must be so:
        whether a position can be read then depends on how the token that stands there is cut, and
        in a marked response the coins chose that token
    """

    paths: Sequence[Path]
    tokenizer: Tokenizer
    index: Index
    keyring: Served
    limit: int | None = None
    unmarked_only: bool = False

    def __iter__(self) -> Iterator[tuple[Positions, NDArray[np.bool_]]]:
        """Positions of each part, and which of them matter: bool [m].

        Raises DataError if no document is left; memory: one part.
        """
        left, some = self.limit, False
        width = self.keyring.context_width
        speller = Speller(self.tokenizer, self.keyring.public.vocabulary_size)
        for batch in self._read():
            if left is not None:
                batch = batch.slice(0, left)
                left -= batch.num_rows
            some = some or bool(batch.num_rows)
            if batch.num_rows:
                outputs = _lists(batch.column("token_ids"))
                rows = list(range(len(outputs)))
                prompts = _lists(batch.column("prompt_token_ids"))
                # the model reads what stands before: it copies from there in any other form, too
                quoted = find_quotations(
                    [speller.spell(ids) for ids in outputs],
                    [(speller.spell(ids).text,) if ids.size else () for ids in prompts],
                    width,
                    drawn_by_suspect=False,
                )
                positions = find_positions(outputs, prompts, rows, width, {}, quoted)
                unknown = pc.and_(batch.column("marked"), pc.invert(batch.column("whole")))
                positions = replace(positions, open_documents=unknown.true_count)
                yield positions, find_served(positions.contexts, self.index, self.keyring)
            if left == 0:
                break
        if not some:
            kind = "an unmarked response" if self.unmarked_only else "a response"
            advice = (
                "A model with another tokenizer can only read unmarked responses"
                if self.unmarked_only
                else "Name a served log"
            )
            raise DataError(
                f"{', '.join(map(str, self.paths))}: must have {kind} to read; there is none. "
                f"{advice}."
            )

    def _read(self) -> Iterator[pa.RecordBatch]:
        """The rows to read, some of them at a time."""
        for batch in read_log(
            self.paths,
            tokenizer=self.tokenizer,
            vocabulary_size=self.keyring.public.vocabulary_size,
            batch_rows=PART_DOCUMENTS,
        ):
            marked = batch.column("marked")
            yield batch.filter(pc.invert(marked)) if self.unmarked_only else batch


def _lists(column: pa.Array) -> list[NDArray[np.uint32]]:
    """Ids of every row, none where the row has none."""
    none = np.empty(0, dtype=np.uint32)
    return [row.values.to_numpy() if row.is_valid else none for row in column]


def find_served(contexts: NDArray[np.int64], index: Index, keyring: Served) -> NDArray[np.bool_]:
    """Which contexts were served in any marked response: int64 [n] -> bool [n].

    For whoever has to compute something expensive per context. Looks at the selector only.
    """
    distinct, names = np.unique(contexts, return_inverse=True)
    served = np.zeros(distinct.shape[0], dtype=np.bool_)
    slots = keyring.slots_of_names(distinct)
    for number in range(len(keyring.schedule.slots)):
        own = np.flatnonzero(slots == number)
        served[own[index.lookup(number, distinct[own]).query]] = True
    return served[names]
