"""``data.provider`` of fault tests: samples that can be learnt a little, at a pace that a test sets."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from liver_slurm.config.schema import JobConfig

SLOW = "slow"
"""While the file of this name lies in job.run_root, each step takes a while, so that a test can act between steps: as
many seconds as it says, if it says a number; and at least a share of the time since it said so, if it says another."""
PACE, MANY, LONG = 0.3, 40, 3.0
"""Seconds of a slow step, and of one after so many: a test on a busy machine must not run out of steps."""
BROKEN = 66
"""Sample that :class:`BrokenSamples` cannot read."""
FOLDER = Path(__file__).parent
"""To be in the workers' PYTHONPATH."""
PYTHON_PATH = os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))
"""With it, and what was there before: where tests need no installation, the product is found by it."""
OVERRIDES = (
    "data.paths=[]",
    "data.provider=paced_samples:provide_steadily",
    "model.vocab_size=64",
    "model.num_layers=2",
)
"""What makes a job file's run one that a test paces, and whose steps cost little."""


def pace(run_root: Path | str, seconds: float, share: float = 0.0) -> None:
    """How long a step takes from now on, and at least which share of the time since now; 0: as long as it needs."""
    run_root = Path(run_root)
    run_root.mkdir(parents=True, exist_ok=True)
    fresh = run_root / f"{SLOW}.fresh"
    fresh.write_text(f"{seconds} {share}")
    fresh.replace(run_root / SLOW)


class PacedSamples:
    """Each sample is a function of its number."""

    def __init__(self, config: JobConfig, many: float = MANY, pace: float = PACE) -> None:
        self._many, self._pace = many, pace
        self._length, self._vocab = config.train.seq_length + 1, config.model.vocab_size
        self._global, self._slow = config.train.global_batch_size, Path(config.job.run_root) / SLOW
        self._step = 0

    def __len__(self) -> int:
        return 1 << 20

    def batch(self, first: int, count: int) -> np.ndarray[Any, Any]:
        step, self._step = self._step, first // self._global
        if self._step != step:
            time.sleep(self._seconds())
        return np.stack([self._sample(number) for number in range(first, first + count)]).astype(np.int64)

    def _seconds(self) -> float:
        try:
            wanted = [float(word) for word in self._slow.read_text().split()]
            since = self._slow.stat().st_mtime
        except FileNotFoundError:
            return 0.0
        if wanted:
            seconds, share = (*wanted, 0.0)[:2]
            return max(seconds, share * (time.time() - since))
        return self._pace if self._step < self._many else LONG

    def _sample(self, number: int) -> np.ndarray[Any, Any]:
        row = np.random.default_rng(number).integers(0, self._vocab, self._length)
        row[1::2] = (row[0:-1:2] * 3 + 1) % self._vocab
        return row


class BrokenSamples(PacedSamples):
    """One sample cannot be read, wherever that is tried."""

    def _sample(self, number: int) -> np.ndarray[Any, Any]:
        if number == BROKEN:
            raise ValueError(f"sample {number} cannot be read")
        return super()._sample(number)


def provide_broken(config: JobConfig) -> BrokenSamples:
    """The job's samples, one of which cannot be read."""
    return BrokenSamples(config)


def provide(config: JobConfig) -> PacedSamples:
    """The job's samples."""
    return PacedSamples(config)


def provide_steadily(config: JobConfig) -> PacedSamples:
    """The job's samples; a slow step takes :data:`PACE`, however many there were."""
    return PacedSamples(config, many=math.inf)


def provide_slowly(config: JobConfig) -> PacedSamples:
    """The job's samples; every slow step takes :data:`LONG`."""
    return PacedSamples(config, pace=LONG)
