"""Checks of the files that a job's data are read from: the only ones that do I/O."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from liver_slurm.base.errors import BadInput
from liver_slurm.config.data_files import read_tokenizer, unreadable_data
from liver_slurm.config.problem import Problem, one_line, shown
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
    text, allowed = data.tokenizer, 'allowed: "byte", or a tokenizer.json'
    if text == "byte":
        return
    if not (os.path.isfile(text) and os.access(text, os.R_OK)):
        yield Problem("data.tokenizer", f"{shown(text, LONGEST_PATH)} is not a readable file; {allowed}")
        return
    try:
        read_tokenizer(Path(text))
    except BadInput as error:
        yield Problem("data.tokenizer", f"{one_line(error, LONGEST_PATH)}; {allowed}")
