"""The one exception tree of the product, and the exit code that each branch stands for."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the product's processes; ``sbatch/live.sh.j2`` reads those of the coordinator."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    CANCELLED = 3
    """Of a coordinator: the run was cancelled, or its job is taken away; it is not started again."""
    HANDED_OVER = 4
    """Of a coordinator: another job goes on with the run."""
    BROKE_DOWN = 70
    """Of a coordinator: not the run but it itself failed; it may be started again."""
    INTERRUPTED = 130
    """Ctrl-C, as shells have it."""


DECIDED = 10
"""Added to a coordinator's exit code where its batch script asks for it, when the code says what the run's outcome is.
A Python that cannot start, or cannot import us because a file system is away, ends with 1, too."""
REFUSED = DECIDED + ExitCode.FAILED
"""Exit code of a guaranteed worker that the coordinator has turned away: another process can take its place."""
LAST_WORD = 2000
"""Bytes at most in which a worker says why it failed; a pipe takes them at once."""


class LiverError(Exception):
    """Something went wrong that a user can act on; the message is one line that says what and what to do."""

    exit_code = ExitCode.FAILED


class BadInput(LiverError):
    """The user's input is at fault: a job file, an option, a path. Nothing was submitted, nothing was changed."""

    exit_code = ExitCode.BAD_INPUT


class ClusterError(LiverError):
    """Slurm refused or did not answer."""


class ControlError(LiverError):
    """The control channel did not answer, or the other end is not who it should be."""


class PlanError(LiverError):
    """A transfer plan would not cover every target element exactly once."""


class NoRoom(LiverError):
    """A reconfiguration would take more memory than ``stream.memory_limit`` allows."""


class RunIsOver(LiverError):
    """Training cannot go on in any world: to make another one of it would end in the same way."""


class TransferError(LiverError):
    """State did not arrive: a peer went away, or bytes differ from what was sent."""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, with its type before it: only ours say enough without."""
    said = str(error).splitlines()[:1]
    return ": ".join(said if said and isinstance(error, LiverError) else [type(error).__name__, *said])


def traceback_of(error: BaseException) -> BaseException | None:
    """Return what a log's ``exc_info`` is to be; None: errors of ours, and those of files and sockets, say it all."""
    return None if isinstance(error, LiverError | OSError) else error
