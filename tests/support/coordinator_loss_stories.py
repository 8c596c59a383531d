"""Stories of sudden deaths: how they are found out, and the world after a broken one."""

from __future__ import annotations

from coordinator_stories import story
from transcript import Story

from liver_slurm.coordinator.core.io import CheckpointFound, HungUp
from liver_slurm.protocol import messages as m

THREE = ("live-0", "live-1", "live-2")
LAYOUTS = ("tp1pp1dp1", "tp1pp1dp2", "tp1pp1dp3")


def three(*, distributed: bool = False) -> Story:
    """Three live workers train."""
    change = {"train.distributed_optimizer": distributed, "elastic.layouts": LAYOUTS}
    run = Story(workers=3, change=change)
    run.train(*THREE)
    return run


def park(run: Story, name: str, step: int = 5, reached: str = "nothing", **more: object) -> None:
    error = "Connection closed by peer"
    run.say(m.Parked(worker=name, generation=run.live.generation, step=step, reached=reached, error=error, **more))  # type: ignore[arg-type]


@story
def sudden_death() -> Story:
    """A member's connection is closed and a collective fails: the survivors go on, one of them with a redone update."""
    run = three()
    run.beat(*THREE, step=5)
    run.feed(HungUp(run.now, b"live-1", run.now - 0.4))
    park(run, "live-0", reached="gradients")
    run.tick(0.1)
    run.beat("live-2", step=6, after=1.0)
    park(run, "live-2", step=6)
    run.prepare_all()
    run.stream_all()
    run.enter_all()
    run.tick(0.3)
    return run


@story
def sudden_death_on_a_card() -> Story:
    """A member's connection is closed, and no collective fails: the others are asked, and say that no step comes."""
    run = three()
    run.beat(*THREE, step=5)
    run.feed(HungUp(run.now, b"live-1", run.now - 0.4))
    run.tick(0.1)
    run.beat("live-0", "live-2", step=5, since_step=0.45)
    run.tick(0.1)
    run.beat("live-0", "live-2", step=5, since_step=0.6)
    run.tick(0.1)
    park(run, "live-0")
    park(run, "live-2")
    run.prepare_all()
    run.stream_all()
    run.enter_all()
    return run


@story
def sudden_death_of_one_that_is_mirrored() -> Story:
    """The distributed optimizer's shards have no replica, but a survivor keeps their mirror: no step is lost."""
    run = three(distributed=True)
    run.beat(*THREE, step=5)
    run.ask(m.WorkerEnded(worker="live-1", reason="killed by SIGKILL"))
    park(run, "live-0", reached="gradients", mirrors={"live-2": (5, True)}, verified={"live-2": 1})
    park(run, "live-2", step=6, mirrors={"live-1": (5, True)}, verified={"live-1": 1})
    run.prepare_all()
    run.stream_all()
    run.enter_all()
    return run


@story
def sudden_death_of_the_only_holder() -> Story:
    """The distributed optimizer's shards have no replica: the survivors go back to the newest checkpoint."""
    run = three(distributed=True)
    run.beat(*THREE, step=5)
    run.ask(m.WorkerEnded(worker="live-1", reason="killed by SIGKILL"))
    park(run, "live-0")
    park(run, "live-2")
    run.feed(CheckpointFound(run.now, "/c/step-3", 3))
    run.prepare_all()
    run.enter_all()
    run.beat("live-0", "live-2", generation=1, step=4)
    return run


@story
def sudden_death_of_another() -> Story:
    """A second member dies while the world after the first death is prepared."""
    run = three()
    run.ask(m.WorkerEnded(worker="live-1", reason="killed by SIGKILL"))
    park(run, "live-0")
    park(run, "live-2")
    run.prepare("live-0")
    run.ask(m.WorkerEnded(worker="live-2", reason="killed by SIGKILL"))
    run.prepare_all()
    run.stream_all()
    run.enter_all()
    return run


@story
def sudden_death_behind_the_last_step() -> Story:
    """A member dies before it has trained the last step, which another has: the others train it once more."""
    run = three()
    steps = run.state.settings.config.train.steps
    run.say(m.Finished(worker="live-0", step=steps))
    run.ask(m.WorkerEnded(worker="live-1", reason="killed by SIGKILL"))
    park(run, "live-0", step=steps)
    park(run, "live-2", step=steps - 1, reached="gradients")
    run.prepare_all()
    run.stream_all()
    run.enter_all()
    for name in ("live-0", "live-2"):
        run.say(m.Finished(worker=name, step=steps))
    run.leave("live-0", "live-2")
    return run


@story
def world_that_stands() -> Story:
    """A worker is stopped: whoever is well leaves its collectives, and the one that does not is lost."""
    run = three()
    run.beat(*THREE, step=5)
    with run.quietly("live-1 says nothing, and no step is made"):
        for _ in range(40):
            run.tick(0.1)
            run.beat("live-0", "live-2", step=5)
    for _ in range(12):
        run.tick(0.1)
        run.beat("live-0", "live-2", step=5)
    return run
