"""Failure recovery: the world after a broken one, made of what its survivors hold and mirror, or of a checkpoint.

What is known of the dead is journaled before anybody hears of it. Then the survivors leave their collectives, say how
far they have come, and stand still. When all have, the next world is planned: the best layout of whoever is left and
whatever standby is warm. It begins with the last update that any survivor has begun, because a rank begins an update
only when the gradients of all are final; those that have not made it make it now.

Where too few are left for any layout, what is left stands still until workers have come that were started again in the
place of the dead, or standbys; where nobody is left, the newest checkpoint says how far the run has come.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from liver_slurm.base.frozen import replace
from liver_slurm.coordinator.core import lifecycle, membership, orders, reconfiguration, step_barrier
from liver_slurm.coordinator.core.io import CheckpointFound, FindCheckpoint
from liver_slurm.coordinator.core.parts import Damage, FoundCheckpoint
from liver_slurm.coordinator.core.records import MembersLost
from liver_slurm.coordinator.core.signals import Heard, Registered, WorkersLost, WorldStands
from liver_slurm.coordinator.core.state import RunPhase, RunState
from liver_slurm.coordinator.core.transition import Transition, Writer
from liver_slurm.coordinator.core.worlds import Rescue
from liver_slurm.parallel.layout import Layout
from liver_slurm.policy import api
from liver_slurm.policy.cost_model import choose
from liver_slurm.policy.rank_assignment import rank_order
from liver_slurm.policy.recovery_source import Source, choose_source
from liver_slurm.policy.setbacks import Breakdown, after
from liver_slurm.protocol.messages import Halt, Parked
from liver_slurm.rundir import events
from liver_slurm.rundir.worker_names import earlier_in_place, named

REPEAT = 1.0
"""Seconds after which a member that has not left its collectives is told again."""
RETURN = 5.0
"""Seconds that a member has to come back to a restarted coordinator, when the others say that their world is broken."""
TRIES = 5
"""Next worlds that may be given up before the run is."""

_write = Writer(Damage, __name__)


# ---- the live world breaks -----------------------------------------------------------------------------------------


def workers_lost(t: Transition, news: WorkersLost) -> None:
    """Break the live world when members of it are lost: those that are lost together stand in one record."""
    lost = [one for one in news.workers if one.in_world]
    if lost:
        names, step = tuple(one.worker.name for one in lost), max(one.worker.step for one in lost)
        break_world(t, names, lost[0].reason, step, said=lost[0].said)


def registered(t: Transition, news: Registered) -> None:
    """Break the live world when another process has a member's name: the member has died while no coordinator looked.

    A standby job that was started again brings its workers back under the names that they had; a guaranteed worker that
    was has a name of its own, which says whose place it takes. A member of a world that is broken already is told so:
    the coordinator before may have died before it could.
    """
    state, name = t.state, news.name
    worker, process = state.membership.workers[name], state.world.processes.get(name)
    lost = earlier_in_place(name, state.world.members)
    if process not in (None, "", worker.process):
        lost.append(name)
    lost = [one for one in lost if one not in state.damage.lost]
    if lost:
        give_up_missing(t, lost, f"process {worker.pid} on {worker.host} has its place, and was never in this world")
    elif state.damage.broken and name in state.world.names and worker.generation == state.generation:
        _halt(t, [name], state.damage.reason)


def stands(t: Transition, news: WorldStands) -> None:
    """Break a world that stands still though nobody is known to be lost."""
    break_world(t, (), news.reason)


def break_world(
    t: Transition, lost: tuple[str, ...], reason: str, step: int = 0, well: str = "", said: bool = False
) -> None:
    """Write down that the live world trains no more, and have its members leave their collectives.

    Args:
        lost: members that are gone.
        step: steps that they had completed.
        well: a member that has left them already.
        said: whether the first that is lost has said ``reason`` itself.
    """
    state, live = t.state, t.state.world.live
    assert live is not None, "only a live world can break"
    if state.over or (state.damage.broken and not lost):
        return
    first = not state.damage.broken
    pending, barriers = state.world.pending, state.barriers
    t.journal(MembersLost(generation=live.generation, members=lost, reason=reason))
    told = f"{named(lost)} lost: {reason}" if lost else reason
    if pending is not None:
        reconfiguration.abort(t, told)
    if first:
        lifecycle.go_on(t)
        step_barrier.forget(t, barriers)
        _write(t, replace(t.state.damage, since=t.now))
    if first or (lost and t.state.damage.first is not None and not t.state.damage.first.names):
        broken = Breakdown(live.generation, max(state.step, step), lost, reason, said)
        _write(t, replace(t.state.damage, first=broken))
    t.explain(told)
    if first:  # who is left has been told by now, and is told again, see :func:`heard`
        _halt(t, [name for name in live.members if name != well], told)


def _halt(t: Transition, names: Iterable[str], reason: str) -> None:
    state = t.state
    message = Halt(epoch=state.settings.epoch, generation=state.generation, reason=reason)
    lost = frozenset(state.damage.lost)
    t.send([name for name in names if name not in lost], message)


def parked(t: Transition, message: Parked) -> None:
    """Handle a member that has left its collectives: its world is broken, whether or not anybody is lost."""
    live, damage = t.state.world.live, t.state.damage
    if live is None or message.generation != live.generation:
        return t.reject("late")
    if message.worker not in live.names:
        return t.reject("impossible")
    if damage.parked.get(message.worker) == message:
        return t.reject("duplicate")
    membership.reached(t, message.worker, message.step)
    break_world(t, (), f"a collective failed at {message.worker}: {message.error}", well=message.worker)
    damage = t.state.damage
    return _write(t, replace(damage, parked={**damage.parked, message.worker: message}))


def heard(t: Transition, news: Heard) -> None:
    """Tell a member of a broken world again what it may have missed."""
    state, live, name = t.state, t.state.world.live, news.beat.worker
    if live is None or not state.damage.broken or name not in live.names:
        return
    if name in state.damage.parked or name in state.damage.lost:  # if it is lost, another process has its name
        return
    if t.now < state.damage.since + REPEAT:
        return
    if news.beat.generation < live.generation:
        orders.tell_commit(t, [name])
    else:
        _halt(t, [name], state.reason)


def give_up_absent(t: Transition, missing: list[str]) -> bool:
    """Give members up that have not come back to a restarted coordinator for too long; returns whether it does.

    Where a collective has failed at those that are there, the others are not waited for long.
    """
    state, damage = t.state, t.state.damage
    since = damage.since if damage.broken else state.lifecycle.started
    patience = RETURN if damage.parked else state.settings.config.job.lost_after
    if not missing or t.now <= since + patience:
        return False
    give_up_missing(t, missing, "it did not come back to the restarted coordinator")
    return True


def give_up_missing(t: Transition, missing: list[str], reason: str) -> None:
    """Count members of the live world as lost that a restarted coordinator has never seen."""
    for name in missing:
        t.emit(events.WorkerLost(worker=name, in_world=True, reason=reason, detected_by="absence"))
    break_world(t, tuple(missing), reason)


# ---- the next world ------------------------------------------------------------------------------------------------


def advance(t: Transition, seen: api.Snapshot) -> None:
    """Begin the next world when all survivors of a broken one stand still.

    Args:
        seen: what a policy would decide from; it knows nothing of losses.
    """
    state, damage, live = t.state, t.state.damage, t.state.world.live
    assert live is not None, "only a live world can break"
    lost = frozenset(damage.lost)
    left = [name for name in live.members if name not in lost]
    if state.interruption.reason and state.interruption.until is None:
        return t.explain(f"{_what(state)}: {state.interruption.reason}")  # Slurm ends the job, or starts it again
    if state.interruption.reason:
        return _fail(t, state.interruption.reason)
    if give_up_absent(t, state.membership.missing(left)):
        return None
    stand = all(name in damage.parked for name in left)
    if stand and (vain := _why_in_vain(t)) is not None:
        return lifecycle.end(t, RunPhase.FAILED, f"{vain}; mend that first; {state.how_to_continue}")
    seen = replace(seen, leaving=seen.leaving | lost)
    if isinstance(allowed := _allowed(seen, state), str):
        return _wait(t, seen, allowed)
    if not stand:
        return None  # before anything is chosen, which takes its time: of thousands each parks by a message of its own
    chosen = choose_world(seen, allowed, state)
    if (failures := _failures(state, *chosen[:2])) is None:
        return None
    if failures >= TRIES:
        return _fail(t, f"{failures} worlds after it were given up, {state.reason}")
    distributed = state.settings.config.train.distributed_optimizer
    source = choose_source(live, lost, [damage.parked[name] for name in left], distributed, damage.stood_at)
    if source.kind == "mirrors" and failures > TRIES // 2:
        source = Source("checkpoint", source.step, f"{failures} worlds made of mirrors were given up")
    if source.kind == "checkpoint":
        if damage.checkpoint is None:
            return _search(t, state.step if left else None)
        if damage.checkpoint.why_none:
            return _fail(t, f"{source.reason}, and {damage.checkpoint.why_none}", sought=True)
        source = _from(damage.checkpoint, source.reason)
    return _begin(t, source, *chosen)


def _from(checkpoint: FoundCheckpoint, reason: str) -> Source:
    if checkpoint.path:
        return Source("checkpoint", checkpoint.step, reason, checkpoint=checkpoint.path)
    return Source("start", checkpoint.step, f"{reason}, and there is no checkpoint yet", checkpoint="")


def _wait(t: Transition, seen: api.Snapshot, why: str) -> None:
    """Wait for workers as long as before the run's first world, unless too few can come."""
    state, settings = t.state, t.state.settings
    patience = settings.config.job.start_timeout
    at_most = settings.live_workers - len(state.vigil.empty) + settings.standby_workers
    nobody = not api.allowed(seen.pinned, settings.config, at_most)
    if nobody or t.now > state.damage.since + patience:
        return _fail(t, why if nobody else f"{why}, and no others came within {patience:.0f} s")
    return t.explain(f"{_what(state)}: {why}; training stands until others come, for at most {patience:.0f} s")


def _failures(state: RunState, layout: Layout, members: tuple[str, ...]) -> int | None:
    """Return how often the very same world was given up; None: that was just now, and it is not tried again yet."""
    backoff = state.world.backoff
    if backoff is None or (backoff.layout, set(backoff.members)) != (layout, set(members)):
        return 0
    return backoff.failures if state.now >= backoff.until else None


def _why_in_vain(t: Transition) -> str | None:
    """Count the broken world among those that came no further, and say why another one is in vain, if it is."""
    damage = t.state.damage
    if damage.first is not None:
        step = max(damage.first.step, *(one.step for one in damage.parked.values()), 0)
        _write(t, replace(damage, first=None, setback=after(damage.setback, replace(damage.first, step=step))))
    setback = t.state.damage.setback
    return setback.why_stop(t.state.settings.config.train.steps) if setback is not None else None


def _fail(t: Transition, why: str, sought: bool = False) -> None:
    """End the run with one line that says what was missing, and what to do unless checkpoints were ``sought``."""
    then = "" if sought else f"; {t.state.how_to_continue}"
    lifecycle.end(t, RunPhase.FAILED, f"{_what(t.state)}: {why}{then}")


def _what(state: RunState) -> str:
    """Say what has happened to the live world."""
    damage = state.damage
    lost = f"{named(damage.lost, ' of the live world')} lost"
    return f"{lost if damage.lost else 'the live world is broken'} ({damage.reason})"


def _allowed(seen: api.Snapshot, state: RunState) -> list[Layout] | str:
    """Return the layouts that the next world may have, or say why there is none."""
    if not seen.leaving:
        return [seen.live.layout]
    workers = len(seen.pool)
    layouts = api.allowed(seen.pinned, state.settings.config, workers)
    return layouts or f"there is no allowed layout for the {workers} workers that are left"


def choose_world(seen: api.Snapshot, layouts: Sequence[Layout], state: RunState) -> tuple[Layout, tuple[str, ...], str]:
    """Choose layout, one of ``layouts``, and members of the next world, and say why."""
    live, config = seen.live, state.settings.config
    if not seen.leaving:
        return live.layout, live.members, f"{live.layout} again, with the same members"
    layout, why = choose(layouts, config, live, lambda one: api.pick(seen, one.size))
    members = api.pick(seen, layout.size)
    hosts = {worker.name: worker.host for worker in state.membership.of(members)}
    order, _ = rank_order(live, layout, members, hosts, config)
    return layout, order, why


def _begin(t: Transition, source: Source, layout: Layout, members: tuple[str, ...], why: str) -> None:
    damage, live = t.state.damage, t.state.world.live
    assert live is not None
    t.emit(
        events.RecoveryPlanned(
            source=str(live.layout),
            to=str(layout),
            members=members,
            lost=damage.lost,
            state_from=source.kind,
            checkpoint=source.checkpoint or "",
            step=source.step,
            redone=source.redone,
            mirrors=dict(source.mirrors),
            verified=dict(source.verified),
            reason=f"{source.reason}; {why}",
            known_for_s=t.now - damage.since,
        )
    )
    rescue = Rescue(damage.lost, source.step, source.scribe, source.checkpoint, source.mirrors, source.back)
    reconfiguration.begin(t, layout, members, "loss", f"{source.reason}; {why}", rescue=rescue)


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def _search(t: Transition, at_most: int | None) -> None:
    """Have the newest checkpoint looked for that does not lie ahead of training."""
    if not t.state.damage.searching:
        _write(t, replace(t.state.damage, searching=True))
        t.actions.append(FindCheckpoint(at_most))


def checkpoint_found(t: Transition, given: CheckpointFound) -> None:
    """Note what there is to go back to."""
    damage = t.state.damage
    if not damage.broken or not damage.searching:
        return t.reject("late")
    found = FoundCheckpoint(given.path, given.step, given.why_none)
    return _write(t, replace(damage, searching=False, checkpoint=found))
