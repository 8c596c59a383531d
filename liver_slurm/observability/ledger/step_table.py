"""The steps of a run as columns, read fast enough for a million of them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from liver_slurm.base import archive
from liver_slurm.observability.ledger.clocks import Floats as Floats
from liver_slurm.observability.ledger.clocks import never_back
from liver_slurm.rundir.event_log import LATEST

CHUNK = 1 << 22
"""Bytes of the file that are decoded at a time."""

Integers = npt.NDArray[np.int64]


_Integer = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""As a column has room for."""


_Moment = Annotated[float, msgspec.Meta(ge=0.0, lt=LATEST)]


class _Line(msgspec.Struct, frozen=True, gc=False):
    """The keys of a line of ``metrics.jsonl`` that are read here; the others are passed over."""

    step: _Integer
    start: _Moment
    end: _Moment
    generation: _Integer = -1
    tokens: _Integer = 0
    loss: float | None = math.nan
    """None: it was not finite."""
    data_s: float | None = math.nan
    mfu: float | None = math.nan


_FLOATS = ("start", "end", "loss", "data_s", "mfu")
_INTEGERS = ("step", "generation", "tokens")
_decoder = msgspec.json.Decoder(_Line)


@dataclass(frozen=True)
class StepTable:
    """Columns of equal length, one entry a step, in the order of steps; times never go back.

    What a line does not say is NaN.
    """

    step: Integers
    generation: Integers
    tokens: Integers
    start: Floats
    """Seconds since the epoch."""
    end: Floats
    loss: Floats
    data_s: Floats
    """Seconds in which the step waited for its samples."""
    mfu: Floats

    def __len__(self) -> int:
        return len(self.step)


def read_steps(path: Path) -> StepTable:
    """Read ``metrics.jsonl``; lines that are torn or of no step are passed over, and the file need not be there."""
    parts = [_columns(lines) for lines in _chunks(path)]
    columns = {
        name: np.concatenate([part[name] for part in parts]) if parts else np.zeros(0, _kind(name))
        for name in (*_INTEGERS, *_FLOATS)
    }
    return make_table(columns)


def make_table(columns: dict[str, npt.NDArray[Any]]) -> StepTable:
    """Make a table of columns that may be out of order.

    Of a step that stands there twice the last line counts. Clocks of hosts differ, and each world may have another
    writer: times that go back are put in order.
    """
    step = columns["step"]
    if len(step) and not bool(np.all(step[1:] > step[:-1])):
        order = np.argsort(step, kind="stable")
        last = np.append(step[order][1:] != step[order][:-1], True)
        columns = {name: column[order][last] for name, column in columns.items()}
    times = never_back(np.stack([columns["start"], columns["end"]], axis=1).reshape(-1))
    return StepTable(**{**columns, "start": times[0::2].copy(), "end": times[1::2].copy()})


def _kind(name: str) -> type[np.int64] | type[np.float64]:
    return np.int64 if name in _INTEGERS else np.float64


def _columns(lines: list[_Line]) -> dict[str, npt.NDArray[Any]]:
    return {name: _column(lines, name) for name in (*_INTEGERS, *_FLOATS)}


def _column(lines: list[_Line], name: str) -> npt.NDArray[Any]:
    values = map(operator.attrgetter(name), lines)
    try:
        return np.fromiter(values, _kind(name), len(lines))
    except TypeError:  # a None among them, which only the slower way turns into NaN
        return np.array([getattr(line, name) for line in lines], np.float64)


def _chunks(path: Path) -> Iterator[list[_Line]]:
    """Yield the lines of the file, about :data:`CHUNK` bytes at a time."""
    for stream in archive.parts(path):
        rest = b""
        while chunk := stream.read(CHUNK):
            rest += chunk
            if end := rest.rfind(b"\n") + 1:
                yield _decode(memoryview(rest)[:end])
                rest = rest[end:]
        if rest:
            yield _decode(memoryview(rest))


def _decode(text: memoryview) -> list[_Line]:
    try:
        return _decoder.decode_lines(text)
    except msgspec.DecodeError:  # ValidationError too: some line is torn, or is of no step
        return [line for line in map(_decode_one, bytes(text).split(b"\n")) if line is not None]


def _decode_one(text: bytes) -> _Line | None:
    try:
        return _decoder.decode(text)
    except msgspec.DecodeError:
        return None
