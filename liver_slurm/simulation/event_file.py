"""The event log of a simulated run, as a run directory has it: times are those of the simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from liver_slurm.base.errors import BadInput
from liver_slurm.rundir.events import Event, to_document
from liver_slurm.rundir.paths import RunDir


@contextmanager
def event_file(folder: Path | None, run: str) -> Iterator[Callable[[Event], object]]:
    """Open ``folder/run/events.jsonl``, and give what writes an event to it; without a folder nothing is written.

    Raises:
        BadInput: it is there already, or cannot be made.
    """
    if folder is None:
        yield lambda event: None
        return
    path = RunDir(folder / run).events
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb")
    except FileExistsError:
        raise BadInput(f"--events {folder}: {path} is there already; name another folder, or another --seed") from None
    except OSError as error:
        raise BadInput(f"--events {folder}: {path} cannot be written: {error.strerror}") from error
    with file:
        yield lambda event: file.write(msgspec.json.encode(to_document(event)) + b"\n")
