"""What a world of the run that restarts is told, and what it tells: files between its driver and its processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What all processes of one world do."""

    job_file: str
    layout: str
    port: int
    """Of the store that the driver holds."""
    generation: int
    folder: str
    """Where checkpoints, and what the processes write, lie."""
    step: int
    """Steps trained so far."""
    load: bool
    """Begin from the checkpoint of that step, not from initial weights."""
    every_s: float | None
    """Seconds of training between two checkpoints on the way; None: there are none."""


class Step(msgspec.Struct, frozen=True):
    """One step, a line of the world's file; as its first rank saw it, seconds since the epoch."""

    step: int
    """Steps trained, this one among them."""
    begun: float
    end: float
    save_s: float = 0.0
    """What a checkpoint behind it took."""


def stop_file(orders: Orders) -> Path:
    """Return the file whose being there tells the world to save and to end."""
    return Path(orders.folder) / f"stop-{orders.generation}"


def steps_file(orders: Orders) -> Path:
    """Return the file with the world's steps."""
    return Path(orders.folder) / f"steps-{orders.generation}.jsonl"


def read_steps(path: Path) -> list[Step]:
    """Read the steps of a world; a line that is being written is left out."""
    if not path.exists():
        return []
    lines: Sequence[str] = path.read_text().splitlines(keepends=True)
    return [msgspec.json.decode(line, type=Step) for line in lines if line.endswith("\n")]
