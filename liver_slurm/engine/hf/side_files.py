"""Files beside the weights of a Hugging Face model: its tokenizer, and how text is made with it."""

from __future__ import annotations

import shutil
from pathlib import Path

from liver_slurm.base.files import sync_file
from liver_slurm.config.from_hf import TOKENIZER

_SIDE_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def copy_side_files(source: Path, target: Path) -> list[str]:
    """Copy what there is of them; returns their names.

    Raises:
        OSError: one cannot be copied.
    """
    found = [name for name in _SIDE_FILES if (source / name).is_file()]
    for name in found:
        shutil.copyfile(source / name, target / name)
        sync_file(target / name)
    return found
