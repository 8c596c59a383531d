"""Offers: which decisions on standby jobs are logged with their chance, and what each has gained after a while.

Only a policy that states the chance of what it does is followed up like this: from others nothing can be learned, and
their events say what was on offer and no more.
"""

from __future__ import annotations

from liver_slurm.coordinator.core.io import Tick
from liver_slurm.coordinator.core.parts import History
from liver_slurm.coordinator.core.records import OfferDecided, WindowTold
from liver_slurm.coordinator.core.state import RunPhase, RunState
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.policy import api, engine, features
from liver_slurm.policy.offer import WINDOWS, Offer
from liver_slurm.rundir import events


def propensity(decision: api.Decision) -> float | None:
    """Chance that the policy gave a decision; None: it states none."""
    return decision.propensity if isinstance(decision, api.Change | api.Leave) else None


def describe(state: RunState, seen: api.Snapshot, decision: api.Decision) -> events.Offered | None:
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


def note(t: Transition, jobs: tuple[str, ...], decision: api.Decision) -> None:
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


def watch(t: Transition, _: Tick) -> None:
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
    """When the next window ends, seconds since the epoch; infinity: none is open."""
    return min((offer.next_window for offer in history.offers), default=float("inf"))


def left_alone(history: History, now: float) -> dict[str, float]:
    """Partitions that rest because what they offered was left, and until when, seconds since the epoch."""
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
