"""Learning rate schedule: a pure function of the step, so there is no state to move."""

from __future__ import annotations

import math

from liver_slurm.config.schema import TrainSection


def learning_rate(train: TrainSection, step: int) -> float:
    """Return the learning rate of step ``step``, counted from 0: linear warm-up to ``lr``, then decay to ``min_lr``.

    The shapes are those of Megatron's ``OptimizerParamScheduler``.
    """
    if step < train.lr_warmup_steps:
        return train.lr * (step + 1) / train.lr_warmup_steps
    if train.lr_decay_style == "constant":
        return train.lr
    end = train.lr_decay_steps or train.steps
    if step > end:
        return train.min_lr
    if train.lr_decay_style == "inverse-square-root":
        return max(train.min_lr, train.lr * math.sqrt(max(train.lr_warmup_steps, 1) / max(step, 1)))
    if train.lr_decay_style == "wsd":
        decay = train.wsd_decay_steps
        share = _wsd_share(train, (step - (end - decay)) / decay)
    else:
        progress = min((step - train.lr_warmup_steps) / max(end - train.lr_warmup_steps, 1), 1.0)
        share = 1.0 - progress if train.lr_decay_style == "linear" else _cosine(progress)
    return train.min_lr + share * (train.lr - train.min_lr)


def _wsd_share(train: TrainSection, progress: float) -> float:
    """Return what is left of the way from ``lr`` down to ``min_lr``, so far into the decay.

    Below 0 it has not begun.
    """
    progress = min(max(progress, 0.0), 1.0)
    shapes: dict[str, float] = {
        "linear": 1.0 - progress,
        "cosine": _cosine(progress),
        "exponential": 2.0 * 0.5**progress - 1.0,
        "minus-sqrt": 1.0 - math.sqrt(progress),
    }
    return shapes[train.lr_wsd_decay_style]


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))
