"""A site's own history, as ``sacct --parsable2`` prints it, to a trace of its idle nodes.

Columns are found by the names in the header line, so output of any version will do. ``Start`` and ``End`` are needed,
and ``NodeList`` or ``NNodes``. A node is on offer while no job has it. Jobs have a whole node: where a site lets jobs
share nodes, a node with a job on it counts as taken.

sacct selects the jobs that ran at any time from ``-S`` to ``-E``, and says when they began and ended, be it long
before or after; of what else ran then it shows nothing, and all of it would look idle. ``--truncate`` cuts them off at
both.
Where it was not given, only the time is read of which every job must be there, see :func:`_window`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from random import Random

from liver_slurm.base.errors import BadInput
from liver_slurm.simulation.trace import Span, Trace, from_counts, from_spans

COMMAND = (
    "sacct --allusers --allocations --duplicates --truncate --parsable2 -S FROM -E TO"
    " --format=JobID,Partition,State,Start,End,NNodes,NodeList"
)
"""What a user is told to run; ``--duplicates``: earlier starts of jobs that were requeued had nodes as well."""
_IDS = ("jobid", "jobidraw")
_NO_TIME = ("", "unknown", "none", "n/a")
_NO_NODES = ("", "none assigned", "none", "(null)")


@dataclass(frozen=True)
class Busy:
    """One job's time on its nodes, seconds since the epoch; ``end`` None: it still ran."""

    begin: float
    end: float | None
    nodes: tuple[str, ...]
    """Empty: only their number is known."""
    count: int
    belongs: bool = True
    """It is of the partition whose nodes are wanted."""


def read(
    path: Path, lines: Sequence[tuple[int, str]], random: Random, nodes: int | None = None, partition: str = ""
) -> Trace:
    """Read what is idle in the time of which all jobs are known.

    Args:
        path: of the file, for messages.
        lines: number and text of each.
        random: draws which nodes go where their names are not known.
        nodes: of the cluster; default: as many as were ever busy, by name, or at once, where only numbers are known.
        partition: whose jobs say which nodes are meant; jobs of all partitions say when those are busy. Where only
            numbers of nodes are known, jobs of this partition alone count. Empty: nodes of all jobs.

    Raises:
        BadInput: a column is missing, a line is not as it should be, there is no time of which all jobs are known, or
            there are more than ``nodes``.
    """
    jobs = list(_jobs(path, lines, partition))
    if not any(job.belongs for job in jobs):
        raise BadInput(f"--trace {path}: no job in it has started{f' in {partition}' if partition else ''}")
    start, end = _window(path, jobs)
    if all(job.nodes for job in jobs):
        trace = _by_name(path, jobs, start, end, nodes)
    else:
        trace = _by_number(path, [job for job in jobs if job.belongs], start, end, random, nodes)
    first, last = (f"{datetime.fromtimestamp(time, timezone.utc):%Y-%m-%d %H:%M:%S}" for time in (start, end))
    note = f"jobs from {first} to {last}; a node that no job has counts as on offer, also one that was drained or down"
    return replace(trace, note=note)


def _window(path: Path, jobs: Sequence[Busy]) -> tuple[float, float]:
    """Return begin and end of the time of which all jobs are there.

    All jobs that sacct shows have ended after ``-S`` and begun before ``-E``: from the first end to the last start
    none is missing, whatever those were. They are known where ``--truncate`` has cut jobs off, which is believed where
    several begin or end at one and the same full minute, and none is without an end.
    """
    begins, ends = [job.begin for job in jobs], [job.end for job in jobs if job.end is not None]
    may_be_cut = len(ends) == len(begins)
    start = min(begins) if may_be_cut and _is_cut(begins, min(begins)) else min(ends, default=max(begins))
    end = max(ends) if may_be_cut and _is_cut(ends, max(ends)) else max(begins)
    if start >= end:
        raise BadInput(
            f"--trace {path}: no job in it ends before another one begins, so of no time are all jobs known;"
            f" take a longer one, with {COMMAND}"
        )
    return start, end


def _is_cut(times: Sequence[float], edge: float) -> bool:
    return edge % 60.0 == 0.0 and times.count(edge) > 1


def _jobs(path: Path, lines: Sequence[tuple[int, str]], partition: str) -> Iterator[Busy]:
    header = [name.strip().lower() for name in lines[0][1].split("|")]
    for wanted in ("start", "end"):
        if wanted not in header:
            raise BadInput(f"--trace {path}: there is no column {wanted.title()}; make it with {COMMAND}")
    if not {"nodelist", "nnodes", "allocnodes"} & set(header):
        raise BadInput(f"--trace {path}: there is no column NodeList or NNodes; make it with {COMMAND}")
    if partition and "partition" not in header:
        raise BadInput(f"--trace {path}: there is no column Partition to find {partition} in; make it with {COMMAND}")
    for number, line in lines[1:]:
        fields = line.split("|")
        if len(fields) > len(header) and not any(fields[len(header) :]):
            fields = fields[: len(header)]  # --parsable, which ends each line with one more bar
        if len(fields) != len(header):
            raise BadInput(f"--trace {path}, line {number}: {len(fields)} columns, the header has {len(header)}")
        job = dict(zip(header, (field.strip() for field in fields), strict=True))
        if any("." in job.get(name, "") for name in _IDS):
            continue  # a step, which has nodes of its job
        busy = _busy(path, number, job)
        if busy is not None:
            yield replace(busy, belongs=not partition or partition in job["partition"].split(","))


def _busy(path: Path, number: int, job: dict[str, str]) -> Busy | None:
    """Return a job's time on its nodes; None: it had none."""
    begin, end = _time(path, number, job["start"]), _time(path, number, job["end"])
    if begin is None or (end is not None and end <= begin):
        return None
    text = job.get("nodelist", "")
    names = () if text.lower() in _NO_NODES else tuple(expand(text))
    said = job.get("nnodes") or job.get("allocnodes") or ""
    if not names and not said.isdecimal():
        raise BadInput(f"--trace {path}, line {number}: neither NodeList nor NNodes says which nodes the job had")
    count = len(names) or int(said)
    return Busy(begin, end, names, count) if count else None


def _by_name(path: Path, jobs: Sequence[Busy], start: float, end: float, nodes: int | None) -> Trace:
    taken: dict[str, list[tuple[float, float]]] = {node: [] for job in jobs if job.belongs for node in job.nodes}
    if nodes is not None and nodes < len(taken):
        raise BadInput(f"--nodes {nodes}: {path} names {len(taken)} nodes; leave --nodes out, or give at least as many")
    for job in jobs:
        for node in job.nodes:
            if node in taken:
                taken[node].append((job.begin, end if job.end is None else job.end))
    spans = []
    for node, times in sorted(taken.items()):
        free = start
        for begin, until in sorted(times):
            spans.append(Span(node, free - start, begin - start))
            free = max(free, until)
        spans.append(Span(node, free - start, end - start))
    never = max(0, (nodes or 0) - len(taken))
    spans += [Span(f"never-busy-{number}", 0.0, end - start) for number in range(never)]
    return from_spans(path.name, end - start, spans)


def _by_number(path: Path, jobs: Sequence[Busy], start: float, end: float, random: Random, nodes: int | None) -> Trace:
    steps: dict[float, int] = {}
    for job in jobs:
        steps[job.begin] = steps.get(job.begin, 0) + job.count
        until = end if job.end is None else job.end
        steps[until] = steps.get(until, 0) - job.count
    busy, counts = 0, []
    for time in sorted(steps):
        busy += steps[time]
        counts.append((time - start, busy))
    most = max(count for _, count in counts)
    if nodes is not None and nodes < most:
        raise BadInput(f"--nodes {nodes}: {path} shows {most} nodes busy at once")
    idle = [(time, (nodes or most) - count) for time, count in counts]
    return from_counts(path.name, end - start, idle, random)


def _time(path: Path, number: int, text: str) -> float | None:
    """Return the seconds since the epoch; times without a zone are taken as they stand, as only differences count."""
    if text.lower() in _NO_TIME:
        return None
    if text.isdecimal():
        return float(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(
            f"--trace {path}, line {number}: {text!r} is no time; unset SLURM_TIME_FORMAT, or set it to %s"
        ) from None
    if moment.tzinfo is not None:
        return moment.timestamp()
    return (moment - datetime(1970, 1, 1)).total_seconds()


def expand(text: str) -> Iterator[str]:
    """Expand Slurm's list of nodes, such as ``n[01-03,7],m5``."""
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        pieces = re.split(r"(\[[^\]]*\])", part)
        choices = [list(_numbers(piece[1:-1])) if piece.startswith("[") else [piece] for piece in pieces]
        for chosen in product(*choices):
            yield "".join(chosen)


def _numbers(text: str) -> Iterable[str]:
    for part in text.split(","):
        low, dash, high = part.partition("-")
        if not dash:
            yield low
        elif low.isdecimal() and high.isdecimal():
            yield from (f"{number:0{len(low)}}" for number in range(int(low), int(high) + 1))
