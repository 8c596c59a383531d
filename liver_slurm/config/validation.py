"""Section of a job file about validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from liver_slurm.config.types import Count, Flag, FunctionName, Natural, PathText, Positive

DataKey = Literal["data", "validation"]
"""Section that names data: to train on, to validate with. Both have ``paths`` and ``provider``."""


@dataclass(frozen=True)
class ValidationSection:
    """The loss of data that is not trained on: at the same steps, and of the same samples, in whatever layout."""

    paths: tuple[PathText, ...] = ()
    """Text files, folders, or .bin/.idx prefixes, as ``data.paths``. With none, and no provider, nothing is
    validated."""
    weights: tuple[Positive, ...] = ()
    """Blend, as ``data.weights``. All that such data has are the samples until one of the paths would begin again."""
    provider: FunctionName | None = None
    """Function that gives your own validation data, as ``data.provider``."""
    every: Count = 1000
    """Steps between two validations. There is one after the last step, too."""
    samples: Count | None = None
    """Samples of each validation, the same ones each time. Default: all that the data has. What is left over of
    micro_batch_size is left out."""
    patience: Natural = 0
    """Validations in a row without a new best loss after which the run ends; with 0 it trains all its steps."""
    keep_best: Flag = False
    """Write a checkpoint after each validation with a new best loss, and keep the best one next to the newest."""

    @property
    def wanted(self) -> bool:
        """Whether there is anything to validate with."""
        return bool(self.paths) or self.provider is not None
