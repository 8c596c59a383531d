"""Calls to the scheduler in threads of their own: the core's orders go out, and looks and answers come back."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from liver_slurm.base.clock import Clock
from liver_slurm.base.errors import ClusterError, first_line
from liver_slurm.base.query_budget import QueryBudget
from liver_slurm.coordinator.core.io import (
    CapacitySeen,
    Defer,
    GiveBack,
    GivenBack,
    GuaranteedJobSeen,
    Input,
    Interrupted,
    Launch,
    Launched,
    LaunchRefused,
    Release,
    StopAsked,
    SubmitSuccessor,
    SuccessorAnswer,
)
from liver_slurm.scheduler.ports import (
    CapacitySnapshot,
    Fate,
    GuaranteedJob,
    GuaranteedJobSource,
    LaunchStopped,
    NodeReleaser,
    StandbyProvider,
)

log = logging.getLogger(__name__)

T = TypeVar("T")
Done = Callable[[T, float], Sequence[Input]]
"""Makes inputs of what a call returned, given the time; runs in the thread that polls."""
Failed = Callable[[str, float], Sequence[Input]]
"""Makes inputs of the error of a call that the scheduler refused, or that broke down."""


class BackgroundCalls:
    """Makes calls one after another, and answers them in that order.

    So a look that is asked for after a launch shows what was launched. One call may be repeated: the look.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        """``name``: of the thread, which starts with the first call."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._clock = clock
        self._pending: deque[tuple[Future[Any], Callable[[Future[Any], float], Sequence[Input]]]] = deque()
        self._look: Callable[[], object] | None = None
        self._hold: Callable[[], float] = lambda: 0.0
        self._next_look = 0.0

    def ask(self, call: Callable[[], T], done: Done[T], failed: Failed) -> Future[T]:
        """Make a call after those that were asked for before it; until its turn it can be cancelled."""
        future = self._thread.submit(call)
        self._pending.append((future, partial(_answer, done, failed)))
        return future

    def repeat(
        self, look: Callable[[], T], done: Done[T], failed: Failed, hold: Callable[[], float] = lambda: 0.0
    ) -> None:
        """Make this call now, and again when :meth:`look_in` says; ``done`` and ``failed`` say it.

        ``hold``: seconds for which one that is due must still wait; 0: it may be made.
        """
        self._look, self._hold = partial(self.ask, look, done, failed), hold

    def look_in(self, seconds: float) -> None:
        """Set when the next look is taken, seconds from now."""
        self._next_look = self._clock.now() + seconds

    def poll(self, now: float) -> list[Input]:
        """Return the inputs that have come of earlier calls; takes the next look when it is due."""
        given: list[Input] = []
        while self._pending and self._pending[0][0].done():
            future, answer = self._pending.popleft()
            given += answer(future, now)
        if self._look is not None and self._clock.now() >= self._next_look:
            hold = self._hold()
            self._next_look = self._clock.now() + hold if hold > 0.0 else math.inf  # until it has come
            if hold <= 0.0:
                self._look()
        return given

    def waiting(self) -> bool:
        """Return whether a call was made that has not been answered."""
        return bool(self._pending)

    def close(self, last: Callable[[], object] | None = None) -> None:
        """Make one last call, if any, after all that were asked for; wait for it and end the thread.

        Raises:
            Exception: what the last call raised.
        """
        try:
            if last is not None:
                self._thread.submit(last).result()
        finally:
            self._thread.shutdown()


def _answer(done: Done[T], failed: Failed, call: Future[T], now: float) -> Sequence[Input]:
    try:
        value = call.result()
    except ClusterError as error:
        return failed(str(error), now)
    except Exception as error:  # a watcher that breaks makes the coordinator blind; it must not end it
        log.exception("a call to the scheduler broke down")
        return failed(first_line(error), now)
    return done(value, now)


class _Metered(Generic[T]):
    """A look that counts what it asks, and waits until a minute has room for it."""

    def __init__(self, look: Callable[[], T], budget: QueryBudget | None, others: list[_Metered[Any]]) -> None:
        """``others``: looks on the same budget, which this one is added to."""
        self._look, self._budget, self._others = look, budget, others
        self._costs: deque[int] = deque([0], maxlen=REMEMBERED)
        self.reserved = 0
        """Queries that it is about to ask."""
        others.append(self)

    def __call__(self) -> T:
        before = self._asked()
        try:
            return self._look()
        finally:
            self._costs.append(self._asked() - before)
            self.reserved = 0

    def hold(self) -> float:
        """Return the seconds until a look as costly as the last ones keeps the budget; 0: it does, and is taken now."""
        if self._budget is None:
            return 0.0
        cost = max(self._costs)
        hold = self._budget.room(cost + sum(other.reserved for other in self._others))
        self.reserved = cost if hold <= 0.0 else 0
        return hold

    def _asked(self) -> int:
        return self._budget.total if self._budget is not None else 0


REMEMBERED = 3
"""Looks by which it is told what the next one will cost."""
SELDOM, OFTEN = 60.0, 15.0
"""Seconds between looks at our job: while there is no successor, and while there is one, whose workers speak for it."""

Order = Launch | Release | Defer | SubmitSuccessor | GiveBack


@dataclass(frozen=True)
class Scheduler:
    """The ports of one scheduler; one that is None is not there."""

    standbys: StandbyProvider | None = None
    guaranteed_job: GuaranteedJobSource | None = None
    nodes: NodeReleaser | None = None
    fate: Callable[[], tuple[Fate, str]] | None = None
    """Says what becomes of our job, and why; None: it is no Slurm job, and a signal ends the run."""


class SchedulerCalls:
    """Carries the core's orders to the scheduler, and brings back answers, looks and the meaning of signals."""

    def __init__(
        self, scheduler: Scheduler, clock: Clock, interval: float = 5.0, budget: QueryBudget | None = None
    ) -> None:
        """``interval``: seconds from one look at the standbys to the next, if ``budget``, which counts what is asked
        of the scheduler, allows."""
        self._scheduler, self._interval, self._budget = scheduler, interval, budget
        # Our own job first: it is asked for seldom, and the standbys take all that the budget leaves.
        names = ("guaranteed-job", "standbys", "fate", "node-release", "deferral")
        self._lanes = tuple(BackgroundCalls(name, clock) for name in names)
        self._job, self._standbys, self._fate, self._nodes, self._deferral = self._lanes
        self._capacity = CapacitySnapshot(time=0.0, jobs=())
        self._clock = clock
        self._launching: Future[Any] | None = None
        self._deferrals: deque[Defer] = deque()
        """Those that the scheduler has not been told of; its thread takes them out."""
        self._submitting = self._asking = False
        self._signal: str | None = None
        looks: list[_Metered[Any]] = []
        if scheduler.standbys is not None:
            capacity = _Metered(scheduler.standbys.observe, budget, looks)
            self._standbys.repeat(capacity, self._capacity_seen, self._blind, capacity.hold)
        if scheduler.guaranteed_job is not None:
            job = _Metered(scheduler.guaranteed_job.observe, budget, looks)
            self._job.repeat(job, self._job_seen, self._job_unseen, job.hold)

    def signalled(self, name: str) -> None:
        """Note that a signal has come; may be called from its handler."""
        self._signal = name

    def poll(self, now: float) -> list[Input]:
        """Return the inputs that have come of earlier calls, and of signals."""
        given: list[Input] = []
        if self._signal is not None and not self._asking:
            name, self._signal = self._signal, None
            if self._scheduler.fate is None:
                given.append(StopAsked(now, f"cancelled by {name}"))
            else:
                self._asking = True
                self._fate.ask(self._scheduler.fate, self._fate_known, self._fate_unknown)
        return [*given, *(one for lane in self._lanes for one in lane.poll(now))]

    def waiting(self) -> bool:
        """Return whether the scheduler was asked for something that has not come yet."""
        return any(lane.waiting() for lane in self._lanes)

    def perform(self, order: Order) -> None:
        """Ask the scheduler for what the core has decided."""
        standbys, job, nodes = self._scheduler.standbys, self._scheduler.guaranteed_job, self._scheduler.nodes
        if isinstance(order, SubmitSuccessor):
            assert job is not None, "only those who have seen the guaranteed job submit its successor"
            self._submitting = True
            self._job.ask(job.submit, self._submitted, self._not_submitted)
            self._job.look_in(OFTEN)
        elif isinstance(order, GiveBack):
            assert nodes is not None, "asked of heterogeneous jobs only"
            which = (order.component, order.keep)
            self._nodes.ask(
                lambda: nodes.give_back(*which),
                lambda freed, now: [GivenBack(now, *which, *freed)],
                lambda error, now: [GivenBack(now, *which, error=error)],
            )
        elif standbys is None:
            log.warning("there is nobody to do %s", order)
        elif isinstance(order, Launch):
            self._launching = self._standbys.ask(
                partial(_launch, standbys, order, self._clock),
                partial(_launched, order),
                lambda error, now: [LaunchRefused(now, error)],
            )
        elif isinstance(order, Defer):  # which waits for no look that is under way
            self._deferrals.append(order)
            self._deferral.ask(partial(self._defer, standbys), _nothing, _not_deferred)
        else:
            # One that could not be ended is there at a later look, and is ended then.
            self._standbys.ask(partial(standbys.release, order.job_id), _nothing, _not_released)

    def _defer(self, standbys: StandbyProvider) -> None:
        """Tell the scheduler of all deferrals that have come by now as of one; where it was away, some are void."""
        now, orders = self._clock.now(), []
        while self._deferrals:
            orders.append(self._deferrals.popleft())
        if valid := [order for order in orders if order.until > now]:
            jobs = dict.fromkeys(job for order in valid for job in order.job_ids)
            standbys.defer(tuple(jobs), max(order.until for order in valid) - now)

    def stop_waiting(self) -> None:
        """Let no call wait for nodes any more; what the scheduler was told holds."""
        if self._scheduler.nodes is not None:
            self._scheduler.nodes.stop()

    def close(self, *, run_over: bool) -> None:
        """End standby jobs and the successor if the run is over; else they are left to the coordinator that goes on."""
        self.stop_waiting()
        if self._launching is not None:
            self._launching.cancel()  # nobody would write down which jobs there are
        for lane, port, left in (
            (self._standbys, self._scheduler.standbys, "standby jobs"),
            (self._job, self._scheduler.guaranteed_job, "a successor job"),
            (self._nodes, None, ""),
            (self._fate, None, ""),
            (self._deferral, None, ""),
        ):
            try:
                lane.close(port.close if port is not None and run_over else None)
            except ClusterError as error:  # noqa: PERF203 - each lane is closed, whatever became of the others
                log.error("%s may be left: %s", left, error)
            except Exception:
                log.exception("%s may be left", left)

    def _capacity_seen(self, look: CapacitySnapshot, now: float) -> list[Input]:
        self._capacity = look
        self._standbys.look_in(max(self._interval, self._budget.wait() if self._budget is not None else 0.0))
        queries = self._budget.last_minute() if self._budget is not None else None
        return [CapacitySeen(now, replace(look, queries=queries))]

    def _blind(self, error: str, now: float) -> list[Input]:
        return self._capacity_seen(replace(self._capacity, blind=error), now)

    def _job_seen(self, job: GuaranteedJob, now: float) -> list[Input]:
        self._job.look_in(OFTEN if job.successor is not None or self._submitting else SELDOM)
        return [GuaranteedJobSeen(now, job)]

    def _job_unseen(self, error: str, _now: float) -> list[Input]:
        log.warning("the guaranteed job's time limit could not be asked for: %s", error)
        self._job.look_in(OFTEN)
        return []

    def _submitted(self, job_id: str, now: float) -> list[Input]:
        self._submitting = False
        return [SuccessorAnswer(now, job_id=job_id)]

    def _not_submitted(self, error: str, now: float) -> list[Input]:
        self._submitting = False
        return [SuccessorAnswer(now, error=error)]

    def _fate_known(self, fate: tuple[Fate, str], now: float) -> list[Input]:
        self._asking = False
        return [meaning(*fate, now)]

    def _fate_unknown(self, error: str, now: float) -> list[Input]:
        self._asking = False
        # The journal must not call a run over that may be in the queue: if it is not, Slurm's own record says so.
        return [Interrupted(now, f"told to end, and Slurm does not say why: {error}", requeued=True)]


def meaning(fate: Fate, reason: str, now: float) -> Input:
    """Return what a signal to the coordinator means, given what becomes of its job.

    It is cancelled, requeued or preempted.
    """
    if fate in ("requeued", "preempted"):
        return Interrupted(now, reason, requeued=fate == "requeued")
    return StopAsked(now, "cancelled by a signal" if fate == "running" else f"cancelled: {reason}")


def _launch(standbys: StandbyProvider, order: Launch, clock: Clock) -> tuple[Sequence[str], str]:
    """Start standby jobs; returns their ids, and why there are no more of them."""
    try:
        after = max(0.0, order.until - clock.now())
        return standbys.launch(order.count, order.unit, order.partition, after), ""
    except LaunchStopped as stopped:
        return stopped.job_ids, str(stopped)


def _launched(order: Launch, answer: tuple[Sequence[str], str], now: float) -> list[Input]:
    job_ids, error = answer
    log.info("standby jobs started: %s", ", ".join(job_ids))
    refused: list[Input] = [LaunchRefused(now, error)] if error else []
    return [*refused, Launched(now, tuple(job_ids), order.unit, order.partition)]


def _nothing(_answer: None, _now: float) -> list[Input]:
    return []


def _not_deferred(error: str, _now: float) -> list[Input]:
    log.info("not all jobs in the queue stay there, some may have started: %s", error)
    return []


def _not_released(error: str, _now: float) -> list[Input]:
    log.warning("a standby job could not be ended: %s", error)
    return []
