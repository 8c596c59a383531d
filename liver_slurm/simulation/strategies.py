"""Other ways to train on the same trace and the same costs, to compare with. Pure.

Each is given what is doubtful. Checkpoint and restart knows how many losses come for its interval, writes its
checkpoints in the background as the product does, and is the better of one that restarts whenever it can grow and one
that grows only where it must restart anyway. Data parallelism that
grows and shrinks knows which tensor and pipeline parallel sizes will suit the trace best, and shrinks in no time.
Where a trace has what others chose on it, that is followed, see :mod:`liver_slurm.simulation.published`. Perfect
foresight has each node from the moment in which it is on offer to its last, and changes for nothing: nobody can do
better in the layouts that the job allows.
"""

from __future__ import annotations

import math

from liver_slurm.parallel.layout import AXES, Layout
from liver_slurm.simulation.account import Account
from liver_slurm.simulation.capacity import Capacity
from liver_slurm.simulation.published import follow
from liver_slurm.simulation.rule_run import Outcome, RuleRun, Rules


def compare(capacity: Capacity) -> list[Outcome]:
    """Simulate all ways to train, the best last."""
    return [
        guaranteed_only(capacity),
        checkpoint_restart(capacity),
        data_parallel_only(capacity),
        *(follow(one, capacity) for one in capacity.setting.trace.published),
        foresight(capacity),
    ]


def guaranteed_only(capacity: Capacity) -> Outcome:
    """Train on the guaranteed nodes, and never change."""
    run = RuleRun(capacity, capacity.speeds, _quiet(capacity))
    run.follow([])
    return Outcome("guaranteed-only", "none", run.account, 0)


def _quiet(capacity: Capacity) -> Rules:
    return Rules(0.0, 0.0, 0.0, grows=False, stall_share=_stall_share(capacity))


def _stall_share(capacity: Capacity) -> float:
    return capacity.costs.stall_s / capacity.costs.save_every_s


def checkpoint_restart(capacity: Capacity) -> Outcome:
    """Restart from a checkpoint for each change; the better of growing at once and of growing where it must."""
    outcomes = [restart_from_checkpoints(capacity, grows=grows) for grows in (True, False)]
    return max(outcomes, key=lambda one: one.account.steps)


def restart_from_checkpoints(capacity: Capacity, *, grows: bool) -> Outcome:
    """Restart from a checkpoint for each change; with ``grows`` also where more nodes make it faster."""
    costs = capacity.costs
    rules = Rules(
        announced_s=costs.save_s + costs.restart_s,
        sudden_s=costs.detect_s + costs.restart_s,
        needs_notice=costs.save_s,
        grows=grows,
        save_every=save_interval(capacity),
        stall_s=costs.stall_s,
        write_s=costs.save_s,
    )
    run = RuleRun(capacity, capacity.speeds, rules)
    run.follow(capacity.news(0.0))  # a restart has the start of its processes in it
    return Outcome("checkpoint-restart", "restart", run.account, run.changes)


def save_interval(capacity: Capacity) -> float:
    """Return the seconds of training between two checkpoints on the way; infinity: no loss asks for one.

    It is Young's and Daly's, the root of 2 · stall · time between losses, but for that no checkpoint begins before the
    last one is written. Losses are those of nodes that the run takes, which are not announced early enough for a
    checkpoint.
    """
    costs, trace = capacity.costs, capacity.setting.trace
    heard = capacity.setting.notice >= costs.save_s
    losses = sum(span.end < trace.seconds and (span.sudden or not heard) for span, _, _ in capacity.taken())
    if not losses:
        return math.inf
    return max(math.sqrt(2.0 * costs.stall_s * trace.seconds / losses), costs.save_s, 1e-3)


def data_parallel_only(capacity: Capacity) -> Outcome:
    """Grow and shrink by replicas, with the sizes of the other dimensions that suit it best."""
    costs = capacity.costs
    families: dict[tuple[int, ...], list[Layout]] = {}
    for layout in capacity.layouts():
        sizes = tuple(getattr(layout, axis) for axis in AXES if axis != "dp")
        families.setdefault(sizes, []).append(layout)
    rules = Rules(
        announced_s=costs.exposed_pause_s,
        sudden_s=costs.detect_s + costs.recover_s + costs.exposed_pause_s,
        needs_notice=0.0,
        grows=True,
        loses=0.5,  # of a step, in the mean: replicas have the state
        stall_share=_stall_share(capacity),
    )
    runs = []
    for layouts in families.values():
        speeds = capacity.only(layouts)
        if speeds.best(capacity.guaranteed) is not None:
            run = RuleRun(capacity, speeds, rules)
            run.follow(capacity.news(costs.join_s + costs.prepare_s))
            runs.append(run)
    best = max(runs, key=lambda run: run.account.steps, default=None)
    if best is None:
        return Outcome("data-parallel-only", "pause", Account(paused_s=capacity.setting.trace.seconds), 0)
    return Outcome("data-parallel-only", "pause", best.account, best.changes)


def foresight(capacity: Capacity) -> Outcome:
    """Have the fastest layout of all that is on offer at any moment, for nothing: the bound of all ways to train."""
    account, changes = Account(), -1
    last: Layout | None = None
    step = 0.0
    for begin, end, nodes in capacity.offers():
        layout = capacity.speeds.best(capacity.workers(nodes))
        if layout is None:
            account.stood(end - begin, 0)
            continue
        step_s = capacity.speeds.step_s(layout)
        account.trained(step, step + (end - begin) / step_s, step_s, layout.size)
        step += (end - begin) / step_s
        changes += layout != last
        last = layout
    return Outcome("foresight", "none", account, max(0, changes))
