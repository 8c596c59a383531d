"""Node release: guaranteed nodes that a resize leaves out go back to Slurm, once their workers have exited.

Slurm takes the last nodes of a component (``scontrol update NumNodes``) where this Slurm can; without accounting it can
do so once, and then the component can only be ended as a whole. Component 0, the coordinator's, always stays. All of
this concerns the job that the coordinator belongs to. A request holds until the next one: a successor job, or the same
job when Slurm starts it again, has all the nodes of the job file, and releases what the request leaves out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from liver_slurm.base.errors import BadInput
from liver_slurm.base.frozen import replace
from liver_slurm.config.layouts import feasible_layouts
from liver_slurm.config.schema import LiveSection
from liver_slurm.coordinator.core import guaranteed_job, membership
from liver_slurm.coordinator.core.io import GiveBack, GivenBack, Tick
from liver_slurm.coordinator.core.parts import NodeRelease
from liver_slurm.coordinator.core.records import NodesGivenBack
from liver_slurm.coordinator.core.state import RunState
from liver_slurm.coordinator.core.transition import Transition, Writer
from liver_slurm.policy.types import ResizeGoal
from liver_slurm.rundir import events
from liver_slurm.rundir.worker_names import task_number

_write = Writer(NodeRelease, __name__)


@dataclass(frozen=True)
class Component:
    """One worker component of the guaranteed job, as far as it is still there."""

    number: int
    """From 1."""
    nodes: tuple[range, ...]
    """Numbers of each node's workers, in the order in which Slurm holds the nodes."""
    shrinkable: bool = True
    """Slurm can take single nodes of it."""

    def left(self, needed: Collection[int]) -> int:
        """Return how many nodes it keeps if of all workers only these are needed."""
        taken = [at for at, node in enumerate(self.nodes) if any(worker in needed for worker in node)]
        if not taken:
            return 0
        return taken[-1] + 1 if self.shrinkable else len(self.nodes)


def components(live: LiveSection, nodes_left: Mapping[int, int], unshrinkable: Collection[int]) -> list[Component]:
    """Return the components of a guaranteed job, with their workers as ``srun`` numbers them.

    Args:
        live: of the job file.
        nodes_left: nodes left to those components that have released some.
        unshrinkable: components that Slurm takes no single node of.
    """
    found, first = [], 0
    for number, section in enumerate(live.component, start=1):
        each, end = section.tasks_per_node, first + section.nodes * section.tasks_per_node
        nodes = tuple(range(start, start + each) for start in range(first, end, each))
        first, left = end, nodes_left.get(number, section.nodes)
        if left:
            found.append(Component(number, nodes[:left], number not in unshrinkable))
    return found


def leavers(parts: Sequence[Component], there: Collection[int], count: int) -> tuple[tuple[int, ...], int, str]:
    """Choose workers of ``there`` that go, ``count`` at most (0 or less: none), so that nodes become free.

    First whole components that Slurm takes in no other way, then node by node, from the last one on.

    Returns:
        the workers; how many nodes that frees; and why ``count`` workers free no more, or "" if each frees its node.
    """
    chosen: list[int] = []
    freed = 0

    def take(nodes: Sequence[range]) -> bool:
        nonlocal freed
        going = [worker for node in reversed(nodes) for worker in reversed(node) if worker in there]
        fits = len(going) <= count - len(chosen)
        if fits:
            freed += len(nodes)
            chosen.extend(going)
        return fits

    rigid = [part.number for part in reversed(parts) if not part.shrinkable and not take(part.nodes)]
    for part in reversed(parts):
        left = len(part.nodes) if part.shrinkable else 0
        while left and take(part.nodes[left - 1 : left]):
            left -= 1
    rest = count - len(chosen)
    if rest <= 0:
        return tuple(chosen), freed, ""
    whole = f", and component {', '.join(map(str, sorted(rigid)))} only whole" if rigid else ""
    why = f"{rest} worker{'s' if rest > 1 else ''} more will be in no world: a node goes back with all of its workers"
    return tuple(chosen), freed, why + whole


def largest(parts: Sequence[Component], there: Collection[int]) -> int:
    """Return the size of the largest world of the workers ``there`` that leaves a node free; 0: there is none."""
    costs = [
        sum(worker in there for node in (part.nodes[-1:] if part.shrinkable else part.nodes) for worker in node)
        for part in parts
    ]
    return max(0, len(there) - min(costs, default=len(there)))


# ---- carrying it out ----------------------------------------------------------------------------------------------


def judge(state: RunState, goal: ResizeGoal) -> None:
    """Check that a request lets nodes of the guaranteed job go.

    Raises:
        BadInput: it does not, or not now.
    """
    job_id = state.settings.job_id
    if not state.settings.heterogeneous:
        raise BadInput(
            "--give-back: this run has no guaranteed job of several components in Slurm, as `liver-slurm submit` makes "
            "it, so it has no nodes to give back; leave --give-back out"
        )
    if guaranteed_job.under_way(state):
        # Which nodes are free is judged by the job that holds the world, and in a moment that is another one.
        raise BadInput("--give-back: the run is moving to its successor job; ask again when `status` shows that job")
    parts, there, size = _components(state), _undismissed(state, job_id), _world_size(state, goal)
    if leavers(parts, there, len(there) - size)[1]:
        return
    most = largest(parts, there)
    instead = f"ask for {most} or fewer" if most else "none of its nodes can go"
    why = "a node goes back with all of its workers" if size < len(there) else "that is no smaller world"
    raise BadInput(
        f"--give-back: the guaranteed job {job_id} has {len(there)} workers, and {size} of them leave no node free "
        f"({why}); {instead}, or leave --give-back out"
    )


def go_first(state: RunState, goal: ResizeGoal | None) -> tuple[tuple[str, ...], int, str]:
    """Return the guaranteed workers that a world for ``goal`` leaves out first, the nodes that frees, and why no more.

    While the run moves to a successor these are the successor's.
    """
    if goal is None or not goal.give_back:
        return (), 0, ""
    successor = state.handover.successor if guaranteed_job.announced(state) else ""
    parts = components(state.settings.config.live, {}, ()) if successor else _components(state)
    there = _undismissed(state, successor or state.settings.job_id)
    chosen, nodes, why = leavers(parts, there, len(there) - _world_size(state, goal))
    return tuple(there[number] for number in chosen), nodes, why


def advance(t: Transition, _: Tick) -> None:
    """Release what the last request leaves out: workers on nodes that can go exit, then the nodes go."""
    state, settings = t.state, t.state.settings
    goal = state.resizes.size_ceiling
    if goal is None or not goal.give_back or not settings.heterogeneous or state.resizes.goals:
        return
    if not state.steady or state.interruption.reason or guaranteed_job.under_way(state):
        return
    # Workers that are still there may not have registered yet with a coordinator that was started again.
    known = settings.epoch == 1 or t.now > state.lifecycle.started + settings.config.job.lost_after
    own = _workers(state, settings.job_id)
    needed = {number for number, name in own.items() if name in state.world.names}
    for part in _components(state):
        left = part.left(needed)
        if left == len(part.nodes) or state.release.refused_releases.get(part.number) == left:
            continue
        # All at once: without accounting Slurm takes nodes of a component only once.
        going = [own[number] for node in part.nodes[left:] for number in node if number in own]
        for worker in state.membership.of(going):
            if not worker.dismissed:
                membership.dismiss(t, worker.name, "its node is given back")
        if known and not going and t.state.release.releasing is None:
            _write(t, replace(t.state.release, releasing=part.number))
            t.actions.append(GiveBack(part.number, left))


def given(t: Transition, answer: GivenBack) -> None:
    """Handle Slurm's answer: it has taken nodes back, or refused to."""
    release, component = t.state.release, answer.component
    if answer.error:
        refused = {**release.refused_releases, component: answer.kept}
        declined = release.declined | {component}
        _write(t, replace(release, releasing=None, declined=declined, refused_releases=refused))
        t.emit(events.NodesKept(component=component, reason=answer.error))
        return
    _write(t, replace(release, releasing=None))
    job_id = t.state.settings.job_id
    t.journal(NodesGivenBack(job_id=job_id, component=component, kept=answer.kept, again=answer.again))
    t.emit(events.NodesGivenBack(component=component, nodes=answer.nodes, kept=answer.kept))


def forget_refusals(t: Transition) -> None:
    """Let Slurm be asked again for what it has refused: whoever asks again wants it tried again."""
    _write(t, replace(t.state.release, refused_releases={}))


def _world_size(state: RunState, goal: ResizeGoal) -> int:
    """Return the size of the world that fulfils a request; not every number of workers has a layout."""
    if goal.layout is not None:
        return goal.layout.size
    return feasible_layouts(state.settings.config, goal.workers)[0].size


def _components(state: RunState) -> list[Component]:
    return components(state.settings.config.live, state.release.nodes_left, state.release.unshrinkable)


def _workers(state: RunState, job_id: str) -> dict[int, str]:
    """Return the names of a guaranteed job's workers by the number that ``srun`` gave them."""
    found = {}
    for worker in state.membership.of_job(job_id, "live"):
        number = task_number(worker.name, job_id)
        if number is not None:
            found[number] = worker.name
    return found


def _undismissed(state: RunState, job_id: str) -> dict[int, str]:
    """Return those of :func:`_workers` that were not told to leave."""
    workers = state.membership.workers
    return {number: name for number, name in _workers(state, job_id).items() if not workers[name].dismissed}
