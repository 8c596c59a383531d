"""What holds of a state between any two steps of the core. Pure; tests ask after each step."""

from __future__ import annotations

from liver_slurm.coordinator.core.state import RunPhase, RunState
from liver_slurm.coordinator.core.worlds import ReconfigurationPhase


def broken_invariants(state: RunState) -> list[str]:
    """Return the invariants that do not hold of a state."""
    world, barriers, lifecycle = state.world, state.barriers, state.lifecycle
    checkpoint = barriers.checkpoint
    attempt, pending, held, goals = world.attempt, world.pending, barriers.cutover, state.resizes.goals
    starting = lifecycle.phase is RunPhase.STARTING
    numbers = [goal.number for goal in goals]
    members = set(world.members)
    waited_for = held.request if held is not None and not held.confirmed else -1
    proposed = {one.number for one in (held, checkpoint) if one is not None and not one.confirmed}
    rules = {
        "a committed world is the live one": attempt is None or attempt is pending or attempt.target == world.live,
        "a target world grows out of the live one": pending is None or pending.source == world.live,
        "a target world has the newest generation": pending is None
        or pending.target.generation == world.next_generation - 1,
        "a target world is in the journal": pending is None or pending.target.generation in world.unresolved,
        "state streams once all are prepared and have stopped": world.phase is not ReconfigurationPhase.STREAM
        or (attempt is not None and attempt.ready and held is not None and held.confirmed),
        "there is a live world unless the run starts": state.over or starting == (world.live is None),
        "a run that finishes begins no other world": lifecycle.phase is not RunPhase.FINISHING or attempt is None,
        "an outcome is decided when the run is over": state.over == (lifecycle.outcome is not None),
        "what is over has no attempt and no barrier": not state.over
        or (attempt, held, checkpoint) == (None, None, None),
        "the live world's members stop for a cutover": held is None or held.voters == members,
        "the live world's members stop for a checkpoint": checkpoint is None or checkpoint.voters == members,
        "only the live world is broken": not state.damage.broken or state.damage.generation == world.generation,
        "what follows a broken world has no member that is lost": pending is None
        or not set(state.damage.lost) & set(pending.involved),
        "a broken world has no barrier but its end": not state.damage.broken
        or (checkpoint is None and (held is None or held.confirmed)),
        "a proposal is in the journal": proposed <= barriers.unclosed,
        "training waits for a request that waits": waited_for < 0 or waited_for in numbers,
        "requests are in their order": list(goals) == sorted(goals, key=lambda goal: max(goal.at_step, -1)),
        "numbers of requests are used once": len({*numbers}) == len(numbers)
        and max(numbers, default=-1) < state.resizes.next_number,
        "no member of the live world was told to leave": state.over
        or not any(worker.dismissed for worker in state.members),
        "workers have their own names": all(name == worker.name for name, worker in state.membership.workers.items()),
    }
    return [rule for rule, holds in rules.items() if not holds]
