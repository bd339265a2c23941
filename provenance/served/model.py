"""A local model and its tokenizer, loaded whole or not at all.

`from_pretrained` fills tensors that it does not find with random numbers and says so in a warning.
A suspect that is read that way is partly noise: it looks innocent. So what was loaded must be
exactly what the folder holds, and what the folder holds must be a model.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provenance.errors import (
    ConfigurationMismatchError,
    DataError,
    MissingExtraError,
    StorageError,
    say_briefly,
)
from provenance.keys.keyring import TOKENIZER_FILE
from provenance.storage.checkpoint import CONFIG_FILE, TEMPLATE_FILES, check_checkpoint
from provenance.storage.files import read_bytes

try:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging
except ImportError as error:
    raise MissingExtraError(
        "loading a model must have torch; it is not installed.", "torch"
    ) from error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SHARED = 4
"""Tokens that two texts share, to see whether a model looks ahead."""


def load_model(folder: Path | str) -> PreTrainedModel:
    """A local causal language model, in evaluation mode: safetensors only, no code of the folder.

    Tied weights (an output layer that is the embedding) and constants that old checkpoints store
    may be missing or beside; everything else must match tensor for tensor.

    Raises
    ------
    StorageError if it does not load. DataError naming the folder if tensors are missing, unexpected
    or of another shape, if a tensor holds NaN or infinity, if a weight matrix holds only zeros, and
    for what `provenance.storage.checkpoint` refuses: adapters, quantised weights, code.

    Notes
    -----
    Cost: loading, and one pass over the weights.
    """
    check_checkpoint(folder)
    try:
        with _quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except Exception as error:  # configurations and kernels raise what they like
        raise StorageError(
            f"{folder}: must be a transformers model with safetensors weights; got: "
            f"{say_briefly(error)}"
        ) from error
    _check_report(report, folder)
    _check_values(model, folder)
    _check_causality(model.eval(), folder)
    return model


def load_tokenizer_of(folder: Path | str) -> PreTrainedTokenizerBase:
    """A local model's tokenizer with its chat template; no code of the folder is run.

    Raises StorageError if it does not load. A tokenizer file is data that can hang its reader:
    compare its fingerprint first, or ask the user.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for malformed files
        raise StorageError(
            f"{folder}: must have a tokenizer that transformers can load; got: {say_briefly(error)}"
        ) from error


def check_rows(model: PreTrainedModel, needed: int, folder: Path | str) -> int:
    """Ids that the model can read, if they are at least the `needed` ones of its tokenizer.

    Raises ConfigurationMismatchError (78) otherwise: model and tokenizer are not of one another.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    if rows < needed:
        raise ConfigurationMismatchError(
            f"{folder}: the model must have an embedding for each of the {needed} tokens of its "
            f"tokenizer; it has {rows}. Put the tokenizer.json into the folder that belongs there."
        )
    return rows


def load_template_of(folder: Path | str, tokenizer: bytes) -> PreTrainedTokenizerBase:
    """As `load_tokenizer_of`, with the bytes of a tokenizer.json that can be trusted.

    Only the chat template and the names of special tokens come from the folder.
    """
    with tempfile.TemporaryDirectory(prefix="provenance-") as own:
        for name in (CONFIG_FILE, *TEMPLATE_FILES, "special_tokens_map.json"):
            if (Path(folder) / name).is_file():
                (Path(own) / name).write_bytes(read_bytes(Path(folder) / name))
        (Path(own) / TOKENIZER_FILE).write_bytes(tokenizer)
        try:
            return load_tokenizer_of(own)
        except StorageError as error:
            raise StorageError(str(error).replace(own, str(folder))) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without bars and warnings: what is wrong is raised, in one line."""
    before = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_report(report: Mapping[str, Any], folder: Path | str) -> None:
    """What transformers says of the tensors, which must be nothing."""
    mismatched = [
        f"{name} (stored {_shape(stored)}, needed {_shape(wanted)})"
        for name, stored, wanted in sorted(report["mismatched_keys"])
    ]
    for what, names in (
        ("missing", sorted(report["missing_keys"])),
        ("not the model's", sorted(report["unexpected_keys"])),
        ("of another shape", mismatched),
        ("not readable", sorted(report["error_msgs"])),
    ):
        if names:
            first = names[0].partition("\n")[0][:120]
            raise DataError(
                f"{folder}: every tensor of the model must be in its files, and no other; "
                f"{len(names)} are {what}, the first is {first}. "
                "Give the folder as the training saved it, with its own config.json."
            )


def _check_values(model: PreTrainedModel, folder: Path | str) -> None:
    """Refuse weights that are no numbers, and whole matrices of zeros (a save that failed)."""
    with torch.inference_mode():
        for name, weight in model.named_parameters():
            if not weight.numel():
                continue
            greatest = float(weight.abs().amax())  # NaN if one is
            if not math.isfinite(greatest):
                raise DataError(
                    f"{folder}: weights must be finite numbers; {name} holds NaN or infinity. "
                    "Save the model again; its training may have diverged."
                )
            if greatest == 0 and weight.ndim > 1:
                raise DataError(
                    f"{folder}: a weight matrix must not be all zeros; {name} is. "
                    "Save the model again, gathered from all devices."
                )


def _check_causality(model: PreTrainedModel, folder: Path | str) -> None:
    """Two texts that begin alike must be predicted alike there."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    ids = torch.stack([torch.arange(1, 9), torch.arange(1, 9)]) % rows
    ids[1, _SHARED:] = (ids[1, _SHARED:] + 1) % rows
    try:
        with torch.inference_mode():
            output = model(
                input_ids=ids.to(model.device),
                attention_mask=torch.ones_like(ids).to(model.device),
                use_cache=False,
            )
        one, two = output.logits[:, :_SHARED].float()
    except Exception as error:  # code of any architecture
        raise DataError(
            f"{folder}: the model must be able to read a text; got: {say_briefly(error)}. "
            "Give a causal language model."
        ) from error
    precision = max(256 * torch.finfo(torch.float32).eps, 4 * torch.finfo(model.dtype).eps)
    if float((one - two).abs().max()) > precision * float(one.abs().max()):
        raise DataError(
            f"{folder}: a model must predict each token from those before it; this one sees what "
            "comes after. Give a causal language model."
        )


def _shape(sizes: Any) -> str:
    return "x".join(map(str, sizes))
