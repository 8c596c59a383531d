"""Which run a text names: a name may have many runs, and people mean the one that goes on."""

from __future__ import annotations

from collections.abc import Sequence

from liver_slurm.app import processes
from liver_slurm.base.errors import BadInput
from liver_slurm.observability.summary import PREPARED
from liver_slurm.rundir.over import is_over
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import read_run_info, runs_named

LISTED = 10
"""Runs that a message names."""


def find_run(text: str, *, only: bool = False) -> RunDir:
    """Return the run that a job id, a name or a run directory names; of several, the newest of those that are alive.

    Args:
        only: refuse where several are alive, as the one that is meant must not be guessed.

    Raises:
        BadInput: there is none, or more than one.
    """
    named = runs_named(text)
    if len(named) == 1:
        return named[0]
    living = alive(named)
    if only and len(living) > 1:
        names = ", ".join(read_run_info(one).job_id or one.path.name for one in living[:LISTED])
        more = ", …" if len(living) > LISTED else ""
        raise BadInput(f"{len(living)} runs named {text!r} go on; name one of them: {names}{more}")
    return (living or named)[0]


def alive(run_dirs: Sequence[RunDir]) -> list[RunDir]:
    """Return those that go on, in their order; one of which that cannot be told from here counts, if it has started."""
    going = [one for one in run_dirs if not is_over(one)]
    found = processes.find_all(going)
    return [one for one in going if found[one].alive or (found[one].alive is None and _has_started(one, found[one]))]


def _has_started(run_dir: RunDir, found: processes.Found) -> bool:
    submitted = bool(read_run_info(run_dir).job_id)
    return found.state != PREPARED and (submitted or run_dir.address_file.exists())
