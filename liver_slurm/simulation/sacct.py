"""A site's own history, as ``sacct --parsable2`` prints it, to a trace of its idle nodes.

Columns are found by the names in the header line, so output of any version will do. ``Start`` and ``End`` are needed,
and ``NodeList`` or ``NNodes``. A node is on offer while no job has it. Jobs have a whole node: where a site lets jobs
share nodes, a node with a job on it counts as taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from pathlib import Path
from random import Random

from liver_slurm.base.errors import BadInput
from liver_slurm.simulation.trace import Span, Trace, from_counts, from_spans

COMMAND = "sacct --allusers --allocations --parsable2 --format=JobID,Partition,State,Start,End,NNodes,NodeList"
"""What a user is told to run."""
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


def read(
    path: Path, lines: Sequence[tuple[int, str]], random: Random, nodes: int | None = None, partition: str = ""
) -> Trace:
    """Read what is idle between the first start and the last end of jobs.

    Args:
        path: of the file, for messages.
        lines: number and text of each.
        random: draws which nodes go where their names are not known.
        nodes: of the cluster; default: as many as were ever busy, by name, or at once, where only numbers are known.
        partition: count the jobs of this partition only; empty: all jobs.

    Raises:
        BadInput: a column is missing, or a line is not as it should be.
    """
    jobs = list(_jobs(path, lines, partition))
    if not jobs:
        raise BadInput(f"--trace {path}: no job in it has started{f' in {partition}' if partition else ''}")
    start = min(job.begin for job in jobs)
    end = max(max(job.begin, job.end or 0.0) for job in jobs)
    if all(job.nodes for job in jobs):
        return _by_name(path.name, jobs, start, end, nodes)
    return _by_number(path, jobs, start, end, random, nodes)


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
        is_step = "." in job.get("jobid", "")
        if is_step or (partition and partition not in job["partition"].split(",")):
            continue
        busy = _busy(path, number, job)
        if busy is not None:
            yield busy


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


def _by_name(name: str, jobs: Sequence[Busy], start: float, end: float, nodes: int | None) -> Trace:
    taken: dict[str, list[tuple[float, float]]] = {}
    for job in jobs:
        for node in job.nodes:
            taken.setdefault(node, []).append((job.begin, end if job.end is None else job.end))
    spans = []
    for node, times in sorted(taken.items()):
        free = start
        for begin, until in sorted(times):
            spans.append(Span(node, free - start, begin - start))
            free = max(free, until)
        spans.append(Span(node, free - start, end - start))
    never = max(0, (nodes or 0) - len(taken))
    spans += [Span(f"never-busy-{number}", 0.0, end - start) for number in range(never)]
    return from_spans(name, end - start, spans)


def _by_number(path: Path, jobs: Sequence[Busy], start: float, end: float, random: Random, nodes: int | None) -> Trace:
    steps: dict[float, int] = {start: 0}
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
