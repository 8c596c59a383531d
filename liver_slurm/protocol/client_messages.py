"""What clients ask the coordinator: the CLI, the Python API, and whoever starts workers; and what it answers them."""

from __future__ import annotations

from typing import Any

import msgspec

from liver_slurm.protocol.base import Message


class StatusRequest(Message, frozen=True, kw_only=True):
    """Ask what the run is doing; :class:`Reply` carries the status document."""


class ResizeRequest(Message, frozen=True, kw_only=True):
    """Ask for another layout or another number of workers; one of the two is given.

    ``at_step``: cut over exactly there; training waits for the preparation if it must.
    """

    layout: str = ""
    workers: int = 0
    at_step: int = -1
    give_back: bool = False
    """Let guaranteed workers that are in no world afterwards exit, and give nodes that become free back to Slurm."""


class CheckpointRequest(Message, frozen=True, kw_only=True):
    """Ask for a checkpoint soon."""


class CancelRequest(Message, frozen=True, kw_only=True):
    """Ask to end the run and everything that it started."""


class WorkerEnded(Message, frozen=True, kw_only=True):
    """Report that a worker's process has ended; its parent sends this, so that its silence need not be waited for."""

    worker: str
    reason: str
    """Reason for users: ``exit code 1``, ``signal 9``."""
    pid: int = 0
    """Its process: another one may have its name by now. 0: not known."""
    again: bool = True
    """Another one is started in its place."""


class Reply(Message, frozen=True, kw_only=True):
    """Answer any client message."""

    ok: bool
    error: str = ""
    result: dict[str, Any] = msgspec.field(default_factory=dict)
