"""The exponential moving average of the weights: how it is updated, by the optimizer and by who replays it."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def average(averages: Sequence[torch.Tensor], masters: Sequence[torch.Tensor], decay: float) -> None:
    """Bring averages to the masters as an update has left them: ``average += (1 - decay) * (master - average)``.

    Element by element, so that any slice of it is the same bit for bit, and with no temporaries.
    """
    if averages:
        torch._foreach_lerp_(list(averages), list(masters), 1.0 - decay)
