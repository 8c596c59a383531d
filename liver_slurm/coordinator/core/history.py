"""History: what a run remembers for its policy: how long standbys stayed, what changes took, what offers have gained.

Spans and measurements are found by comparing the state before and after a transition, so that none of the many ways in
which a worker goes has to be told. Decisions on offers are followed up where the policy states the chance of what it
does: from others nothing can be learned, and their events say what was on offer and no more.
"""

from __future__ import annotations

from liver_slurm.base.table import Table
from liver_slurm.coordinator.core.io import Tick
from liver_slurm.coordinator.core.parts import History
from liver_slurm.coordinator.core.records import LifeBegan, LifeEnded, Measurement, OfferDecided, WindowTold
from liver_slurm.coordinator.core.state import RunPhase, RunState
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.coordinator.core.workers import Membership, Worker
from liver_slurm.parallel.layout import Layout
from liver_slurm.policy import api, engine, features
from liver_slurm.policy.offer import WINDOWS, Offer
from liver_slurm.rundir import events


def update(t: Transition, before: RunState, *, spans: bool, everybody: bool) -> None:
    """Record what this transition has changed.

    Args:
        t: the transition.
        before: the state that it began with.
        spans: look for standbys that have come or gone. Not after a heartbeat: there are thousands, none ends a span,
            and one that begins a span is seen at the next tick.
        everybody: look at all standbys, also if this transition has made none of them come or go.
    """
    if spans and everybody:
        _spans(t, before, None)
    elif spans and t.state.membership.moves != before.membership.moves:  # each of thousands of members says much else
        _spans(t, before, _moved(before.membership, t.state.membership))
    if t.state.world.last is not before.world.last:
        _measure(t)


def _moved(before: Membership, now: Membership) -> set[str]:
    """Return jobs of which a worker has become available, or is no more."""
    old, new = Table.of(before.workers), Table.of(now.workers)
    jobs = {worker.job_id for name, worker in new.differing(old) if _is_there(worker) != _is_there(old.get(name))}
    return jobs | {worker.job_id for name, worker in old.differing(new) if name not in new}


def _is_there(worker: Worker | None) -> tuple[str, str, bool] | None:
    return None if worker is None else (worker.role, worker.job_id, worker.available)


def _spans(t: Transition, before: RunState, jobs: set[str] | None) -> None:
    """Record which standby jobs have come or gone; of ``jobs``, or of all."""
    state = t.state
    workers = _of_jobs(state, jobs)
    staying = [worker for worker in workers if worker.role == "standby" and worker.available]
    here = {worker.job_id for worker in staying}
    began = state.history.going_on
    running = set(began) if jobs is None else {job for job in jobs if job in began}
    begun, over = sorted(here - running), running - here
    if not begun and not over:
        return
    earlier = _of_jobs(before, jobs)
    known = {worker.job_id for worker in (*earlier, *workers)}
    in_order = sorted(over, key=lambda job: (began[job], job))
    released = {worker.job_id for worker in (*earlier, *workers) if worker.dismissed}
    noticed = {worker.job_id for worker in workers if worker.eviction is not None}  # it is also dismissed after that
    for job in (job for job in in_order if job in known or _is_unknown(state, job)):
        t.journal(LifeEnded(job_id=job, time=t.now, taken=job in noticed or job not in released))
    partitions = {**state.standbys.starting, **{job.job_id: job.partition for job in state.standbys.jobs}}
    for job in begun:
        came = min(worker.arrived for worker in staying if worker.job_id == job)
        t.journal(LifeBegan(job_id=job, partition=partitions.get(job, ""), time=came))


def _of_jobs(state: RunState, jobs: set[str] | None) -> list[Worker]:
    membership = state.membership
    if jobs is None:
        return [*membership.workers.values()]
    return [worker for job in jobs for worker in membership.of(membership.by_job.get(job, ()))]


def _is_unknown(state: RunState, job: str) -> bool:
    """Return whether the scheduler knows nothing of a job.

    A job of the last coordinator's may only have yet to register.
    """
    capacity = state.standbys.capacity
    return capacity is not None and capacity.blind is None and all(other.job_id != job for other in capacity.jobs)


def _measure(t: Transition) -> None:
    last = t.state.world.last
    if last is None or last.cause == "loss":
        return
    added = Layout.parse(last.to).size - Layout.parse(last.source).size
    t.journal(
        Measurement(
            generation=last.generation,
            added=added,
            prepare_s=last.prepare_s,
            exposed_s=last.exposed_s,
            time=t.now,
        )
    )


# ---- offers ---------------------------------------------------------------------------------------------------------


def propensity(decision: api.Decision) -> float | None:
    """Return the chance that the policy gave a decision; None: it states none."""
    return decision.propensity if isinstance(decision, api.Change | api.Leave) else None


def describe_offer(state: RunState, seen: api.Snapshot, decision: api.Decision) -> events.Offered | None:
    """Say what was on offer, what was known of it, and what was done.

    None where nothing was on offer, and where the same jobs were decided on before: what was taken is asked for again
    where the reconfiguration has failed, which is no decision of its own.
    """
    change, chance = engine.on_offer(seen, state.settings.config), propensity(decision)
    if change is None:
        return None
    jobs = api.offered_jobs(seen, change)
    if any(one.jobs == jobs for one in state.history.offers):
        return None
    return events.Offered(
        id=f"{seen.run_id}:{state.history.next_offer}" if chance is not None else "",
        jobs=jobs,
        action="take" if isinstance(decision, api.Change) else "leave",
        propensity=chance,
        step=state.step,
        features_version=features.VERSION,
        features=features.features(seen, change, state.settings.config),
    )


def note_offer(t: Transition, jobs: tuple[str, ...], decision: api.Decision) -> None:
    """Remember a decision on offered jobs for its windows, and for how long their partitions rest."""
    state = t.state
    partitions = {job.partition for job in state.standbys.jobs if job.job_id in jobs}
    t.journal(
        OfferDecided(
            number=state.history.next_offer,
            time=t.now,
            step=state.step,
            step_seconds=state.step_seconds,
            jobs=jobs,
            partitions=tuple(sorted(partitions)),
            until=decision.until if isinstance(decision, api.Leave) else 0.0,
        )
    )


def watch_windows(t: Transition, _: Tick) -> None:
    """Tell the event log of windows that have ended, each when it has: what comes later may change the metrics."""
    state = t.state
    if state.lifecycle.phase not in (RunPhase.TRAINING, RunPhase.FINISHING):
        return
    for offer in state.history.offers:
        for window in WINDOWS[offer.told :]:
            if t.now < offer.time + window:
                break
            # The event comes first: one that is told twice does no harm, one that is lost does.
            t.emit(_window(state, offer, window))
            t.journal(WindowTold(number=offer.number))


def next_window(history: History) -> float:
    """Return when the next window ends, seconds since the epoch; infinity: none is open."""
    return min((offer.next_window for offer in history.offers), default=float("inf"))


def left_alone(history: History, now: float) -> dict[str, float]:
    """Return the partitions that rest because what they offered was left, and until when, seconds since the epoch."""
    found: dict[str, float] = {}
    for offer in history.offers:
        if offer.until > now:
            for partition in offer.partitions:
                found[partition] = max(offer.until, found.get(partition, 0.0))
    return found


def _window(state: RunState, offer: Offer, window: float) -> events.DecisionWindow:
    live, after = state.world.live, state.now - offer.time
    return events.DecisionWindow(
        offer=f"{state.settings.run_id}:{offer.number}",
        window_s=window,
        after_s=after,
        step=state.step,
        gained_s=(state.step - offer.step) * offer.step_seconds - after,
        layout=str(live.layout) if live is not None else "",
    )
