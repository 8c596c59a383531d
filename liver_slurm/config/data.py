"""Section of a job file about the training data."""

from __future__ import annotations

from dataclasses import dataclass

from liver_slurm.config.types import FunctionName, PathText, Positive, TokenizerText


@dataclass(frozen=True)
class DataSection:
    """The training data."""

    paths: tuple[PathText, ...] = ()
    """Text files, folders, or .bin/.idx prefixes. Environment variables are expanded, and ``$PYTHON_STDLIB``, the
    folder of Python's own library."""
    weights: tuple[Positive, ...] = ()
    """Blend: a weight for each path, relative to their sum, which says how many of the samples are from it. Default:
    all paths are one set of data, of which each sample comes once an epoch."""
    tokenizer: TokenizerText = "byte"
    """Tokenizer: ``byte``, or the path of a Hugging Face ``tokenizer.json``."""
    provider: FunctionName | None = None
    """Function that gives your own data, as ``package.module:function``. See docs/models.md."""
