"""The metrics of a run, ``metrics.jsonl``: a line a step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from liver_slurm.base.files import replacing
from liver_slurm.base.jsonl import LineWriter, read_lines, read_tail
from liver_slurm.rundir.paths import RunDir


class StepMetrics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One optimizer step of the whole world.

    A loss or norm that is not finite (such a step changes nothing) is null in the file, as JSON has no word for it, and
    NaN here. The last four keys are left out of the file where they are not known, and None here.
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
    data_s: float | None = None
    """How long the rank that writes the line waited for its samples within the step; not known in older runs."""
    mirror_s: float | None = None
    """How long sending gradients, or a snapshot, to the keeper of its mirror held up the rank that writes the line; not
    known without mirrors."""


class Stepped(Protocol):
    """A line of a file that has one for some steps, in their order."""

    @property
    def step(self) -> int:
        """Steps trained."""


class MetricsWriter:
    """Appends lines of steps. One process of a world writes; another may go on where it left off."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = LineWriter(path)
        self._written = 0

    def append(self, metrics: Stepped) -> None:
        """Append one step, unless it is there: a worker that was lost may have written it before it is made again."""
        if metrics.step > self._written:
            self._lines.write(metrics)
            self._written = metrics.step

    def sync(self) -> None:
        """Put on disk what was appended.

        Raises:
            OSError: some of it may be lost.
        """
        self._lines.sync()

    def reopen(self) -> None:
        """Go on in the file that has the name now; before, lines go where the name pointed when it was opened."""
        self._lines.reopen()
        self._written = last_step(self._path)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def truncate_metrics(path: Path, step: int) -> None:
    """Keep only steps up to ``step``: those after it will be trained again. Readers see all of it or nothing.

    The file is replaced, so what a process that had it open still writes (one of a lost world) goes nowhere.
    """
    with replacing(path) as stream:
        for line in read_lines(path):
            number = _step_of(line)
            if number is not None and number <= step:
                stream.write(msgspec.json.encode(line) + b"\n")


def take_back(run_dir: RunDir, step: int) -> None:
    """Take the steps behind ``step``, and their validations, out of a run's metrics.

    Raises:
        OSError: a file cannot be replaced.
    """
    for path in (run_dir.metrics, run_dir.validations):
        if path.exists():
            truncate_metrics(path, step)


def read_metrics(path: Path) -> Iterator[StepMetrics]:
    """Return all steps so far."""
    return steps_of(read_lines(path))


def last_metrics(path: Path) -> StepMetrics | None:
    """Return the newest step, without reading the whole file; None: no step yet."""
    return next(steps_of(reversed(read_tail(path))), None)


def last_step(path: Path) -> int:
    """Return the number of the newest step of such a file; 0: there is none."""
    numbers = map(_step_of, reversed(read_tail(path)))
    return next((number for number in numbers if number is not None), 0)


def steps_of(lines: Iterable[dict[str, Any]]) -> Iterator[StepMetrics]:
    """Yield the steps of lines; a damaged one, which lacks a key or has one of a wrong type, is passed over."""
    for line in lines:
        not_finite = [name for name in ("loss", "grad_norm") if name in line and line[name] is None]
        try:
            yield msgspec.convert(line | dict.fromkeys(not_finite, math.nan), StepMetrics)
        except msgspec.ValidationError:
            continue


def _step_of(line: dict[str, Any]) -> int | None:
    """Return the number of a line's step; None: it is of no step."""
    number = line.get("step")
    return number if type(number) is int else None
