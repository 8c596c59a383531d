"""What ``liver-slurm top`` draws: a :class:`TopView` as lines of a given size. Pure."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msgspec import UNSET
from rich.text import Text

from liver_slurm.cli.common import clock_text, counted, rate_text, seconds_text
from liver_slurm.cli.progress import throughput_parts, validation_text
from liver_slurm.observability.history import Happening
from liver_slurm.observability.top_view import NodeRow, NoticeRow, TopView

LABEL = 10
"""Columns of the names at the left."""
CHANGES = 6
"""Happenings that are shown at most where the screen is small."""
SMALLEST = 20
"""Columns below which nothing useful fits; a narrower screen cuts lines off."""


@dataclass(frozen=True)
class Glyphs:
    """What is drawn with, a column each, as the terminal can show it; ``spark`` goes from low to high."""

    spark: str = "▁▂▃▄▅▆▇█"
    full: str = "━"
    empty: str = "─"
    arrow: str = "→"
    dot: str = "·"
    more: str = "…"


ASCII = Glyphs(spark="_.,-~=+*#", full="#", empty=".", arrow=">", dot="|", more="~")
UNICODE = Glyphs()


def glyphs_for(encoding: str) -> Glyphs:
    """Choose glyphs that an encoding has."""
    try:
        "".join(vars(UNICODE).values()).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def frame(view: TopView, width: int, height: int, glyphs: Glyphs = UNICODE) -> list[Text]:
    """Draw one moment on a screen of ``width`` columns and ``height`` lines; no line is wider, nor are there more."""
    width = max(width, SMALLEST)
    head = [line for line in _head(view, width, glyphs) if line.plain]
    notices, changes, nodes = view.notices, view.happenings, view.nodes
    left = height - len(head)
    shown_notices = _fit(len(notices), left - 3, 2)
    left -= shown_notices + 2 if shown_notices else 0
    wanted_nodes = len(nodes) + 2 if nodes else 0
    shown_changes = _fit(len(changes), max(left - wanted_nodes, min(CHANGES + 2, left // 2)), 2)
    left -= shown_changes + 2 if shown_changes else 0
    lines = head
    if shown_notices:
        lines += [Text(), *_notices(view, notices[:shown_notices])]
    if nodes and left >= 3:
        lines += [Text(), *_nodes(nodes, left - 2, glyphs)]
    if shown_changes:
        lines += [Text(), *_changes(changes[:shown_changes])]
    return [_cut(line, width, glyphs) for line in lines[: max(height, 0)]]


def _fit(count: int, lines: int, heading: int) -> int:
    """Say how many rows, below so many lines of heading, fit into ``lines``."""
    return max(0, min(count, lines - heading))


def _cut(text: Text, width: int, glyphs: Glyphs) -> Text:
    """Cut a line off at the screen's edge, and show that it was; nothing in it may steer the terminal."""
    text.no_wrap = True
    if not text.plain.isprintable():  # what others wrote, such as a reason; it stays as long as it is
        text.plain = "".join(letter if letter.isprintable() else "?" for letter in text.plain)
    if text.cell_len > width:
        text.truncate(width - len(glyphs.more))
        text.append(glyphs.more)
    text.plain = translated(text.plain, glyphs)
    return text


def translated(text: str, glyphs: Glyphs) -> str:
    """Write a text with what the terminal can show; it stays as long as it is."""
    return text if glyphs is UNICODE else text.replace("→", glyphs.arrow).encode("ascii", "replace").decode()


# ---- the head ------------------------------------------------------------------------------------------------------


def _head(view: TopView, width: int, glyphs: Glyphs) -> list[Text]:
    return [
        _title(view, width, glyphs),
        _progress(view, width, glyphs),
        _world(view),
        _preparing(view),
        _speed(view, glyphs),
        _loss(view, width, glyphs),
        _validation(view),
        _standbys(view),
        _coordinator(view),
        _reason(view),
    ]


def _labelled(name: str, *parts: str | tuple[str, str]) -> Text:
    return Text.assemble((f"{name:<{LABEL}}", "bold"), *parts)


def _title(view: TopView, width: int, glyphs: Glyphs) -> Text:
    status = view.status
    name = status.run_dir.rpartition("/")[2] if status.run_dir is not UNSET else "-"
    job = f"job {status.job_id}" if status.job_id else "plain processes"
    ended = {"finished": "bold green", "failed": "bold red", "lost": "bold red"}
    left = Text.assemble(
        (name, "bold"), f" {glyphs.dot} {job} {glyphs.dot} ", (status.state, ended.get(status.state, "bold"))
    )
    right = time.strftime("%H:%M:%S", time.localtime(view.time))
    word, until = ("took", view.ended) if view.ended is not None else ("up", view.time)
    up = f"{word} {clock_text(until - view.created)}  {right}"
    right = up if left.cell_len + len(up) < width else right
    if left.cell_len + len(right) < width:
        left.append(right.rjust(width - left.cell_len), "dim")
    return left


def _progress(view: TopView, width: int, glyphs: Glyphs) -> Text:
    status = view.status
    share = min(1.0, status.step / max(1, status.steps))
    text = _labelled("step", f"{status.step} of {status.steps}")
    rest = f" {100 * share:.0f} %"
    if view.steps_per_s is not None and not view.over:
        rest += f"  {rate_text(view.steps_per_s)}"
    if view.remaining_s is not None:
        rest += f"  {clock_text(view.remaining_s)} left"
    if view.overdue_s is not None:
        rest = f" {100 * share:.0f} %  no step for {clock_text(view.overdue_s)}"
    room = width - text.cell_len - len(rest) - 2
    if room >= 10:
        done = int(share * room)
        text.append(" ")
        text.append(glyphs.full * done, "green")
        text.append(glyphs.empty * (room - done), "dim")
    text.append(rest, "bold yellow" if view.overdue_s is not None else "")
    return text


def _world(view: TopView) -> Text:
    status = view.status
    if status.layout is None:
        return _labelled("world", "none" if view.over else "none yet")
    size = f", {counted(len(status.workers), 'worker')}" if status.workers and not view.over else ""
    return _labelled("world", f"{status.generation}: {status.layout}{size}")


def _preparing(view: TopView) -> Text:
    attempt = view.preparing
    if attempt is None:
        return Text()
    since = clock_text(max(0.0, view.time - attempt.since))
    told = f", {attempt.phase} for {since}: {attempt.reason}"
    return _labelled("next", (f"{attempt.generation}: {attempt.to}", "bold cyan"), told)


def _speed(view: TopView, glyphs: Glyphs) -> Text:
    parts = throughput_parts(view.status)
    return _labelled("speed", f" {glyphs.dot} ".join(parts)) if parts and not view.over else Text()


def _loss(view: TopView, width: int, glyphs: Glyphs) -> Text:
    if not view.losses:
        return Text()
    last = view.losses[-1]
    text = _labelled("loss", f"{last:.4f}" if math.isfinite(last) else "not finite")
    rest = f"  last {counted(len(view.losses), 'step')}"
    columns = width - text.cell_len - 2 - len(rest)
    if columns >= 10 and len(view.losses) > 1:
        text.append("  ")
        text.append(sparkline(view.losses, min(columns, len(view.losses)), glyphs.spark), "cyan")
        text.append(rest, "dim")
    return text


def _validation(view: TopView) -> Text:
    text = validation_text(view.status)
    return _labelled("validated", text) if text else Text()


def sparkline(values: Sequence[float], columns: int, levels: str) -> str:
    """Draw values as a line of ``columns`` characters, each the mean of its share; what is not finite is left blank."""
    means = []
    for column in range(columns):
        share = values[column * len(values) // columns : (column + 1) * len(values) // columns]
        finite = [value for value in share if math.isfinite(value)]
        means.append(sum(finite) / len(finite) if finite else math.nan)
    known = [mean for mean in means if math.isfinite(mean)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(levels) - 1) / (high - low) if high > low else 0.0
    return "".join(levels[round((mean - low) * scale)] if math.isfinite(mean) else " " for mean in means)


def _standbys(view: TopView) -> Text:
    status = view.status
    if view.over:
        return Text()
    ready = sum(worker.warm is True for worker in status.standbys)
    starting = len(status.standbys) - ready
    parts = [f"{ready} ready"] + ([f"{starting} starting"] if starting else [])
    jobs = status.standby_jobs if status.standby_jobs is not UNSET else []
    states = {state: sum(job.state == state for job in jobs) for state in ("pending", "running", "suspended", "ending")}
    told = [f"{count} {state}" for state, count in states.items() if count]
    text = ", ".join(parts) + (f"; jobs: {', '.join(told)}" if told else "")
    return _labelled("standbys", text)


def _coordinator(view: TopView) -> Text:
    """Say that the coordinator is away, since when, and what that means; nothing while it answers."""
    contact = view.contact
    if not contact.error or view.over or view.status.state == "pending":
        return Text()
    since = f"{time.strftime('%H:%M:%S', time.localtime(contact.since))}, {clock_text(view.time - contact.since)}"
    last = f"away since {since}" if contact.answered else f"no answer since {since}"
    ends = f"; without it workers end in {clock_text(view.orphan_s)}" if view.orphan_s is not None else ""
    return _labelled("coordin.", (f"{last}{ends}", "bold red"))


def _reason(view: TopView) -> Text:
    status, last = view.status, view.happenings[0] if view.happenings else None
    told = view.preparing is not None or (last is not None and status.reason in last.why)
    if not status.reason or (told and not view.over):
        return Text()
    return _labelled("reason", status.reason)


# ---- the tables ----------------------------------------------------------------------------------------------------


def _heading(text: str) -> Text:
    return Text(text, style="bold underline")


def _notices(view: TopView, rows: Sequence[NoticeRow]) -> list[Text]:
    return [_heading(f"notices ({len(view.notices)})"), *(_notice(view, row) for row in rows)]


def _notice(view: TopView, row: NoticeRow) -> Text:
    who = row.host or row.workers[0]
    if row.deadline is None:
        due, style = "no limit", "yellow"
    else:
        left = row.deadline - view.time
        due, style = f"{clock_text(left)} left" if left > 0.0 else "overdue", "bold red" if left < 30.0 else "yellow"
    whom = _ranks(row.ranks) if row.ranks else counted(len(row.workers), "standby")
    return Text.assemble(f"  {who:<16} ", (f"{due:<11}", style), f" {row.kind} ({whom}): {row.reason}")


def _nodes(rows: Sequence[NodeRow], lines: int, glyphs: Glyphs) -> list[Text]:
    """Draw a row a node, as many as fit; the last line says what is left out."""
    ranks, standbys = sum(len(row.ranks) for row in rows), sum(row.standbys for row in rows)
    parts = [counted(ranks, "worker"), f"{standbys} in no world"] if standbys else [counted(ranks, "worker")]
    found = [_heading(f"nodes ({len(rows)}: {', '.join(parts)})")]
    shown = rows if len(rows) <= lines else rows[: max(0, lines - 1)]
    for row in shown:
        of_world = _ranks(row.ranks) if row.ranks else ""
        waiting = counted(row.standbys, "standby") if row.standbys else ""
        text = Text(f"  {row.host or '-':<16} {row.partition or '-':<14} ")
        text.append(", ".join(part for part in (of_world, waiting) if part))
        if row.leaving:
            text.append("  leaving", "bold yellow")
        found.append(text)
    if len(shown) < len(rows):
        found.append(Text(f"  {glyphs.more} {_left_out(rows[len(shown) :])}", "dim"))
    return found


def _left_out(rows: Iterable[NodeRow]) -> str:
    """Sum up nodes by partition."""
    nodes: dict[str, int] = {}
    for row in rows:
        nodes[row.partition] = nodes.get(row.partition, 0) + 1
    return ", ".join(
        f"{counted(count, 'further node')}{f' of {name}' if name else ''}" for name, count in nodes.items()
    )


def _changes(happenings: Sequence[Happening]) -> list[Text]:
    return [_heading("last changes"), *map(_change, happenings)]


def _change(one: Happening) -> Text:
    when = time.strftime("%H:%M:%S", time.localtime(one.time))
    text = Text.assemble((f"  {when}  ", "dim"), (one.what, "bold red" if one.bad else "bold"))
    if one.step is not None:
        text.append(f", step {one.step}")
    if one.cost_s is not None:
        text.append(", waited ").append(seconds_text(one.cost_s), "yellow")
    return text.append(f": {one.why}") if one.why else text


def _ranks(numbers: Sequence[int]) -> str:
    return f"rank{'s' if len(numbers) > 1 else ''} {ranges(numbers)}"


def ranges(numbers: Iterable[int]) -> str:
    """Write ascending numbers in short, such as ``0-3,6``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
