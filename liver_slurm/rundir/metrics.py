"""The metrics of a run, ``metrics.jsonl``: a line a step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from liver_slurm.base.files import replacing
from liver_slurm.base.jsonl import LineWriter, read_lines, read_tail


class StepMetrics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One optimizer step of the whole world.

    A loss or norm that is not finite (such a step changes nothing) is null in the file, as JSON has no word for it, and
    NaN here. The last three keys are left out of the file where they are not known, and None here.
    """

    step: int
    """Number of the step, from 1."""
    loss: float
    """Mean over the tokens of the global batch."""
    grad_norm: float
    """Before clipping."""
    lr: float
    tokens: int
    """Tokens of this step."""
    consumed_samples: int
    """Samples of the run, this step's included."""
    generation: int
    layout: str
    start: float
    """Seconds since the epoch."""
    end: float
    tokens_per_s: float | None = None
    """Of the whole world, from start to end; not known in runs of older versions."""
    tflops: float | None = None
    """Model TFLOP/s of each rank's card; not known on CPUs, and of a model of the user's own."""
    mfu: float | None = None
    """``tflops`` over the card's peak; not known where the peak is not."""


class MetricsWriter:
    """Appends steps. One process of a world writes; another may go on where it left off."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = LineWriter(path)

    def append(self, metrics: StepMetrics) -> None:
        """Append one step."""
        self._lines.write(metrics)

    def reopen(self) -> None:
        """Go on in the file that has the name now; before, lines go where the name pointed when it was opened."""
        self._lines.reopen()

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def truncate_metrics(path: Path, step: int) -> None:
    """Keep only steps up to ``step``: those after it will be trained again. Readers see all of it or nothing.

    The file is replaced, so what a process that had it open still writes (one of a lost world) goes nowhere.
    """
    with replacing(path) as stream:
        for line in read_lines(path):
            if line.get("step", step + 1) <= step:
                stream.write(msgspec.json.encode(line) + b"\n")


def read_metrics(path: Path) -> Iterator[StepMetrics]:
    """All steps so far."""
    return map(_step, read_lines(path))


def last_metrics(path: Path) -> StepMetrics | None:
    """The newest step, without reading the whole file; None: no step yet."""
    lines = read_tail(path)
    return _step(lines[-1]) if lines else None


def recent_metrics(path: Path, count: int) -> list[StepMetrics]:
    """The newest steps, at most ``count``, without reading the whole file."""
    return [_step(line) for line in read_tail(path)[-count:]]


def _step(line: dict[str, Any]) -> StepMetrics:
    not_finite = [name for name in ("loss", "grad_norm") if name in line and line[name] is None]
    return msgspec.convert(line | dict.fromkeys(not_finite, math.nan), StepMetrics)
