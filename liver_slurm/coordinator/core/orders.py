"""Orders of a reconfiguration to workers, made from the state alone, as one that is lost is given again."""

from __future__ import annotations

from collections.abc import Sequence

from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.coordinator.core.worlds import Attempt
from liver_slurm.protocol.messages import Abort, Commit, Prepare


def tell_prepare(t: Transition, receivers: Sequence[str], attempt: Attempt) -> None:
    """Tell workers to build their part of the target world."""
    settings, target, rescue = t.state.settings, attempt.target, attempt.rescue
    source = attempt.source if attempt.moves_state else None
    checkpoint = settings.checkpoint if rescue is None else rescue.checkpoint or ""
    involved = t.state.membership.of(attempt.involved)
    message = Prepare(
        epoch=settings.epoch,
        generation=target.generation,
        layout=str(target.layout),
        members=list(target.members),
        source_generation=source.generation if source else -1,
        source_layout=str(source.layout) if source else "",
        source_members=list(source.members) if source else [],
        store_host=settings.store_host,
        store_port=settings.store_port,
        checkpoint="" if source else checkpoint,
        lost=list(rescue.lost) if rescue is not None and source else [],
        mirrors=dict(rescue.mirrors) if rescue is not None and source else {},
        step=rescue.step if rescue is not None else -1,
        back=rescue is not None and rescue.back,
        standing=rescue is not None and source is not None,
        scribe=rescue.scribe if rescue is not None else "",
        hosts={worker.name: worker.host for worker in involved},
    )
    t.send(receivers, message)


def tell_commit(t: Transition, receivers: Sequence[str]) -> None:
    """Tell workers that the live world is committed."""
    world, epoch = t.state.world, t.state.settings.epoch
    assert world.live is not None
    held = world.held_at_start
    t.send(receivers, Commit(epoch=epoch, generation=world.live.generation, step=world.live.step, held=held))


def tell_left_behind(t: Transition, worker: str, generation: int) -> None:
    """Tell a worker that left the live world with an earlier commit, and has not heard so, that it is in none."""
    t.send([worker], Commit(epoch=t.state.settings.epoch, generation=generation, step=0))


def tell_abort(t: Transition, receivers: Sequence[str], generation: int, reason: str) -> None:
    """Tell workers that a target world is given up."""
    t.send(receivers, Abort(epoch=t.state.settings.epoch, generation=generation, reason=reason))
