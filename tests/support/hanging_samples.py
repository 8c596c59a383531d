"""``data.provider`` of a run in which a step of ``live-1`` never ends: its training thread hangs, and no other one."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
from paced_samples import PacedSamples

from liver_slurm.config.schema import JobConfig

HANGS_AT = 12
"""Step."""


class HangingSamples(PacedSamples):
    """Samples of which a step comes in which the gradients are never final on one worker."""

    def batch(self, first: int, count: int) -> np.ndarray[Any, Any]:
        if first // self._global == HANGS_AT and "live-1" in sys.argv:
            import liver_slurm.engine.megatron.step as engine

            engine._prepare_gradients = lambda _state: threading.Event().wait()  # type: ignore[assignment]
        return super().batch(first, count)


def provide(config: JobConfig) -> HangingSamples:
    """Provide them at full speed."""
    return HangingSamples(config, pace=0.0)
