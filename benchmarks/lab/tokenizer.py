"""Byte-level BPE of 4,096 tokens: any text survives encode and decode unchanged.

The one exception is text that spells a special token: it becomes that token, and `decode` skips it.
This module knows no corpus layout and no model.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 4096
END, PAD = "<|end|>", "<|pad|>"
END_ID, PAD_ID = 0, 1


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE tokenizer; ids 0 and 1 are the end-of-text and the pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(work: Path) -> Tokenizer:
    """The tokenizer saved by stage 1."""
    return Tokenizer.from_file(str(work / "tokenizer.json"))


def save_beside_model(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer files such that `AutoTokenizer.from_pretrained(directory)` works."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def exact_prefix(tokenizer: Tokenizer, text: str, tokens: int) -> str | None:
    """The first tokens of the text as text, or None if it would not tokenise back to them."""
    ids = tokenizer.encode(text).ids[:tokens]
    prefix = tokenizer.decode(ids)
    return prefix if len(ids) == tokens and tokenizer.encode(prefix).ids == ids else None
