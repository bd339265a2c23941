"""Which files determine what a model says, by their hashes. Reads them; loads no model.

So a plan can name a model before anybody has torch at hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from provenance.keys.keyring import TOKENIZER_FILE
from provenance.storage.checkpoint import CONFIG_FILE, TEMPLATE_FILES, find_weights
from provenance.storage.files import sha256_of_file


def describe_model(folder: Path) -> dict[str, Any]:
    """Hashes of weights, configuration, tokenizer and chat template of a model's folder.

    The weights are the files that are loaded, and no others. Raises StorageError if weights,
    configuration or tokenizer are missing, DataError if the folder does not say which weights are
    meant (`provenance.storage.checkpoint`). Cost: one pass over the files.
    """
    return {
        "kind": "model",
        "weights": {path.name: sha256_of_file(path) for path in find_weights(folder)},
        "config": sha256_of_file(folder / CONFIG_FILE),
        "tokenizer": sha256_of_file(folder / TOKENIZER_FILE),
        "template": {
            name: sha256_of_file(folder / name)
            for name in TEMPLATE_FILES
            if (folder / name).exists()
        },
    }
