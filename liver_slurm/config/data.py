"""Section of a job file about the training data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from liver_slurm.config.types import Count, Flag, FunctionName, Natural, PathText, Positive, TokenizerText


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
    eod: Natural | None = None
    """Token that ends a document. Default: the tokenizer's."""
    reset_position_ids: Flag = False
    """Count positions from the beginning of each document in a sample, not of the sample."""
    reset_attention_mask: Flag = False
    """Keep the documents of a sample apart: tokens attend to those of their own document only."""
    eod_mask_loss: Flag = False
    """Leave out the loss of what is predicted from the end of a document, which is the next document's first token."""
    packing: Literal["none", "best_fit"] = "none"
    """How documents come into samples. ``none``: they lie end to end, and a sample is what falls on it. ``best_fit``:
    samples hold whole documents, as many as fit; longer ones are cut. It needs eod_mask_loss."""
    packing_window: Count = 65536
    """Documents, one after the other in the data, that are packed together."""
    provider: FunctionName | None = None
    """Function that gives your own data, as ``package.module:function``. See docs/models.md."""

    @property
    def resets(self) -> bool:
        """Whether layers have to know where documents begin."""
        return self.reset_position_ids or self.reset_attention_mask
