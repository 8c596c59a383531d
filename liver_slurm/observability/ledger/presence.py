"""Presence: from when until when the run had each device, and what those did that were in no world. Pure.

A guaranteed device is owed to the run from its creation on, and while its job is in the queue again; a reclaimable one
is the run's from the moment at which its standby job was seen to run (in files of older versions: at which its worker
was first heard of) until its worker is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from liver_slurm.observability.ledger.causes import Cause
from liver_slurm.observability.ledger.facts import Facts, Job
from liver_slurm.observability.ledger.gaps import is_new_start
from liver_slurm.observability.ledger.worlds import WorldSpan
from liver_slurm.rundir import events as e
from liver_slurm.rundir.worker_names import (
    guaranteed_prefix,
    is_guaranteed,
    natural_key,
    place_of,
    standby_prefix,
    worker_name,
)


@dataclass(frozen=True)
class Presence:
    """One device, as long as the run had it or was owed it."""

    worker: str
    guaranteed: bool
    host: str
    partition: str
    """Empty: not known."""
    since: float
    until: float
    marks: tuple[tuple[float, Cause], ...]
    """From when on it did what while it was in no world, in order."""
    noticed: tuple[tuple[float, bool], ...] = ()
    """When it got a notice (True), and when that was withdrawn (False), in order."""

    @property
    def place(self) -> str:
        """Name that all processes on this device have in a table: one that died, and who was started in its place."""
        return place_of(self.worker)


@dataclass
class _Open:
    worker: str
    guaranteed: bool
    host: str
    partition: str
    since: float
    marks: list[tuple[float, Cause]] = field(default_factory=list)
    noticed: list[tuple[float, bool]] = field(default_factory=list)

    def has_notice(self) -> bool:
        return bool(self.noticed) and self.noticed[-1][1]


@dataclass
class _StandbyJob:
    since: float
    workers: int
    seen: set[str] = field(default_factory=set)


def find_presences(facts: Facts, worlds: tuple[WorldSpan, ...]) -> tuple[Presence, ...]:
    """Return every device's presences, by worker; a name that comes again has several."""
    fold = _Fold(facts, worlds)
    for event in facts.events:
        fold.take(event)
    return fold.finish()


class _Fold:
    def __init__(self, facts: Facts, worlds: tuple[WorldSpan, ...]) -> None:
        self._facts = facts
        self._members: frozenset[str] = frozenset()
        self._open: dict[str, _Open] = {}
        self._closed: list[Presence] = []
        self._jobs: dict[str, _StandbyJob] = {}
        self._partitions: dict[str, str] = {}
        self._owed_since: float | None = facts.created
        """Since when the guaranteed job waits to start, or starts; None: it has a world."""
        self._left: dict[str, float] = {}
        """When a worker that is gone was last there, by place."""
        self._last = facts.created

    def take(self, event: e.Event | e.UnknownEvent) -> None:
        """Fold one event in."""
        match event:
            case e.BegunAnew():
                self._start_over(min(max(event.trained_until, self._last), event.time))
            case e.CoordinatorStarted() if is_new_start(event):
                self._start_over(self._last)
            case e.WorkerRegistered():
                one = self._come(event.worker, event.host, event.job_id, event.time)
                if not one.marks and event.warm:
                    one.marks.append((event.time, Cause.IDLE))
            case e.StandbyReady():
                self._come(event.worker, event.host or "", event.job_id or "", event.time).marks.append(
                    (event.time, Cause.IDLE)
                )
            case e.StandbyJobChanged():
                self._job_changed(event)
            case e.WorkerLeft() | e.WorkerLost():
                self._close(event.worker, event.time)
            case e.Notice():
                self._notice(event.worker, event.time, True)
            case e.NoticeWithdrawn():
                self._notice(event.worker, event.time, False)
            case e.StandbyRelease():
                self._mark(self._of_job(event.job_id), event.time, Cause.LEAVING)
            case e.Interrupted():
                self._owed_since = event.time
            case e.RunEnded():
                self._owed_since = event.time
                self._mark(self._open, event.time, Cause.LEAVING)
            case _:
                self._take_world(event)
        self._last = event.time

    def _take_world(self, event: e.Event | e.UnknownEvent) -> None:
        match event:
            case e.ReconfigurationStarted():
                self._all_come(event.members, event.time)
                self._mark(event.joiners, event.time, Cause.JOINING)
            case e.ReconfigurationAborted():
                for name in event.joiners:
                    self._in_vain(name, event.time)
            case e.WorldLive() | e.ReconfigurationCommitted():
                self._all_come(event.members, event.time)
                self._members = frozenset(event.members)
                self._owed_since = None
            case _:
                pass

    # ---- coming and going ------------------------------------------------------------------------------------------

    def _all_come(self, names: Iterable[str], time: float) -> None:
        for name in names:
            self._come(name, "", "", time)

    def _come(self, name: str, host: str, job_id: str, time: float) -> _Open:
        known = self._open.get(name)
        if known is None:
            guaranteed = is_guaranteed(name)
            since = time
            if guaranteed and self._owed_since is not None:  # but not while another process was in its place
                since = max(self._owed_since, self._left.get(place_of(name), self._owed_since))
            job = self._jobs.get(job_id)
            if job is not None and not guaranteed:
                since = job.since
                job.seen.add(name)
            known = _Open(name, guaranteed, host, self._partition(name, guaranteed, job_id), since)
            self._open[name] = known
        known.host = known.host or host
        return known

    def _partition(self, name: str, guaranteed: bool, job_id: str) -> str:
        job = self._facts.job
        return guaranteed_partition(job, name) if guaranteed else self._partitions.get(job_id, job.standby_partition)

    def _close(self, name: str, time: float) -> None:
        one = self._open.pop(name, None)
        if one is not None:
            self._left[place_of(name)] = max(time, one.since)
            self._closed.append(
                Presence(
                    one.worker,
                    one.guaranteed,
                    one.host,
                    one.partition,
                    one.since,
                    max(time, one.since),
                    tuple(one.marks),
                    tuple(one.noticed),
                )
            )

    def _start_over(self, last_sign: float) -> None:
        """Close what did not outlive the guaranteed job: its own workers, and members of the lost world."""
        if self._owed_since is None:
            self._owed_since = last_sign
        for name in [*self._open]:
            if is_guaranteed(name) or name in self._members:
                self._close(name, min(last_sign, self._owed_since))
        self._members = frozenset()

    def _job_changed(self, event: e.StandbyJobChanged) -> None:
        self._partitions[event.job_id] = event.partition
        job = self._jobs.get(event.job_id)
        if event.state in ("running", "suspended") and job is None:
            self._jobs[event.job_id] = _StandbyJob(event.time, event.workers)
        elif event.state == "gone" and job is not None:
            self._unheard(event.job_id, job, event.time)
            del self._jobs[event.job_id]

    def _unheard(self, job_id: str, job: _StandbyJob, until: float) -> None:
        """Add the devices of a standby job on which no worker has ever registered."""
        partition = self._partitions.get(job_id, "")
        for number in range(job.workers - len(job.seen)):
            name = worker_name(standby_prefix(job_id), f"unheard-{number}")
            self._closed.append(Presence(name, False, "", partition, job.since, max(until, job.since), ()))

    def _of_job(self, job_id: str) -> list[str]:
        job = self._jobs.get(job_id)
        prefix = worker_name(standby_prefix(job_id), "")
        return [*job.seen] if job is not None else [name for name in self._open if name.startswith(prefix)]

    # ---- what they do ----------------------------------------------------------------------------------------------

    def _mark(self, names: Iterable[str], time: float, cause: Cause) -> None:
        for name in names:
            if name in self._open:
                self._open[name].marks.append((time, cause))

    def _notice(self, name: str, time: float, comes: bool) -> None:
        self._mark([name], time, Cause.LEAVING if comes else Cause.IDLE)
        if name in self._open:
            self._open[name].noticed.append((time, comes))

    def _in_vain(self, name: str, time: float) -> None:
        one = self._open.get(name)
        if one is None:
            return
        for index in reversed(range(len(one.marks))):
            if one.marks[index][1] is Cause.JOINING:
                one.marks[index] = (one.marks[index][0], Cause.IN_VAIN)
                break
        one.marks.append((time, Cause.LEAVING if one.has_notice() else Cause.IDLE))

    def finish(self) -> tuple[Presence, ...]:
        """Close everybody at the end of the run; a job that waits is still owed its devices."""
        facts = self._facts
        waits = facts.outcome == "queued" and self._owed_since is not None
        for name in [*self._open]:
            gone = waits and self._owed_since is not None and (is_guaranteed(name) or name in self._members)
            self._close(name, self._owed_since if gone and self._owed_since is not None else facts.until)
        for job_id, job in self._jobs.items():
            self._unheard(job_id, job, facts.until)
        never = not any(one.guaranteed for one in self._closed)
        if (waits or never) and self._owed_since is not None:
            for number in range(facts.job.guaranteed):
                name = worker_name(guaranteed_prefix(), number)
                partition = guaranteed_partition(facts.job, name)
                self._closed.append(Presence(name, True, "", partition, self._owed_since, facts.until, ()))
        return tuple(sorted(self._closed, key=lambda one: (not one.guaranteed, natural_key(one.worker), one.since)))


def guaranteed_partition(job: Job, name: str) -> str:
    """Return the partition of a guaranteed worker by its number."""
    number = place_of(name).rpartition("-")[2]
    inside = number.isdecimal() and int(number) < len(job.partitions)
    return job.partitions[int(number)] if inside else (job.partitions[0] if job.partitions else "")
