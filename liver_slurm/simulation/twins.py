"""Twins: one run that takes an offer and one that leaves it, alike in all else, so that what that does is known.

Both have the same nodes, and decide on later offers by the same lots: one for each stretch of time, whatever offers
come in it. What each has gained by the end of a window is what its coordinator has told; the difference is the effect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from liver_slurm.config.schema import JobConfig
from liver_slurm.plugins.policies import explore, greedy
from liver_slurm.policy import engine
from liver_slurm.policy.api import Change, Decision, Leave, Snapshot, Wait, offered_jobs
from liver_slurm.policy.offer import WINDOWS
from liver_slurm.rundir.events import DecisionWindow, Event, Offered, PolicyDecided
from liver_slurm.simulation.costs import Costs
from liver_slurm.simulation.elastic_run import ElasticRun
from liver_slurm.simulation.setting import BEGIN, Setting

NAME = "lots"
SLACK = 600.0
"""Seconds for which a run goes on after the last window of the offer in question."""


@dataclass
class Lots:
    """Policy ``explore`` with lots by time, which does the opposite once."""

    seed: int
    opposite: int | None = None
    """Number of the offer at which it does so; None: never."""
    decided: dict[tuple[str, ...], bool] = field(default_factory=dict)
    """What was done with each offer, in their order: taken or not."""

    def __call__(self, snapshot: Snapshot, config: JobConfig) -> tuple[Decision, str]:
        decision, reason = greedy.policy(snapshot, config)
        if not isinstance(decision, Change) or not (jobs := offered_jobs(snapshot, decision)):
            return decision, reason
        if snapshot.step_seconds <= 0.0:
            return Wait(snapshot.now + explore.LOOK_AGAIN), reason
        chance, rest = config.standby.explore, config.standby.commit
        if jobs not in self.decided:
            stretch = str(int(snapshot.now // rest))
            take = explore.lot(str(self.seed), (stretch,)) >= chance
            self.decided[jobs] = take != (len(self.decided) == self.opposite)
        if self.decided[jobs]:
            return replace(decision, propensity=1.0 - chance), reason
        return Leave(jobs, snapshot.now + rest, chance), reason


@dataclass(frozen=True)
class Twin:
    """One offer, and what came of both actions."""

    number: int
    """Of the run's offers."""
    features: Mapping[str, float | None]
    gained: Mapping[str, tuple[float, ...]]
    """By the end of each window of :data:`~liver_slurm.policy.offer.WINDOWS`, of ``take`` and of ``leave``."""

    def effect(self, window_s: float) -> float:
        """Return what taking has gained against leaving, by the end of a window."""
        at = WINDOWS.index(window_s)
        return self.gained["take"][at] - self.gained["leave"][at]


@dataclass
class _Told:
    """What one run's coordinator has told."""

    offers: list[tuple[float, Offered]] = field(default_factory=list)
    gained: dict[str, list[float]] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        if isinstance(event, PolicyDecided) and isinstance(event.offer, Offered) and event.offer.id:
            self.offers.append((event.time, event.offer))
        elif isinstance(event, DecisionWindow):
            self.gained.setdefault(event.offer, []).append(event.gained_s)


def twins(config: JobConfig, setting: Setting, costs: Costs, mode: str, most: int) -> list[Twin]:
    """Simulate a run once, and once more for each of some of its offers with the opposite action there.

    Args:
        config: the job, with a chance to leave and a rest after it.
        setting: the trace, and how its cluster treats jobs.
        costs: what things take.
        mode: as ``stream.mode``.
        most: offers, at equal distances; those whose windows go beyond the trace are left out.
    """
    told = _run(config, setting, costs, mode, Lots(setting.seed), math.inf)
    whole = [
        number
        for number, (time, offer) in enumerate(told.offers)
        if time - BEGIN + WINDOWS[-1] + SLACK < setting.trace.seconds
        and len(told.gained.get(offer.id, ())) == len(WINDOWS)
    ]
    found = []
    for number in whole[:: max(1, math.ceil(len(whole) / most))] if whole else []:
        time, offer = told.offers[number]
        other = _run(config, setting, costs, mode, Lots(setting.seed, number), time - BEGIN + WINDOWS[-1] + SLACK)
        _, opposite = other.offers[number]
        assert offer.features == opposite.features, "twins are alike until they decide"
        gained = {one.action: tuple(told_.gained[one.id]) for one, told_ in ((offer, told), (opposite, other))}
        found.append(Twin(number, offer.features, gained))
    return found


def _run(config: JobConfig, setting: Setting, costs: Costs, mode: str, lots: Lots, until: float) -> _Told:
    told = _Told()
    with engine.given(NAME, lots):
        ElasticRun(config, setting, costs, NAME, mode, told).run(until)
    return told
