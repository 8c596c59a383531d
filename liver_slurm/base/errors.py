"""The one exception tree of the product, and the exit code that each branch stands for."""

from __future__ import annotations


class LiverError(Exception):
    """Something went wrong that a user can act on; the message is one line that says what and what to do."""

    exit_code = 1


class BadInput(LiverError):
    """The user's input is at fault: a job file, an option, a path. Nothing was submitted, nothing was changed."""

    exit_code = 2


class ClusterError(LiverError):
    """Slurm refused or did not answer."""


class ControlError(LiverError):
    """The control channel did not answer, or the other end is not who it should be."""


class PlanError(LiverError):
    """A transfer plan would not cover every target element exactly once."""


class NoRoom(LiverError):
    """A reconfiguration would take more memory than ``stream.memory_limit`` allows."""


class TransferError(LiverError):
    """State did not arrive: a peer went away, or bytes differ from what was sent."""
