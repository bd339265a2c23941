"""Two vocabularies: what each token spells, and which token of one is which of the other.

Tokens are the same if they add exactly the same bytes to a text: ▁the and Ġthe are both " the".
Knows tokenizer files and bytes; knows no text, model, key or scheme.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from provenance.errors import ConfigurationMismatchError, DataError, UsageError

_NONE: Final = -1
"""A token without a twin."""
_GAP: Final = b"\xff"
"""Stands for a token without bytes: no UTF-8 text has this byte."""
_BYTE_TOKEN: Final = re.compile("<0x([0-9A-F]{2})>")
_LOSSY_DECODERS: Final = {"WordPiece", "BPEDecoder", "CTC"}
_ROUNDING: Final = 1e-3


def token_bytes(tokenizer: Tokenizer) -> list[bytes | None]:
    """The bytes that each id adds to the text; None for control tokens and ids without bytes.

    Three families are read, told apart by what the tokenizer does and not by its name: byte-level
    (GPT-2's alphabet), SentencePiece-style (a sign such as ▁ for the space, with or without byte
    tokens such as <0x0A>), and whole words split at spaces (each word with the space before it).

    Raises
    ------
    ConfigurationMismatchError for any other tokenizer, WordPiece above all: its tokens do not spell
    the text.
    """
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    added = {token["id"]: token for token in content["added_tokens"]}
    vocabulary = model["vocab"]
    pieces = (
        {identifier: piece for piece, identifier in vocabulary.items()}
        if isinstance(vocabulary, dict)
        else {identifier: piece for identifier, (piece, _) in enumerate(vocabulary)}
    )
    found: list[bytes | None] = [None] * (max([-1, *pieces, *added]) + 1)
    family, space = _family(content)
    alphabet = byte_alphabet()
    fallback = bool(model.get("byte_fallback"))
    unknown = set() if family == "words" else {model.get("unk_token"), model.get("unk_id")}
    for identifier, piece in pieces.items():
        if identifier in added or piece in unknown or identifier in unknown:
            continue
        if family == "bytes":
            if alphabet.keys() >= set(piece):
                found[identifier] = bytes(alphabet[sign] for sign in piece)
        elif family == "words":
            found[identifier] = b" " + piece.encode()
        elif fallback and (match := _BYTE_TOKEN.fullmatch(piece)):
            found[identifier] = bytes([int(match[1], 16)])
        else:
            found[identifier] = piece.replace(space, " ").encode()
    for identifier, token in added.items():
        if not token["special"]:
            text = token["content"]
            found[identifier] = (text.replace(space, " ") if family == "signs" else text).encode()
    return [spelling or None for spelling in found]


def _family(content: Mapping[str, Any]) -> tuple[str, str]:
    """How pieces spell text (bytes, signs, words), and the sign of the space."""
    model = content["model"]
    steps = [step for part in ("normalizer", "pre_tokenizer") for step in _steps(content[part])]
    decoders = {step["type"] for step in _steps(content["decoder"])}
    types = {step["type"] for step in steps}
    spaces = {step["replacement"] for step in steps if step["type"] == "Metaspace"} | {
        step["content"]
        for step in steps
        if step["type"] == "Replace" and step["pattern"].get("String") == " "
    }
    spells = model["type"] in {"BPE", "Unigram"} and not (
        decoders & _LOSSY_DECODERS
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
    )
    decodes = "ByteLevel" in decoders or not decoders
    if spells and "ByteLevel" in types and decodes and not spaces:
        return "bytes", ""
    if spells and len(spaces) == 1 and min(spaces) and "ByteLevel" not in types | decoders:
        return "signs", min(spaces)
    if model["type"] == "WordLevel" and [step["type"] for step in steps] == ["WhitespaceSplit"]:
        return "words", ""
    raise ConfigurationMismatchError(
        "the tokenizer must be byte-level, SentencePiece-style or words split at spaces, so that "
        f"its tokens spell the text; got model {model['type']}, steps {sorted(types)}, decoder "
        f"{sorted(decoders)}. Test this model from its outputs instead."
    )


def _steps(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, sequences opened."""
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for name in ("normalizers", "pretokenizers", "decoders"):
        for step in part.get(name, []):
            yield from _steps(step)


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable sign of each byte: itself where it is printable, else from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {
        chr(0x100 + number): byte for number, byte in enumerate(others)
    }


@dataclass(frozen=True)
class TokenTable:
    """Byte strings of a vocabulary, laid out for arrays of ids.

    Attributes
    ----------
    strings : per id its bytes, or None
    lengths : int64 [V], bytes of each id, 0 for None
    signs, begins, widths : uint8 [.], int64 [V] and int64 [V], all strings one after another, where
        each begins and how long it is there; None takes one byte 0xFF
    """

    strings: tuple[bytes | None, ...]
    lengths: NDArray[np.int64]
    signs: NDArray[np.uint8]
    begins: NDArray[np.int64]
    widths: NDArray[np.int64]

    @classmethod
    def build(cls, strings: Sequence[bytes | None], size: int | None = None) -> TokenTable:
        """The table of `token_bytes`, padded with None to `size` ids: models can have more logits.

        Raises UsageError if `size` is below the number of strings.
        """
        size = len(strings) if size is None else size
        if size < len(strings):
            raise UsageError(
                f"size must be at least the {len(strings)} ids of the tokenizer; got {size}. "
                "Pass the tokenizer and the number of logits of the same model."
            )
        padded = tuple(string or None for string in strings) + (None,) * (size - len(strings))
        lengths = np.array([len(string or b"") for string in padded], dtype=np.int64)
        widths = np.maximum(lengths, 1)
        signs = np.frombuffer(b"".join(string or _GAP for string in padded), dtype=np.uint8)
        return cls(padded, lengths, signs, np.cumsum(widths) - widths, widths)

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.strings)

    def spell(self, ids: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """Bytes of the tokens one after another, 0xFF for a token without: uint8 [widths]."""
        widths = self.widths[ids]
        shifts = self.begins[ids] - (np.cumsum(widths) - widths)
        spelled: NDArray[np.uint8] = self.signs[np.repeat(shifts, widths) + np.arange(widths.sum())]
        return spelled


@dataclass(frozen=True)
class VocabularyMap:
    """Which served token has the same bytes as which token of the suspect.

    Attributes
    ----------
    served_of : int64 [suspect V], served id of each suspect id, or -1
    served_size : ids of the served vocabulary
    shared : part of the suspect's tokens with bytes that have a served twin
    reached : part of the served tokens with bytes that have a twin of the suspect
    first, more : int64 [.], suspect ids with a twin: the first of each twin, and all others
    """

    served_of: NDArray[np.int64]
    served_size: int
    shared: float
    reached: float
    first: NDArray[np.int64]
    more: NDArray[np.int64]

    @classmethod
    def build(cls, suspect: TokenTable, served: TokenTable) -> VocabularyMap:
        """Match the tokens of two tables; of served tokens with equal bytes the first one counts.

        Examples
        --------
        >>> suspect = TokenTable.build([None, b" the", b"a"])
        >>> VocabularyMap.build(suspect, TokenTable.build([b"a", b"b", b" the"])).served_of.tolist()
        [-1, 2, 0]
        """
        ids: dict[bytes, int] = {}
        for identifier, string in enumerate(served.strings):
            if string is not None:
                ids.setdefault(string, identifier)
        served_of = np.array(
            [_NONE if string is None else ids.get(string, _NONE) for string in suspect.strings],
            dtype=np.int64,
        )
        mapped = np.flatnonzero(served_of >= 0)
        first = mapped[np.unique(served_of[mapped], return_index=True)[1]]
        return cls(
            served_of=served_of,
            served_size=served.size,
            shared=mapped.shape[0] / max(int((suspect.lengths > 0).sum()), 1),
            reached=first.shape[0] / max(int((served.lengths > 0).sum()), 1),
            first=first,
            more=np.setdiff1d(mapped, first),
        )

    def map_masses(
        self, probabilities: NDArray[np.floating[Any]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Probabilities of the suspect's next token -> of the next served token.

        Parameters
        ----------
        probabilities : float [n, V], V at least the ids with a twin; columns behind them are lost

        Returns
        -------
        masses float64 [n, served V], rows that sum to 1, or zeros where nothing was kept; and kept
        float64 [n], the mass on shared tokens before renormalising.

        Raises
        ------
        UsageError for another shape; DataError for negative values, NaN or sums above 1.

        Notes
        -----
        Masses of suspect tokens with equal bytes add up. Cost: one pass; memory 8 bytes a mass.
        """
        probabilities = np.asarray(probabilities)
        needed = int(np.max(np.append(self.first, self.more), initial=_NONE)) + 1
        if probabilities.ndim != 2 or probabilities.shape[1] < needed:
            raise UsageError(
                f"probabilities must be [n, V] with V at least {needed}; got shape "
                f"{probabilities.shape}. Pass all next-token probabilities of the model."
            )
        masses = np.zeros((probabilities.shape[0], self.served_size))
        masses[:, self.served_of[self.first]] = probabilities[:, self.first]
        np.add.at(masses.T, self.served_of[self.more], probabilities[:, self.more].T)
        kept = _check_masses(probabilities, masses.sum(axis=1))
        masses /= np.where(kept > 0, kept, 1)[:, np.newaxis]
        return masses, kept


def _check_masses(
    probabilities: NDArray[np.floating[Any]], kept: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The kept masses, if all probabilities can be such."""
    low, high = np.min(probabilities, initial=0), np.max(kept, initial=0)
    if not (low >= 0 and high <= 1 + _ROUNDING):
        raise DataError(
            f"probabilities must be at least 0 and sum to at most 1; got {low:g} as the least and "
            f"{high:g} as a sum. Pass probabilities, not logits or logarithms."
        )
    return kept
