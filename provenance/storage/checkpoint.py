"""The checkpoint in a model's folder: which files its weights are, and whether they are whole.

transformers is lenient where a verdict must not be: it prefers a stale `model.safetensors` to the
index beside it, reads the base model where the folder holds an adapter, fills what is missing with
random numbers and drops what it does not know. So the folder must name one checkpoint without
doubt before anything is loaded. Reads names, types and headers; loads no weights, needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from provenance.errors import DataError, StorageError, say_briefly
from provenance.storage.files import read_bytes, read_json

CONFIG_FILE: Final = "config.json"
TEMPLATE_FILES: Final = ("tokenizer_config.json", "chat_template.jinja")
"""Where a chat template may stand."""
_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_OTHER_SPELLING: Final = "consolidated"
"""Files of this name hold the same weights under Mistral's own names; transformers ignores them."""
_FLOATS: Final = {"F16", "BF16", "F32", "F64"}
_BUFFERS: Final = ("inv_freq", "position_ids", "attn.bias", "attention.bias", "masked_bias")
"""Ends of the names of constants that old checkpoints store; they are computed, not learned."""


def find_weights(folder: Path | str) -> tuple[Path, ...]:
    """The files that transformers loads as the weights of this folder, in the order of their names.

    Either `model.safetensors`, or all that `model.safetensors.index.json` names, and never both.

    Raises
    ------
    StorageError if there are none or one is missing; DataError if the folder holds an adapter, or
    other safetensors files beside, so that it does not say which weights are meant.
    """
    folder = Path(folder)
    _refuse_adapter(folder)
    single, index = folder / _SINGLE, folder / _INDEX
    if single.is_file() and index.is_file():
        raise DataError(
            f"{folder}: must hold one checkpoint; it holds {_SINGLE} and {_INDEX}, and one of them "
            "is stale. Move the files that are not the model elsewhere."
        )
    if not single.is_file() and not index.is_file():
        raise StorageError(
            f"{folder}: must hold {_SINGLE} or {_INDEX}; it holds neither. "
            "Save the model with save_pretrained (safetensors)."
        )
    names = {_SINGLE} if single.is_file() else _read_index(index)
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise StorageError(
            f"{folder}: must hold the {len(names)} files that {_INDEX} names; {len(missing)} are "
            f"missing, the first is {missing[0]}. Copy the model again."
        )
    others = {path.name for path in folder.glob("*.safetensors")} - names
    others = {name for name in others if not name.startswith(_OTHER_SPELLING)}
    if others:
        raise DataError(
            f"{folder}: must hold no weights but those that are loaded; {min(others)} is beside "
            f"{min(names)} and would not be read. Move the files that are not the model elsewhere."
        )
    return tuple(folder / name for name in sorted(names))


def check_checkpoint(folder: Path | str) -> None:
    """Refuse a checkpoint that would not be read as what it is; cost: headers only.

    Raises
    ------
    DataError for a configuration that wants code of its own, quantised weights or another file of
    weights, for tensors that are no floats, and for a tensor that is stored twice; StorageError if
    a file cannot be read; and what `find_weights` raises.
    """
    folder = Path(folder)
    files = find_weights(folder)
    _check_configuration(_read_configuration(folder / CONFIG_FILE), folder / CONFIG_FILE)
    seen: dict[str, Path] = {}
    for path in files:
        for name, kind in _read_header(path).items():
            if name in seen:
                raise DataError(
                    f"{path}: must not hold tensors of {seen[name].name}; it holds {name} again. "
                    "Save the model again."
                )
            seen[name] = path
            if kind not in _FLOATS and not name.endswith(_BUFFERS):
                raise DataError(
                    f"{path}: tensors must be floats of 16, 32 or 64 bits; {name} is {kind}. "
                    "Save the model without quantisation."
                )


def _refuse_adapter(folder: Path) -> None:
    """An adapter alone is no model, and one beside a base model would be loaded or left out."""
    found = sorted(
        path.name
        for pattern in ("adapter_config.json", "adapter_model.*", "adapter*.safetensors")
        for path in folder.glob(pattern)
    )
    if found:
        raise DataError(
            f"{folder}: must hold a whole model; it holds an adapter ({found[0]}). Merge it into "
            "its base model (peft: merge_and_unload, then save_pretrained) and give that folder."
        )


def _read_index(path: Path) -> set[str]:
    """File names of an index of shards."""
    document = read_json(path)
    names = document.get("weight_map") if isinstance(document, dict) else None
    if (
        not isinstance(names, dict)
        or not names
        or not all(isinstance(name, str) and _is_plain(name) for name in names.values())
    ):
        raise DataError(
            f"{path}: weight_map must map tensors to safetensors files of this folder; it does "
            "not. Save the model again."
        )
    return set(names.values())


def _is_plain(name: str) -> bool:
    """A file name without a folder, of safetensors."""
    return name == Path(name).name and name.endswith(".safetensors")


def _read_configuration(path: Path) -> Mapping[str, Any]:
    """As transformers reads it: some configurations hold Infinity. StorageError if it cannot."""
    content = read_bytes(path)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StorageError(
            f"{path}: must be the configuration of a transformers model; it is no JSON. "
            "Copy the model again."
        ) from error
    if not isinstance(document, dict):
        raise StorageError(
            f"{path}: must be the configuration of a transformers model; it is no object. "
            "Copy the model again."
        )
    return document


def _check_configuration(document: Mapping[str, Any], path: Path) -> None:
    rules = {
        "auto_map": (
            "code of its own, which is never run",
            "Save the model as a class of transformers, or test it from its outputs",
        ),
        "quantization_config": (
            "quantised weights",
            "Save the model without quantisation, or test it from its outputs",
        ),
        "compression_config": (
            "compressed weights",
            "Save the model without compression, or test it from its outputs",
        ),
        "transformers_weights": (
            "another file of weights",
            "Save the model again with save_pretrained",
        ),
    }
    for name, (meaning, advice) in rules.items():
        if document.get(name):
            raise DataError(f"{path}: must not name {name} ({meaning}); it does. {advice}.")


def _read_header(path: Path) -> dict[str, str]:
    """Type of every tensor of a safetensors file, by its name."""
    try:
        with safe_open(path, framework="np") as file:
            return {name: str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{path}: must be a whole safetensors file; got: {say_briefly(error)}. "
            "Copy the model again."
        ) from error
