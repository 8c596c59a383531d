"""Changes of phase: the table of them, and what is raised for one that is not in it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
from coordinator_states import Run, settings
from coordinator_stories import STORIES

from liver_slurm.coordinator.core import lifecycle
from liver_slurm.coordinator.core.io import GuaranteedJobSeen, Interrupted, StopAsked
from liver_slurm.coordinator.core.state import Phase, RunPhase
from liver_slurm.coordinator.core.step import recover
from liver_slurm.coordinator.core.transition import REMEMBERED, TRANSITIONS, InvalidTransition, Transition
from liver_slurm.coordinator.core.worlds import ReconfigurationPhase
from liver_slurm.protocol import messages as m
from liver_slurm.scheduler.ports import GuaranteedJob

for part in ("world", "request", "end", "standby", "live_job", "loss"):
    import_module(f"coordinator_{part}_stories")  # adds its stories


def training(**options: Any) -> Run:
    run = Run(**options)
    run.train("live-0", "live-1", job_id=run.state.settings.job_id)
    return run


def finishing(run: Run) -> Run:
    run.say(m.Finished(worker="live-0", step=run.state.settings.config.train.steps))
    return run


def recovering() -> Run:
    before = training()
    return Run(recover(before.records, settings(epoch=2), before.now))


def time_limit(run: Run) -> Run:
    run.feed(GuaranteedJobSeen(run.now, GuaranteedJob(run.now + 20.0, 3600.0)))
    run.tick()
    return run


def ends() -> None:
    """Ends of a run, and of a coordinator's part of it, that no story has."""
    preparing = Run(job_id="7")
    for name in ("live-0", "live-1"):
        preparing.register(name, job_id="7")
    time_limit(preparing)
    finishing(time_limit(training(job_id="7"))).tick(20.0)
    finishing(training()).say(m.Failed(worker="live-1", generation=0, step=0, error="killed"))
    for run in (finishing(training()), recovering(), Run()):
        run.feed(StopAsked(run.now, "SIGTERM"))
    for run in (finishing(training()), recovering()):
        run.feed(Interrupted(run.now, "job 7 was requeued", requeued=True))
        run.tick(21.0)
    run = recovering()
    run.register("live-0", generation=0)
    finishing(run)
    run = recovering()
    run.register("live-0", generation=0)
    for one in (run, training()):
        bad = m.Failed(worker="live-0", generation=0, step=0, error="no such file", for_good=True)
        one.say(bad)
    alone = Run(workers=1)
    alone.train("live-0")
    finishing(alone)


def test_every_change_of_phase_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[Phase, Phase]] = set()
    remember = Transition.remember

    def watch(t: Transition, what: object) -> None:
        if isinstance(what, tuple):
            seen.add(what)
        remember(t, what)

    monkeypatch.setattr(Transition, "remember", watch)
    for tell in STORIES.values():
        tell()
    ends()
    assert sorted(f"{before.value} → {after.value}" for before, after in set(TRANSITIONS) - seen) == []


def test_the_phases_of_a_run_and_of_a_reconfiguration_are_apart() -> None:
    assert all(type(before) is type(after) for before, after in TRANSITIONS)
    assert not any(before.over for before, _ in TRANSITIONS if isinstance(before, RunPhase))
    ways = {after for before, after in TRANSITIONS if before is ReconfigurationPhase.CUTOVER}
    assert ways == {ReconfigurationPhase.RETIRE, ReconfigurationPhase.STEADY}, "no way back from a commit record"


def test_another_change_of_phase_raises_with_its_story() -> None:
    # LS-30
    run = Run()
    run.train("live-0", "live-1")
    t = Transition(run.state, run.now)
    with pytest.raises(InvalidTransition, match="no way from training to starting") as raised:
        lifecycle._enter(t, RunPhase.STARTING)
    told = str(raised.value)
    for word in ("Register(", "Committed(generation=0", "starting → training", "prepare → cutover", "WorldEntered("):
        assert word in told
    assert (raised.value.before, raised.value.after) == (RunPhase.TRAINING, RunPhase.STARTING)


def test_the_story_is_bounded() -> None:
    run = Run()
    run.train("live-0", "live-1")
    for number in range(2 * REMEMBERED):
        run.register("live-0", generation=0, steps=number)
    assert len(run.state.story) == REMEMBERED
    assert all(len(str(told)) < 400 for told in run.state.story)
