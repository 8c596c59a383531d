"""Eviction notices: reconcile a worker's signal with the scheduler's job record, then act on the result.

A worker speaks first, within milliseconds of a signal, but a signal does not say how much time there is. The
scheduler's record, seen at the next look, does; it is also the net for signals that are lost, and the only word of a
drained node or a reservation. It is taken back when the record no longer says so, if the worker was not told to leave.
"""

from __future__ import annotations

import math

from liver_slurm.base.frozen import replace
from liver_slurm.coordinator.core import membership
from liver_slurm.coordinator.core.io import Tick
from liver_slurm.coordinator.core.signals import CapacityObserved, EvictionChanged, EvictionHeard, WorkerGone
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.coordinator.core.workers import BEATS, Eviction, Worker
from liver_slurm.protocol.messages import Notice
from liver_slurm.rundir import events
from liver_slurm.scheduler.ports import DEFAULT_GRACE, EvictionNotice, StandbyJob

STOPPED_BY = 5.0
"""Seconds after SIGTSTP by which Slurm has either suspended the job, or never will."""

RECENT, LEADS = 10, 2.0
"""A time limit is served as many times ahead as the slowest of so many last changes took: there is time for a second
try."""


# ---- a worker's signal ---------------------------------------------------------------------------------------------


def notice(t: Transition, message: Notice) -> None:
    """Handle a worker that will go away; Slurm takes a standby job as a whole, so its other workers will too."""
    worker, message = t.state.membership.workers[message.worker], message.as_of(t.now)
    if message.withdrawn:
        _resumed(t, worker)
        return
    notice = Eviction(
        kind="suspension" if message.suspended else "signal",
        reason=message.reason,
        deadline=message.deadline if message.deadline is not None else message.time + _grace(t, worker),
        at=message.time,
    )
    known = worker.signalled
    in_force = known is not None and not known.returns and t.now < known.deadline
    if known is not None and in_force and (notice.returns or notice.deadline >= known.deadline):
        t.reject("duplicate")
        return
    for one in _all_of_job(t, worker):
        t.signal(EvictionHeard(one.name, {"signalled": notice}))


def _resumed(t: Transition, worker: Worker) -> None:
    """Forget that a worker, and others of its job, were suspended."""
    for one in _all_of_job(t, worker):
        words = {"signalled": one.signalled, "announced": one.announced}
        back: dict[str, Eviction | None] = {
            key: None for key, word in words.items() if word is not None and word.returns
        }
        if back:
            t.signal(EvictionHeard(one.name, back))


def _all_of_job(t: Transition, worker: Worker) -> list[Worker]:
    """Return the worker, then the others of its standby job."""
    if worker.role != "standby":
        return [worker]
    others = t.state.membership.of_job(worker.job_id, "standby")
    return [worker, *(other for other in others if other.name != worker.name)]


def _grace(t: Transition, worker: Worker) -> float:
    """Return the grace period after a signal, in seconds; for a job not observed yet, the minimum over our jobs."""
    fixed = t.state.settings.config.standby.grace
    if fixed is not None:
        return fixed
    graces = {job.job_id: job.grace for job in t.state.standbys.jobs}
    return graces.get(worker.job_id, min(graces.values(), default=DEFAULT_GRACE))


def find_outlived(t: Transition, _: Tick) -> None:
    """Expect no end any more by the time that a signal seemed to announce, where a worker was heard of after it."""
    for worker in t.state.membership.workers.values():
        feared = worker.signalled
        if feared is not None and not feared.returns and feared.deadline < worker.seen:
            t.signal(EvictionHeard(worker.name, {"signalled": replace(feared, deadline=math.inf)}))


# ---- the scheduler's record ----------------------------------------------------------------------------------------


def compare(t: Transition, news: CapacityObserved) -> None:
    """Compare the standby jobs with what was known: those that will go away, that no longer will, and that are over."""
    jobs = {job.job_id: job for job in news.now.jobs}
    earlier = {job.job_id: job for job in news.before.jobs} if news.before is not None else {}
    ahead = lead(t)
    for worker in t.state.membership.with_role("standby"):
        job = jobs.get(worker.job_id)
        if job is not None:
            _announced(t, worker, job, news.now.time, ahead)
        elif news.before is not None and worker.job_id in earlier:
            _over(t, worker, news.before.time + earlier[worker.job_id].grace)


def _announced(t: Transition, worker: Worker, job: StandbyJob, time: float, ahead: float) -> None:
    word, known, signalled = job.notice or _time_limit(job, t.now + ahead), worker.announced, worker.signalled
    if word is None and known is None and signalled is None:  # as nearly all of thousands
        return
    words: dict[str, Eviction | None] = {}
    if word is not None:
        at = known.at if known is not None and known.kind == word.kind else t.now
        deadline = word.deadline if word.deadline is not None else math.inf
        if word.kind == "suspension":
            deadline = at  # it is stopped already
        words["announced"] = Eviction(word.kind, word.reason, deadline, at)
    else:
        if known is not None:
            words["announced"] = None
        if signalled is not None and signalled.returns and time > signalled.at + STOPPED_BY:
            words["signalled"] = None  # whoever sent that SIGTSTP, it was not a suspension
    if words:
        t.signal(EvictionHeard(worker.name, words))


def _time_limit(job: StandbyJob, until: float) -> EvictionNotice | None:
    """Return word of a time limit that comes before a world without the job could be ready twice over."""
    if job.ends_at is None or job.ends_at > until:
        return None
    return EvictionNotice("time limit", "the job's time limit", job.ends_at)


def lead(t: Transition) -> float:
    """Return the seconds ahead of an end that is known, from which on it is served: by what past changes took."""
    recent = t.state.history.measured[-RECENT:]
    return LEADS * max((one.prepare_s + one.exposed_s for one in recent), default=0.0)


def _over(t: Transition, worker: Worker, deadline: float) -> None:
    """Handle a worker whose job is over: its processes may have until SIGKILL, and can hand their state over in it."""
    reason = f"standby job {worker.job_id} is over"
    if t.now - worker.seen > BEATS * t.state.membership.beat_seconds(t.state.settings.config.job) or deadline <= t.now:
        t.gone(WorkerGone(worker.name, reason))
    else:
        t.signal(EvictionHeard(worker.name, {"announced": Eviction("over", reason, deadline, t.now)}))


# ---- what follows --------------------------------------------------------------------------------------------------


def revise(t: Transition, news: EvictionHeard) -> None:
    """Note what is said of a worker now, and tell if another notice counts than before."""
    worker = t.state.membership.get(news.name)
    if worker is None:
        return
    membership.heard_of_eviction(t, news.name, news.words)
    before, now = worker.eviction, t.state.membership.workers[news.name].eviction
    if now is None:
        if before is None or worker.dismissed:  # one that was told to leave is on its way already
            return
        t.emit(events.NoticeWithdrawn(worker=worker.name, host=worker.host, kind=before.kind, reason=before.reason))
    elif before is None:
        _tell(t, worker, events.Notice, now)
    elif (before.kind, before.deadline) == (now.kind, now.deadline):
        return
    elif before.kind != now.kind or abs(before.deadline - now.deadline) > 1.0:
        _tell(t, worker, events.NoticeChanged, now)
    t.signal(EvictionChanged(worker, before, now))


def _tell(t: Transition, worker: Worker, event: type[events.Notice | events.NoticeChanged], notice: Eviction) -> None:
    t.emit(
        event(
            worker=worker.name,
            host=worker.host,
            kind=notice.kind,
            reason=notice.reason,
            deadline=notice.deadline if notice.deadline < math.inf else None,
            in_world=worker.name in t.state.world.names,
        )
    )


def dismiss_or_welcome(t: Transition, news: EvictionChanged) -> None:
    """Let a worker outside the live world go at once, or queue for a world again if it stays after all."""
    worker, now = news.worker, news.now
    if worker.name not in t.state.world.names:
        if now is None:
            membership.available_again(t, worker.name)
        elif not worker.dismissed and not now.returns:
            membership.dismiss(t, worker.name, now.reason)
    t.request_replan()
