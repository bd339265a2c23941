"""Which files determine what a model says, by their hashes. Reads them; loads no model.

So a plan can name a model before anybody has torch at hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from provenance.files import sha256_of_file
from provenance.keys.keyring import TOKENIZER_FILE

__all__ = ["TEMPLATE_FILES", "describe_model"]

TEMPLATE_FILES: Final = ("tokenizer_config.json", "chat_template.jinja")


def describe_model(folder: Path) -> dict[str, Any]:
    """Hashes of weights, configuration, tokenizer and chat template of a model's folder.

    Raises StorageError if configuration or tokenizer is missing. Cost: one pass over the files.
    """
    return {
        "kind": "model",
        "weights": {
            path.name: sha256_of_file(path) for path in sorted(folder.glob("*.safetensors"))
        },
        "config": sha256_of_file(folder / "config.json"),
        "tokenizer": sha256_of_file(folder / TOKENIZER_FILE),
        "template": {
            name: sha256_of_file(folder / name)
            for name in TEMPLATE_FILES
            if (folder / name).exists()
        },
    }
