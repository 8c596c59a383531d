"""What rounding an optimizer's moments forbids."""

from __future__ import annotations

from collections.abc import Iterator

from liver_slurm.config.problem import Problem
from liver_slurm.config.train import TrainSection

_MOST_IN_BF16 = 0.996
"""Of a decay rate: two neighbours of 8 significant bits are up to 1/128 apart, and less than half of that is rounded
away."""
_RATES = {"adam": ("adam_beta1", "adam_beta2"), "sgd": ("sgd_momentum",)}


def moment_problems(train: TrainSection) -> Iterator[Problem]:
    """Find a decay that rounding to bf16 would undo."""
    if train.moments_precision == "fp32" or train.loop is not None:
        return
    for key in _RATES.get(train.optimizer, ()):
        if (rate := getattr(train, key)) > _MOST_IN_BF16:
            text = f"{rate} is lost in moments of bf16, which then never fall; allowed: <= {_MOST_IN_BF16}, or "
            yield Problem(f"train.{key}", text + 'train.moments_precision = "fp32"')
