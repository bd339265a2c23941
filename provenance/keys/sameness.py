"""When two tokenizer.json are one tokenizer: compared as JSON, never loaded.

What decides the ids of a text is the model (vocabulary, merges and flags), the normaliser, the
pre-tokeniser and the added tokens. Post-processor, padding and truncation act on special tokens and
lengths only, which are switched off here, and tokens are turned into text with the keyring's own
copy, so the decoder does not count either. Tools that train a model save its tokenizer again with
other bytes; that must not make a suspect unreadable. Knows JSON; knows no key and no text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from provenance.errors import ConfigurationMismatchError, DataError
from provenance.storage.files import canonical_json, parse_json, read_bytes

PARTS: Final = ("vocabulary", "merges", "model", "normaliser", "pre-tokeniser", "added tokens")
"""What must be the same, in the words of the messages."""
_MAXIMUM_GROWTH: Final = 16
"""Times that a file can grow by being saved again: indented, a merge takes four lines."""
_FREE_GROWTH: Final = 1 << 20
_BPE_DEFAULTS: Final[Mapping[str, Any]] = {
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
"""What older files leave out, and what nothing (an empty string, 0) is written as."""
_KNOWN: Final = {
    *("added_tokens", "decoder", "model", "normalizer", "padding"),
    *("post_processor", "pre_tokenizer", "truncation", "version"),
}
"""Parts of a file; one that is not among these counts as a part of the model."""
_ADDED_DEFAULTS: Final[Mapping[str, Any]] = dict.fromkeys(
    ("single_word", "lstrip", "rstrip", "special"), False
)


def read_same(path: Path | str, sha256: str, copy: Path | None, owner: str) -> bytes:
    """The tokenizer.json of this hash, if `path` is the same tokenizer.

    Parameters
    ----------
    path : a file that nobody vouches for
    sha256 : hex digest of the file that was fixed
    copy : where that file should be, if known; it counts only if its hash is right
    owner : whose tokenizer it must be, for the message

    Returns
    -------
    The bytes that were fixed: those of `path` or those of the copy. What nobody vouched for is
    compared, but never returned, so it is never loaded.

    Raises
    ------
    ConfigurationMismatchError (78) if it is another one, or cannot be compared for want of a copy;
    DataError, StorageError.
    """
    content = read_bytes(path)
    found = hashlib.sha256(content).hexdigest()
    if found == sha256:
        return content
    own = read_bytes(copy) if copy is not None and copy.is_file() else b""
    if hashlib.sha256(own).hexdigest() != sha256:
        got = (
            f"got {found[:16]}..., and without the copy of that file only the same bytes count. "
            "Put it beside keyring.json"
        )
    elif differing := compare_tokenizers(content, own, str(path)):
        got = f"got another {' and another '.join(differing)}. Pass the served model's"
    else:
        return own
    raise ConfigurationMismatchError(
        f"{path}: must be the tokenizer of {owner} (sha256 {sha256[:16]}...); {got}, or "
        "--other-tokenizer to read a model that has another tokenizer."
    )


def compare_tokenizers(content: bytes, own: bytes, origin: str) -> tuple[str, ...]:
    """Which of `PARTS` differ between a tokenizer.json and the keyring's own copy; () if none.

    Parameters
    ----------
    content : of a file that nobody vouches for
    own : of the copy whose hash the keyring fixed
    origin : names the first in messages

    Raises
    ------
    DataError if the first is no strict JSON.

    Notes
    -----
    What differs only in how it is written is the same: merges as "a b" or ["a", "b"], keys in
    another order, a sequence of one step, what older files leave out. Anything that this function
    does not know counts as a difference. Cost: parsing, about a second for 150,000 tokens.

    Examples
    --------
    >>> own = b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "padding": null}'
    >>> other = b'{"model": {"type": "BPE", "vocab": {"a": 1}, "merges": []}, "post_processor": {}}'
    >>> compare_tokenizers(other, own, "other.json")
    ('vocabulary',)
    """
    if len(content) > _MAXIMUM_GROWTH * len(own) + _FREE_GROWTH:
        return PARTS  # it is not parsed to find out which
    try:
        theirs = _describe(parse_json(content, origin))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        return PARTS
    except RecursionError as error:
        raise DataError(
            f"{origin}: must be strict JSON; it is nested too deeply. Pass a tokenizer.json."
        ) from error
    ours = _describe(parse_json(own, "tokenizer.json"))
    return tuple(part for part in PARTS if theirs[part] != ours[part])


def _describe(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Canonical bytes of each part."""
    model = dict(document["model"])
    vocabulary, merges = model.pop("vocab"), model.pop("merges", None)
    if merges is not None:
        model = {**_BPE_DEFAULTS, "type": "BPE", **model}
        merges = [_split_merge(merge) for merge in merges]
        for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
            model[name] = model[name] or None
    model = {
        **{name: value for name, value in document.items() if name not in _KNOWN},
        "version": document.get("version", "1.0"),
        "model": model,
    }
    added = [_describe_added(token) for token in document.get("added_tokens") or []]
    parts = (
        vocabulary,
        merges,
        model,
        _flatten(document.get("normalizer"), "normalizers"),
        _flatten(document.get("pre_tokenizer"), "pretokenizers"),
        sorted(added, key=canonical_json),
    )
    return {name: canonical_json(part) for name, part in zip(PARTS, parts, strict=True)}


def _split_merge(merge: Any) -> Any:
    """["a", "b"] of "a b"; whatever else is left as it is."""
    if isinstance(merge, str) and merge.count(" ") == 1:
        return merge.split(" ")
    return merge


def _describe_added(token: Mapping[str, Any]) -> dict[str, Any]:
    full = {**_ADDED_DEFAULTS, **token}
    return {"normalized": not full["special"], **full}


def _flatten(step: Any, name: str) -> list[Any]:
    """The steps of a normaliser or pre-tokeniser, nested sequences opened."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [inner for part in step[name] for inner in _flatten(part, name)]
    return [_describe_step(dict(step))]


def _describe_step(step: dict[str, Any]) -> dict[str, Any]:
    """One way to write the steps that versions of the library write differently."""
    if step["type"] == "ByteLevel":
        step.pop("trim_offsets", None)  # of offsets, not of ids
        return {"use_regex": True, **step}
    if step["type"] == "Metaspace":
        step.pop("str_rep", None)
        scheme = step.pop("prepend_scheme", "always")
        prefixed = step.pop("add_prefix_space", True)
        return {"split": True, **step, "prepend_scheme": scheme if prefixed else "never"}
    return step
