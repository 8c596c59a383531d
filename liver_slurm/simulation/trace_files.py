"""Reading traces: each known form of file to a :class:`~liver_slurm.simulation.trace.Trace`.

``milliseconds,add|remove,node``          Bamboo: each instance that came or went
``milliseconds,count``                    Parcae: how many instances there were after each change
``[milliseconds, "add"|…, {…}]``          Parcae: one JSON document a line, with the nodes that came or went; a line of
                                          another kind has none, and says what Parcae did with those that were there
``date, time, count``                     Bamboo: how many instances could be had, when that was looked at
``seconds,count`` under a header          counts of any program; the header's first word is the unit of time
``count``                                 counts at fixed intervals, whose length the caller knows
``JobID|Start|End|…``                     ``sacct --parsable2``, see :mod:`liver_slurm.simulation.sacct`
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from liver_slurm.base.errors import BadInput
from liver_slurm.simulation import sacct
from liver_slurm.simulation.trace import Published, Span, Trace, from_counts, from_spans

UNITS = {
    "milliseconds": 0.001, "millisecond": 0.001, "ms": 0.001,
    "seconds": 1.0, "second": 1.0, "s": 1.0, "time": 1.0,
    "minutes": 60.0, "minute": 60.0, "min": 60.0,
    "hours": 3600.0, "hour": 3600.0, "h": 3600.0,
}  # fmt: skip
"""Seconds of each unit that a header may name."""
FORMS = "Bamboo's or Parcae's files, counts as csv, or what sacct --parsable2 prints; see docs/simulation.md"

Line = tuple[int, str]
"""Its number in the file, from 1, and its text."""


def read_trace(
    path: Path, random: Random, *, interval: float | None = None, nodes: int | None = None, partition: str = ""
) -> Trace:
    """Read a trace of any known form.

    Args:
        path: the file.
        random: draws which nodes go where a file has only their number.
        interval: seconds between two lines of a file that has a count on each line and no times.
        nodes: of the cluster, for sacct's output; default: as many as it shows busy at once.
        partition: of the cluster, whose nodes count, for sacct's output; empty: those of all.

    Raises:
        BadInput: the file cannot be read, or is of no known form; one line that says where and why.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        why = f"cannot be read: {error.strerror}; name a file of times, or of sacct's output"
        raise BadInput(f"--trace {path}: {why}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"--trace {path}: is no text: {error}") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not lines:
        raise BadInput(f"--trace {path}: the file is empty; give one of {FORMS}")
    first = lines[0][1]
    if "|" in first and not first.startswith("["):
        trace = sacct.read(path, lines, random, nodes, partition)
    else:
        trace = _reader(path, lines, interval)(path, lines, random)
    if trace.seconds <= 0.0 or not trace.spans:
        raise BadInput(f"--trace {path}: there is never a node in it, or it has no length")
    return trace


def _reader(
    path: Path, lines: Sequence[Line], interval: float | None
) -> Callable[[Path, Sequence[Line], Random], Trace]:
    first = lines[0][1]
    fields = _fields(first)
    if re.match(r"\[\s*\d", first):
        return _json_lines
    if len(fields) == 3 and fields[1] in ("add", "remove"):
        return _named
    if len(fields) == 3 and re.fullmatch(r"\d{4}-\d\d-\d\d", fields[0]):
        return _dated
    if len(fields) == 2 and fields[0].split(" ")[0].lower() in UNITS:
        return _with_header
    if len(fields) == 2 and _is_number(fields[0]):
        return lambda path, lines, random: _counts(path, lines, random, 0.001)
    if _is_number(lines[min(1, len(lines) - 1)][1]):  # below a header, or without one
        if interval is None:
            raise BadInput(f"--trace {path}: it has counts and no times; say with --interval how far apart they are")
        return lambda path, lines, random: _evenly(path, lines, random, interval)
    raise BadInput(f"--trace {path}, line 1: {first[:60]!r} is of no known form; known: {FORMS}")


def _named(path: Path, lines: Sequence[Line], _: Random) -> Trace:
    """Return Bamboo's: ``milliseconds,add|remove,node``."""
    changes = []
    for number, line in lines:
        fields = _fields(line)
        if len(fields) != 3 or fields[1] not in ("add", "remove") or not fields[2]:
            _bad(path, number, line, "write MILLISECONDS,add|remove,NODE")
        changes.append((_number(path, number, fields[0]) / 1000.0, fields[1] == "add", fields[2], number))
    return _of_changes(path, changes, changes[-1][0])


STRATEGIES = {
    "liveput_predict_strategy": "parcae",
    "liveput_truth_strategy": "parcae-ideal",
    "throughput_opt_strategy": "parcae-reactive",
}
"""Parcae's own choices, and what they are called here."""


def _json_lines(path: Path, lines: Sequence[Line], _: Random) -> Trace:
    """Parcae's: ``[milliseconds, "add"|"remove"|"no-op", {"nodes": […], "duration": milliseconds, …}]``."""
    changes = []
    chosen: dict[str, list[tuple[float, int, int]]] = {}
    end = 0.0
    for number, line in lines:
        try:
            at, kind, more = json.loads(line)
            time, nodes, length = float(at) / 1000.0, [str(node) for node in more["nodes"]], float(more["duration"])
            for key in STRATEGIES.keys() & more.keys():
                replicas, stages = more[key]
                chosen.setdefault(key, []).append((time, max(1, int(replicas)), max(1, int(stages))))
        except (ValueError, TypeError, KeyError):
            _bad(path, number, line, 'write [MILLISECONDS, "add"|"remove"|"no-op", {"nodes": […], "duration": …}]')
        if nodes and kind not in ("add", "remove"):
            _bad(path, number, line, f"nodes can be added or removed, and this is {kind!r}")
        changes += [(time, kind == "add", node, number) for node in nodes]
        end = time + length / 1000.0
    published = [Published(name, tuple(chosen[key])) for key, name in STRATEGIES.items() if key in chosen]
    return replace(_of_changes(path, changes, end), published=tuple(published))


def _of_changes(path: Path, changes: Sequence[tuple[float, bool, str, int]], end: float) -> Trace:
    """Make a trace of (time, whether the node came, its name, line)."""
    here: dict[str, float] = {}
    spans = []
    last = 0.0
    for time, came, node, number in changes:
        if time < last:
            raise BadInput(f"--trace {path}, line {number}: {time:g} s comes after {last:g} s; sort the lines by time")
        last = time
        if came == (node in here):
            what = "comes although it is there" if came else "goes although it is not there"
            raise BadInput(f"--trace {path}, line {number}: {node} {what}")
        if came:
            here[node] = time
        else:
            spans.append(Span(node, here.pop(node), time))
    spans += [Span(node, begin, end) for node, begin in here.items()]
    return from_spans(path.name, end, spans)


def _dated(path: Path, lines: Sequence[Line], random: Random) -> Trace:
    """Return Bamboo's of Google Cloud: ``date, time, count``."""
    found = []
    for number, line in lines:
        fields = _fields(line)
        try:
            moment = datetime.fromisoformat(f"{fields[0]} {fields[1]}")
        except (ValueError, IndexError):
            _bad(path, number, line, "write YYYY-MM-DD, HH:MM:SS, COUNT")
        if len(fields) != 3:
            _bad(path, number, line, "write YYYY-MM-DD, HH:MM:SS, COUNT")
        found.append((number, moment, _count(path, number, fields[2])))
    start = found[0][1]
    return _of_counts(path, [(number, (at - start).total_seconds(), count) for number, at, count in found], random)


def _with_header(path: Path, lines: Sequence[Line], random: Random) -> Trace:
    return _counts(path, lines[1:], random, UNITS[_fields(lines[0][1])[0].split(" ")[0].lower()])


def _counts(path: Path, lines: Sequence[Line], random: Random, unit: float) -> Trace:
    found = []
    for number, line in lines:
        fields = _fields(line)
        if len(fields) != 2:
            _bad(path, number, line, "write TIME,COUNT")
        found.append((number, _number(path, number, fields[0]) * unit, _count(path, number, fields[1])))
    return _of_counts(path, found, random)


def _evenly(path: Path, lines: Sequence[Line], random: Random, interval: float) -> Trace:
    if not _is_number(lines[0][1]):
        lines = lines[1:]  # a header
    found = [(number, place * interval, _count(path, number, line)) for place, (number, line) in enumerate(lines)]
    counts = [(at, count) for _, at, count in found]
    return from_counts(path.name, len(found) * interval, counts, random)


def _of_counts(path: Path, found: Sequence[tuple[int, float, int]], random: Random) -> Trace:
    """Make a trace of (line, seconds, nodes)."""
    if not found:
        raise BadInput(f"--trace {path}: there is no line below the header")
    start = found[0][1]
    last = start
    for number, at, _ in found:
        if at < last:
            raise BadInput(f"--trace {path}, line {number}: its time comes before the line above; sort them by time")
        last = at
    return from_counts(path.name, last - start, [(at - start, count) for _, at, count in found], random)


# ---- parts of lines ------------------------------------------------------------------------------------------------


def _fields(line: str) -> list[str]:
    return [field.strip() for field in next(csv.reader([line]))]


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", text) is not None


def _number(path: Path, number: int, text: str) -> float:
    if not _is_number(text) or float(text) < 0:
        raise BadInput(f"--trace {path}, line {number}: {text!r} is no time; write a number from 0 on")
    return float(text)


def _count(path: Path, number: int, text: str) -> int:
    if re.fullmatch(r"\d+(\.0+)?", text) is None:
        raise BadInput(f"--trace {path}, line {number}: {text!r} is no number of nodes; write 0, 1, 2, …")
    return int(float(text))


def _bad(path: Path, number: int, line: Any, what: str) -> NoReturn:
    raise BadInput(f"--trace {path}, line {number}: {str(line)[:60]!r}: {what}")
