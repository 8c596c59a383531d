"""Checks of the files that a job's data are read from: the only ones that do I/O."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from liver_slurm.config.problem import Problem, shown
from liver_slurm.config.schema import DataSection
from liver_slurm.config.validation import DataKey, ValidationSection

LONGEST_PATH = 4096


def file_problems(key: DataKey, data: DataSection | ValidationSection) -> Iterator[Problem]:
    """Find paths of training or validation data that cannot be read."""
    for text in data.paths:
        if reason := unreadable_data(Path(text)):
            allowed = "text files, folders, or .bin/.idx prefixes that can be read"
            yield Problem(f"{key}.paths", f"{shown(text, LONGEST_PATH)} {reason}; allowed: {allowed}")


def tokenizer_problems(data: DataSection) -> Iterator[Problem]:
    """Find a tokenizer that is no file that can be read."""
    text = data.tokenizer
    if text != "byte" and not (os.path.isfile(text) and os.access(text, os.R_OK)):
        yield Problem(
            "data.tokenizer",
            f'{shown(text, LONGEST_PATH)} is not a readable file; allowed: "byte", or a tokenizer.json',
        )


def unreadable_data(path: Path) -> str | None:
    """Say why a path of ``data.paths`` cannot be read; None: it is a readable file, folder or .bin/.idx prefix."""
    pair = [Path(f"{path}{suffix}") for suffix in (".bin", ".idx")]
    if path.is_dir():
        return None if os.access(path, os.R_OK | os.X_OK) else "is a folder that you may not read"
    if path.is_file():
        return None if os.access(path, os.R_OK) else "is a file that you may not read"
    missing = [one.name for one in pair if not one.is_file()]
    if len(missing) == 2:
        return "is no file, no folder and no .bin/.idx prefix"
    if missing:
        return f"is a .bin/.idx prefix without its {missing[0]}"
    return None if all(os.access(one, os.R_OK) for one in pair) else "is a .bin/.idx prefix that you may not read"
