"""Admission: which process that registers is let in under its name; :mod:`membership` keeps those that are."""

from __future__ import annotations

from typing import Any

from liver_slurm.coordinator.core.io import Release
from liver_slurm.coordinator.core.signals import Admitted, WorkerGone
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.coordinator.core.workers import process
from liver_slurm.protocol.messages import PROTOCOL, Refused, Register
from liver_slurm.rundir.worker_names import earlier_in_place, of_job


def register(t: Transition, given: Any) -> None:
    """Handle a worker that says who it is, for the first time or again."""
    message: Register = given.message
    refusal = _refusal(t, message)
    if refusal is not None:
        t.reject("refused")
        t.answer(given.peer, Refused(reason=refusal))
        others = {*t.state.world.members, *t.state.membership.workers} - {message.worker}
        if message.role == "standby" and _why_lost(t, message) is not None and not of_job(message.job_id, others):
            t.actions.append(Release(message.job_id))  # it may stand in a collective for ever, and holds its nodes
        return
    workers = t.state.membership.workers
    for one in t.state.membership.of([message.worker, *earlier_in_place(message.worker, workers)]):
        if (one.host, one.pid) != (message.host, message.pid):
            t.gone(WorkerGone(one.name, "another process took its place"))
    t.signal(Admitted(given.peer, message))


def _refusal(t: Transition, message: Register) -> str | None:
    """Return why a registration is refused; None: it is accepted."""
    settings, known = t.state.settings, t.state.membership.get(message.worker)
    if message.protocol != PROTOCOL:
        return f"protocol {message.protocol} is not the coordinator's {PROTOCOL}: install the same version on both"
    if message.run_id != settings.run_id:
        return f"this is run {settings.run_id}, not {message.run_id}"
    if (lost := _why_lost(t, message)) is not None:
        return lost
    if message.generation > t.state.generation:
        return f"generation {message.generation} was never committed in this run"
    if message.role == "live" and message.job_id == settings.job_id and message.restarts < settings.restarts:
        return f"job {message.job_id} was started again since; this process is of its start {message.restarts}"
    if known is None or (known.host, known.pid) == (message.host, message.pid):
        return None
    if t.now - known.seen > settings.config.job.lost_after:
        return None
    return f"the name {message.worker} is taken by process {known.pid} on {known.host}"


def _why_lost(t: Transition, message: Register) -> str | None:
    """Return why a process has no part in the run any more; None: it may have.

    That of a member goes by what it is, too: if it waits for word of its world's commit, it says that it is in none.
    """
    state = t.state
    which = process(message.host, message.pid, message.began) if message.began else ""
    lost = state.damage.lost_out_of(message.worker, message.generation, which)
    for generation in (message.generation, lost):
        if 0 <= generation < state.world.lost_below:
            return f"generation {generation} is lost: the run has begun anew from {state.settings.start_step} steps"
    return f"{message.worker} was lost out of generation {lost}, and the run went on without it" if lost >= 0 else None
