"""Learning rate schedule: a pure function of the step, so there is no state to move."""

from __future__ import annotations

import math

from liver_slurm.config.schema import TrainSection


def learning_rate(train: TrainSection, step: int) -> float:
    """Learning rate of step ``step``, counted from 0: linear warm-up to ``lr``, then decay to ``min_lr``.

    The shapes are those of Megatron's ``OptimizerParamScheduler``.
    """
    if step < train.lr_warmup_steps:
        return train.lr * (step + 1) / train.lr_warmup_steps
    if train.lr_decay_style == "constant":
        return train.lr
    span = max((train.lr_decay_steps or train.steps) - train.lr_warmup_steps, 1)
    progress = min((step - train.lr_warmup_steps) / span, 1.0)
    share = 1.0 - progress if train.lr_decay_style == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return train.min_lr + share * (train.lr - train.min_lr)
