"""The validations of a run, ``validation.jsonl``: a line each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from liver_slurm.base.jsonl import read_lines, read_tail

_NOT_FINITE = {"loss": math.nan, "perplexity": math.nan, "best_loss": math.inf}
"""What a null in the file stands for."""


class ValidationMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """The loss of one validation. One that is not finite is null in the file, and NaN here; so is its perplexity."""

    step: int
    """Steps that were trained before it."""
    loss: float
    """Mean over the tokens."""
    perplexity: float
    """``exp(loss)``."""
    tokens: int
    samples: int
    best_step: int
    """Step of the lowest loss so far, this one included; -1: none was finite."""
    best_loss: float
    """Infinity if none was finite, which is null in the file."""
    since_best: int
    """Validations that came after that one."""
    seconds: float
    """That training stood still for it."""
    generation: int
    layout: str
    """World that trained when it ended."""
    end: float
    """Seconds since the epoch."""


def perplexity(loss: float) -> float:
    """Return ``exp(loss)``; infinity where that is too large."""
    return math.exp(loss) if loss < 700.0 else math.inf if loss == loss else math.nan


def read_validations(path: Path) -> Iterator[ValidationMetrics]:
    """Return all validations so far."""
    return validations_of(read_lines(path))


def last_validation(path: Path) -> ValidationMetrics | None:
    """Return the newest one, without reading the whole file; None: there is none yet."""
    return max(validations_of(read_tail(path)), key=lambda one: one.step, default=None)


def validations_of(lines: Iterable[dict[str, Any]]) -> Iterator[ValidationMetrics]:
    """Yield the validations of lines; a damaged one, which lacks a key or has one of a wrong type, is passed over."""
    for line in lines:
        missing = {key: value for key, value in _NOT_FINITE.items() if line.get(key) is None}
        try:
            yield msgspec.convert(line | missing, ValidationMetrics)
        except msgspec.ValidationError:
            continue
