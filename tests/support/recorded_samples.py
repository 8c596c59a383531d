"""``data.provider`` that writes down which samples each process has read, into the folder of ``RECORDS``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from paced_samples import PacedSamples

from liver_slurm.config.schema import JobConfig

RECORDS = "TEST_SAMPLES_RECORDS"


class RecordedSamples(PacedSamples):
    """A line for each batch: its first sample, and how many there are.

    The very first sample alone is what a worker looks at before it trains.
    """

    def batch(self, first: int, count: int) -> np.ndarray[Any, Any]:
        if (first, count) != (0, 1):
            with (Path(os.environ[RECORDS]) / str(os.getpid())).open("a") as file:
                file.write(f"{first} {count}\n")
        return super().batch(first, count)


def provide(config: JobConfig) -> RecordedSamples:
    """The job's samples."""
    return RecordedSamples(config)


def recorded(folder: Path) -> list[int]:
    """All samples that were read, in the order of their numbers; those that were read twice are in it twice."""
    lines = [line.split() for file in folder.iterdir() for line in file.read_text().splitlines()]
    return sorted(number for first, count in lines for number in range(int(first), int(first) + int(count)))
