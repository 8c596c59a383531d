"""Standby scaling: which standby jobs to start and which to end.

:func:`decide` is a function of a :class:`View`. The useful number of workers is that of the fastest world that the run
may have, the smallest of several: of the allowed layouts that guaranteed and standby jobs can fill, below the size
ceiling that an explicit resize has left; or what a waiting request asks for. Spares come on top, if the job file wants
any. Where jobs do not wait in the queue, only the workers that are there or have room count: one that waits for others
makes nothing faster. Of several sizes of standby job the
largest that does not exceed what is missing is started, in the best partition with headroom that does not rest. A query
that the scheduler did not answer is a reason neither to start nor to end a job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from liver_slurm.base.frozen import replace
from liver_slurm.config.layouts import feasible_layouts
from liver_slurm.config.schema import JobConfig
from liver_slurm.config.units import most_workers, standby_units, workers_per_job
from liver_slurm.policy.cost_model import choose
from liver_slurm.policy.survival import Life, failing, on_trial, resting
from liver_slurm.policy.types import ResizeGoal
from liver_slurm.scheduler.ports import CapacitySnapshot, Headroom, StandbyJob

FEW = 64
"""Jobs that may wait in the queue, however few run."""


@dataclass(frozen=True)
class View:
    """The facts that :func:`decide` needs. Times are seconds since the epoch."""

    now: float
    capacity: CapacitySnapshot
    guaranteed: int
    """Guaranteed workers that stay."""
    asked: int = 0
    """Workers that the largest explicit request needs."""
    size_ceiling: ResizeGoal | None = None
    """The last fulfilled request: the run does not grow beyond it."""
    busy: frozenset[str] = frozenset()
    """Standby jobs with a worker in the live or the target world."""
    going: frozenset[str] = frozenset()
    """Standby jobs with a worker that has a notice or was told to leave."""
    spans: tuple[Life, ...] = ()
    """How long standby jobs have been there, oldest first."""
    useless_since: Mapping[str, float] = field(default_factory=dict)
    """Since when standby jobs have been of no use; as the last decision left it."""
    left_alone: Mapping[str, float] = field(default_factory=dict)
    """Partitions that rest by a decision of the policy's, and until when."""


@dataclass(frozen=True)
class Order:
    """Standby jobs of one unit to start in one partition."""

    unit: int
    partition: str
    count: int


@dataclass(frozen=True)
class Decision:
    """Standby jobs to start and to end now."""

    start: tuple[Order, ...] = ()
    end: tuple[str, ...] = ()
    """Ids of jobs."""
    useless_since: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Stock:
    """Our standby jobs by what they are good for."""

    sizes: tuple[int, ...]
    """Workers a job, of each unit."""
    running: tuple[StandbyJob, ...]
    waiting: tuple[StandbyJob, ...]
    """In the queue, oldest first."""
    room: tuple[Headroom, ...]
    """What would be left once those of ``waiting`` have started that can."""
    contended: frozenset[int]
    """Units with room that a waiting job of another unit may be about to take."""
    starting: frozenset[str]
    """Those of ``waiting`` that have room."""
    need: int
    """Workers of standby jobs that are useful, spares included."""
    tried: Mapping[str, int]
    """Further jobs that may be started in each partition that is on trial."""

    @property
    def open_room(self) -> tuple[Headroom, ...]:
        """Where a further job may be started now: not in a partition on trial that has its one job."""
        return tuple(place for place in self.room if self.tried.get(place.partition, 1) > 0)

    def workers(self, jobs: tuple[StandbyJob, ...]) -> int:
        return sum(self.sizes[job.unit] for job in jobs)

    @property
    def missing_now(self) -> int:
        """Useful workers that neither run nor are about to."""
        return (
            self.need
            - self.workers(self.running)
            - self.workers(tuple(job for job in self.waiting if job.job_id in self.starting))
        )

    @property
    def may_wait(self) -> int:
        """Further jobs that may wait: as many as run, or :data:`FEW`.

        What they are for is the time to the next look, which sees the nodes that are idle then. Each one more costs
        Slurm's scheduler time, at each of its looks at the queue and whenever it is to stay there for a while.
        """
        return max(FEW, len(self.running)) - (len(self.waiting) - len(self.starting))

    @property
    def missing(self) -> int:
        """Useful workers that do not even wait."""
        return self.need - self.workers(self.running) - self.workers(self.waiting)

    def best_unit(self, missing: int, units: set[int]) -> int:
        """Return the largest of ``units`` that does not exceed what is missing, else the smallest."""
        return min(units, key=lambda unit: (self.sizes[unit] > missing, abs(missing - self.sizes[unit]), unit))


def decide(view: View, config: JobConfig) -> tuple[Decision, str]:
    """Decide which standby jobs to start and to end now, and say why."""
    if config.standby.max_jobs == 0:
        return Decision(), "standby.max_jobs is 0"
    if view.capacity.blind is not None:
        return Decision(useless_since=view.useless_since), f"the scheduler could not be asked: {view.capacity.blind}"
    rests = resting(view.spans, view.now, config.standby.hold, config.standby.back_off)
    fails = failing(view.spans, view.now, config.standby.back_off)
    closed = frozenset(rests) | frozenset(fails) | frozenset(view.left_alone)
    stock = _stock(view, config, closed)
    start = _start(view, config, stock, closed)
    end, useless_since = _end(view, config, stock, closed, start)
    waiting = f", {len(stock.waiting)} wait" if stock.waiting else ""
    spares = f", {config.standby.spares} of them as spares" if config.standby.spares else ""
    reason = (
        f"{stock.need} workers of standby jobs are useful{spares}, {stock.workers(stock.running)} are there{waiting}"
    )
    for partition, (until, count) in rests.items():
        reason += f"; {partition} took {count} in a row too soon, left alone for {until - view.now:.0f} s"
    for partition, (until, count) in fails.items():
        reason += f"; standby jobs failed {count} times in a row in {partition} before a worker was ready, see their "
        reason += f"logs; the next is tried in {until - view.now:.0f} s"
    for partition in sorted(stock.tried.keys() - closed):
        reason += f"; {partition}, where standby jobs failed before a worker was ready, is tried with one"
    for partition, until in view.left_alone.items():
        reason += f"; the policy leaves {partition} alone for {until - view.now:.0f} s"
    return Decision(tuple(start), end, useless_since), reason


def room(seen: CapacitySnapshot, config: JobConfig) -> int:
    """Count the workers that would start at once in all partitions, of the unit that brings the most in each."""
    sizes = tuple(workers_per_job(unit) for unit in standby_units(config.standby))
    return sum(room_by_partition(seen, sizes).values())


def room_by_partition(seen: CapacitySnapshot, sizes: tuple[int, ...]) -> dict[str, int]:
    """Count the workers that would start at once in each partition, of the unit that brings the most.

    ``sizes``: workers a job, of each unit.
    """
    found: dict[str, int] = {}
    for place in seen.room:
        workers = place.jobs * sizes[min(place.unit, len(sizes) - 1)]
        found[place.partition] = max(found.get(place.partition, 0), workers)
    return found


def still_wanted(ordered: Sequence[Order], wanted: Sequence[Order]) -> tuple[Order, ...]:
    """Return the orders that are still to be carried out, given what is wanted beside the jobs that are there.

    The first of them is under way, and is part of what is wanted.
    """
    left = Counter[tuple[int, str]]()
    for order in wanted:
        left[order.unit, order.partition] += order.count
    kept = list[Order]()
    for order in ordered:
        place = order.unit, order.partition
        count = min(order.count, left[place]) if kept else order.count
        left[place] -= count
        if count > 0:
            kept.append(replace(order, count=count))
    return tuple(kept)


def useful_workers(
    config: JobConfig, guaranteed: int, asked: int, ceiling: ResizeGoal | None, within_reach: int | None = None
) -> int:
    """Return the number of workers of the fastest world that the run may have, or of the one that is asked for.

    Of worlds that are as fast the smallest counts: no node is held that makes nothing faster.

    Args:
        config: of the run.
        guaranteed: guaranteed workers.
        asked: workers that the largest explicit request needs.
        ceiling: the run does not grow beyond it.
        within_reach: workers of standby jobs that there can be for now; None: as many as the job file allows.
    """
    standbys = most_workers(config.standby)
    most = guaranteed + (standbys if within_reach is None else min(standbys, within_reach))
    if ceiling is not None and ceiling.layout is not None and ceiling.workers <= most:
        return max(asked, ceiling.workers)
    layouts = feasible_layouts(config, most if ceiling is None else min(most, ceiling.workers))
    return max(asked, choose(layouts, config, None, lambda _: ())[0].size if layouts else 0)


def _stock(view: View, config: JobConfig, rests: frozenset[str]) -> _Stock:
    capacity = view.capacity
    sizes = tuple(workers_per_job(unit) for unit in standby_units(config.standby))
    here = [job for job in capacity.jobs if job.state != "ending" and job.notice is None]
    last = len(sizes) - 1
    here = [job if job.unit <= last else replace(job, unit=last) for job in here if job.job_id not in view.going]
    # One that has its nodes but does not run yet (they boot) waits no more; nor does one that has a worker in a world,
    # whatever a look says that took long.
    waits = {job.job_id for job in here if job.state == "pending" and not job.nodes} - view.busy
    waiting = sorted((job for job in here if job.job_id in waits), key=_age)
    running = tuple(job for job in here if job.job_id not in waits)
    starting: set[str] = set()
    room = []
    for place in capacity.room:
        for job in waiting:
            if (job.unit, job.partition) == (place.unit, place.partition) and place.jobs:
                place = replace(place, jobs=place.jobs - 1)
                starting.add(job.job_id)
        room.append(place)
    # Units compete for the same nodes: while one is about to take some, the others' room is not to be relied on.
    taken = {(job.unit, job.partition) for job in waiting if job.job_id in starting}
    idle = [place for place in room if place.jobs > 0 and place.partition not in rests]
    free = [
        place
        for place in idle
        if not any(place.unit != unit and place.partition == partition for unit, partition in taken)
    ]
    contended = frozenset(place.unit for place in idle) - {place.unit for place in free}
    reach = None
    if config.standby.launch == "probe":  # nobody waits: a world that needs more than there is room for is of no use
        # Of units that compete for nodes too much is counted: then what was started in vain is let go after a while.
        reach = sum(sizes[job.unit] for job in (*running, *waiting))
        reach += sum(place.jobs * sizes[min(place.unit, len(sizes) - 1)] for place in idle)
    useful = useful_workers(config, view.guaranteed, view.asked, view.size_ceiling, reach)
    need = max(0, useful - view.guaranteed) + config.standby.spares
    return _Stock(sizes, running, tuple(waiting), tuple(free), contended, frozenset(starting), need, _tried(view))


def _tried(view: View) -> dict[str, int]:
    """Count the further jobs that may be started in each partition on trial: one, if there is none without a life."""
    lived = {span.job_id for span in view.spans if not span.failed}
    under_way = {job.partition for job in view.capacity.jobs if job.job_id not in lived}
    return {partition: int(partition not in under_way) for partition in on_trial(view.spans)}


def _start(view: View, config: JobConfig, stock: _Stock, rests: frozenset[str]) -> list[Order]:
    """Choose jobs to start where there is headroom and, with ``launch = "queue"``, jobs that wait for the rest."""
    orders: list[Order] = []
    tried = dict(stock.tried)
    units = standby_units(config.standby)
    in_slurm = view.capacity.jobs  # also those that are ending: Slurm still counts them, and so does max_jobs
    slots = config.standby.max_jobs - len(in_slurm)
    slots_of = [unit.max_jobs - sum(job.unit == index for job in in_slurm) for index, unit in enumerate(units)]

    def order(unit: int, partition: str, missing: int, most: int) -> int:
        """Order jobs; return how many workers they bring."""
        nonlocal slots
        count = min(slots, slots_of[unit], most, max(1, missing // stock.sizes[unit]), tried.get(partition, slots))
        if count <= 0:
            return 0
        orders.append(Order(unit, partition, count))
        slots -= count
        slots_of[unit] -= count
        if partition in tried:
            tried[partition] -= count
        return count * stock.sizes[unit]

    missing = stock.missing_now
    ordered = 0
    if missing > 0:
        open_units = {place.unit for place in stock.open_room if slots_of[place.unit] > 0}
        if open_units:
            unit = stock.best_unit(missing, open_units)  # one a look: the next look sees what is left for others
            # A smaller one that would fit may be about to lose its room: the next look will know.
            fits = any(stock.sizes[each] <= missing and slots_of[each] > 0 for each in stock.contended)
            places = () if fits and stock.sizes[unit] > missing else stock.open_room
            for place in places:
                if place.unit == unit and missing - ordered > 0:
                    ordered += order(unit, place.partition, missing - ordered, place.jobs)
    missing = stock.missing - ordered
    if config.standby.launch == "queue" and missing > 0:
        closed = rests | {partition for partition, left in tried.items() if left == 0}
        wide = {index: [one for one in unit.partitions if one not in closed] for index, unit in enumerate(units)}
        open_units = {index for index, partitions in wide.items() if partitions and slots_of[index] > 0}
        if open_units:
            unit = stock.best_unit(missing, open_units)
            order(unit, wide[unit][0], missing, stock.may_wait)
    return orders


def _end(
    view: View, config: JobConfig, stock: _Stock, rests: frozenset[str], start: list[Order]
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Choose jobs to end now, and note since when each job that is there has been of no use."""
    at_once = {job.job_id for job in stock.waiting if job.partition in rests}
    after_a_while: set[str] = set()
    if config.standby.launch == "probe":
        after_a_while |= {job.job_id for job in stock.waiting}  # somebody else had the room
    extra, waiting = -stock.missing, {job.job_id for job in stock.waiting}
    idle = sorted((job for job in stock.running if job.job_id not in view.busy), key=_age, reverse=True)
    for job in (*reversed(stock.waiting), *idle):  # Slurm, too, takes the youngest first: the oldest are the safest
        if stock.sizes[job.unit] <= extra:
            extra -= stock.sizes[job.unit]
            (at_once if job.job_id in waiting else after_a_while).add(job.job_id)
    at_once |= _in_the_way(view, config, stock, start)
    since = {job: view.useless_since.get(job, view.now) for job in after_a_while}
    over = {job for job, began in since.items() if view.now >= began + config.standby.hold}
    # One that is told to end is forgotten: until it has, it is not told again.
    return tuple(sorted(at_once | over)), {job: began for job, began in since.items() if job not in over}


def _in_the_way(view: View, config: JobConfig, stock: _Stock, start: list[Order]) -> set[str]:
    """Choose, at ``max_jobs``, the youngest waiting job that cannot start, if another unit could start now."""
    stuck = [job.job_id for job in stock.waiting if job.job_id not in stock.starting]
    full = len(view.capacity.jobs) >= config.standby.max_jobs
    if full and stuck and not start and stock.open_room and stock.missing_now > 0:
        return {stuck[-1]}
    return set()


def _age(job: StandbyJob) -> tuple[int, str]:
    """Sort key, oldest first: Slurm numbers jobs in the order in which they come."""
    return (int(job.job_id) if job.job_id.isdecimal() else 0, job.job_id)
