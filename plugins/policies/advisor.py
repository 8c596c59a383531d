"""Do what a model says that ``liver-slurm advisor fit`` has learned from logged decisions.

Where the model's rule was surely better than to take always, it decides; otherwise everything is taken, as ``greedy``
does. An offer that is unlike everything that the rule was learned from is ``cost-aware``'s to decide. The reason says
which it was.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from liver_slurm.advisor.model import Model, read_model
from liver_slurm.base.errors import BadInput
from liver_slurm.config.schema import JobConfig
from liver_slurm.plugins.policies import cost_aware, greedy
from liver_slurm.policy.api import Change, Decision, Leave, Snapshot, Wait, offered_jobs
from liver_slurm.policy.features import VERSION, features

LOOK_AGAIN = 15.0
"""Seconds until it is looked whether the duration of a step is known."""


def policy(snapshot: Snapshot, config: JobConfig) -> tuple[Decision, str]:
    """Return what ``greedy`` wants, unless the model says to leave it."""
    model = _model(config)
    decision, reason = greedy.policy(snapshot, config)
    if not isinstance(decision, Change) or not (jobs := offered_jobs(snapshot, decision)):
        return decision, reason
    if not model.advises:
        return decision, f"{reason}; advisor: the model has no advice, so all is taken"
    if snapshot.step_seconds <= 0.0:
        return Wait(snapshot.now + LOOK_AGAIN), f"{reason}; waits for the duration of a step"
    values = model.values(features(snapshot, decision, config))
    if far := model.far(values):
        instead, why = cost_aware.policy(snapshot, config)
        return instead, f"{why}; advisor: cost-aware decides, as nothing was learned of such {', '.join(far)}"
    because = f", mostly: {', '.join(names)}" if (names := model.speaks(values)) else ""
    if model.takes(values):
        return replace(decision, propensity=1.0), f"{reason}; advisor: take{because}"
    rest = config.standby.commit
    count = f"{len(jobs)} standby job{'s' if len(jobs) > 1 else ''}"
    return Leave(jobs, snapshot.now + rest, 1.0), f"{reason}; advisor: leave {count} for {rest:g} s{because}"


def check(config: JobConfig) -> None:
    """Find out before a run begins whether the model can be read.

    Raises:
        BadInput: none is named, or it cannot be used.
    """
    _model(config)


def _model(config: JobConfig) -> Model:
    if config.standby.advisor is None:
        raise BadInput("standby.advisor is missing: name a file that `liver-slurm advisor fit` has written")
    return _read(config.standby.advisor)


@cache
def _read(path: str) -> Model:
    """Read a model once: a run follows the one that it began with."""
    try:
        return read_model(Path(path), VERSION)
    except BadInput as error:
        raise BadInput(f"standby.advisor: {error}") from None
