"""A model's own tokenizer beside the served one: what the model reads, and where to look.

Joins `alignment` (where both end a token) and `vocabularies` (which tokens are the same) for one
pair of tokenizers. Knows no model, no key and no scheme.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from provenance.keys.tokenizer import read_tokenizer, tokenise
from provenance.suspect.tokenizers.alignment import align
from provenance.suspect.tokenizers.vocabularies import TokenTable, VocabularyMap, token_bytes


class OtherTokenizer:
    """The tokenizer of a model that is not the served one.

    Parameters: its tokenizer.json, which is loaded; the served tokenizer; ids of the served model.

    Raises ConfigurationMismatchError if either cannot be spelled in bytes, DataError, StorageError.
    """

    def __init__(self, path: Path, served: Tokenizer, served_size: int) -> None:
        self._path = path
        self._tokenizer = read_tokenizer(path)
        self._served = TokenTable.build(token_bytes(served), served_size)
        self._own = TokenTable.build(token_bytes(self._tokenizer))
        self._map = VocabularyMap.build(self._own, self._served)

    @property
    def size(self) -> int:
        """Ids of the model's own tokenizer."""
        return self._own.size

    def align(self, served_ids: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """What the model reads for a served text, and its row of logits per served token or -1.

        Parameters: uint32 [n], prompt and document. Returns uint32 [m] and int64 [n]. Bytes that
        are no text (a character cut by the end of the document) are left out.
        """
        text = self._spell(served_ids).decode("utf-8", "ignore")
        own = tokenise(self._tokenizer, [text], f"{self._path}")[0]
        return own, align(text, served_ids, self._served, own, self._own).rows

    def split(
        self, prompt: NDArray[np.uint32], response: NDArray[np.uint32]
    ) -> tuple[NDArray[np.uint32], int]:
        """What the model reads for prompt and response, each tokenised by itself.

        Parameters: served ids. Returns uint32 [m] and the place where the response begins.
        """
        texts = [self._spell(part).decode("utf-8", "ignore") for part in (prompt, response)]
        own = tokenise(self._tokenizer, texts, f"{self._path}")
        return np.concatenate(own), own[0].shape[0]

    def _spell(self, served_ids: NDArray[np.uint32]) -> bytes:
        strings = self._served.strings
        return b"".join(strings[i] or b"" for i in served_ids.tolist())

    def map_masses(
        self, probabilities: NDArray[np.floating[Any]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See `VocabularyMap.map_masses`."""
        return self._map.map_masses(probabilities)
