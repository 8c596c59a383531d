"""The page: one HTML file with everything in it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from liver_slurm.observability.ledger.causes import BUCKETS, NAMES, by_bucket, text
from liver_slurm.observability.ledger.changes import Change
from liver_slurm.observability.ledger.document import CAPACITY, ETTR, lost_work, ratio
from liver_slurm.report import palette
from liver_slurm.report.canvas import Style
from liver_slurm.report.figures import details_figure, told, world_figure
from liver_slurm.report.model import MARKED, Report, comparison, largest_first, marks, sentence, tiles
from liver_slurm.report.strips import Strips, make_strips
from liver_slurm.report.svg import to_svg
from liver_slurm.report.words import duration, percent

WIDE, NARROW = 1160, 372
"""Widths of the two forms of each figure; the page shows one of them, by its own width."""
ROWS = 200
"""Changes that the table shows at most."""
UNKNOWN = "steps that a run which resumed this one has trained again count here: no run is told who has resumed it"
"""What a page of one run cannot know, unless the run has finished."""


@dataclass(frozen=True)
class Drawing:
    """One figure in both widths."""

    wide: Markup
    narrow: Markup


def render(report: Report) -> str:
    """Return the page of a report."""
    strips = make_strips(report.ledger.account, report.length)
    template = resources.files("liver_slurm.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(**_content(report, strips))


def _content(report: Report, strips: Strips) -> dict[str, Any]:
    ledger, facts = report.ledger, report.ledger.account.facts
    found = marks(report)
    hover = {f"mark-{index}": told(mark) for index, mark in enumerate(found)} if len(found) <= MARKED else {}
    in_progress = facts.outcome in ("training", "queued")
    shown = largest_first(ledger.changes, ROWS)
    lost = lost_work(ledger.account, ledger.account.total())
    return {
        "title": Path(facts.run).name,
        "outcome": facts.outcome,
        "when": f"{_moment(facts.created)} to {_moment(facts.until)}"
        + (", no end of it is on record" if in_progress else ""),
        "length": duration(ledger.wall_s),
        "steps": f"{len(facts.steps):,} steps" + (f", {lost['steps']:.0f} lost" if lost["steps"] else ""),
        "sentence": sentence(report),
        "comparison": comparison(report),
        "tiles": tiles(report),
        "many": len(found) > MARKED,
        "bars": _bars(report),
        "world": _both(report, None, hover, "The world's size over time, against what was offered"),
        "details": _both(report, strips, {}, "Workers, tokens a second, loss and pauses over time"),
        "legend": [palette.KINDS[kind] for kind in strips.kinds()],
        "changes": [_row(report, change) for change in shown],
        "left_out": len(ledger.changes) - len(shown),
        "buckets": _buckets(report),
        "formulas": [ETTR, CAPACITY, *([] if facts.outcome == "finished" else [UNKNOWN])],
        "assumption": ledger.restarted.assumption if report.changes else "",
        "expected": _expected(report),
        "css": Markup(palette.css()),  # ours, no input
        "colours": vars(palette),
    }


def _both(report: Report, strips: Strips | None, hover: dict[str, str], title: str) -> Drawing:
    """Draw the figure of the strips, or without any that of the world, in both widths."""
    found = []
    for width in (WIDE, NARROW):
        style = Style(width, palette.STAND_INS)
        figure = world_figure(report, style) if strips is None else details_figure(report, strips, style)
        prefix = f"{'world' if strips is None else 'details'}-{width}"
        found.append(Markup(to_svg(figure, prefix, title, hover)))  # matplotlib escapes the texts in it
    return Drawing(*found)


def _bars(report: Report) -> list[dict[str, Any]]:
    """Return the two bars that compare this run with restarts; the longer one is as wide as the page."""
    ledger, other = report.ledger, report.ledger.restarted
    if not report.changes or other.restart_s is None:
        return []
    whole = max(ledger.wall_s, other.wall_s)
    lost = sum(change.exposed_s for change in report.changes)
    rest = ledger.wall_s - ledger.ettr * ledger.wall_s - lost
    rows = []
    for name, changes, ettr, wall in (
        ("this run", lost, ledger.ettr, ledger.wall_s),
        ("with restarts", other.stopped_s + other.slower_s, other.ettr, other.wall_s),
    ):
        rows.append(
            {
                "name": name,
                "ettr": percent(ettr),
                "wall": duration(wall),
                "parts": [
                    ("training", 100 * ettr * wall / whole),
                    ("changes", 100 * changes / whole),
                    ("rest", 100 * max(0.0, rest) / whole),
                ],
                "lost": duration(changes),
            }
        )
    return rows


def _row(report: Report, change: Change) -> dict[str, Any]:
    arrow = "▲" if change.after > change.before else "▼" if change.after < change.before else "◆"
    kind = "grow" if change.after > change.before else "shrink" if change.after < change.before else "reshape"
    parts = [f"{phase.name} {duration(phase.hidden_s + phase.exposed_s)}" for phase in change.phases]
    return {
        "at": duration(report.since(change.cutover)),
        "arrow": arrow if change.committed else "✕",
        "kind": kind if change.committed else "aborted",
        "from": change.source,
        "to": change.to,
        "workers": f"{change.before} → {change.after}",
        "step": "" if change.cutover_step is None else f"{change.cutover_step:,}",
        "exposed": duration(change.exposed_s) if change.committed else "–",
        "hidden": duration(change.hidden_s),
        "phases": ", ".join(parts),
        "cause": change.cause if change.committed else "given up",
        "reason": change.reason,
    }


def _buckets(report: Report) -> list[dict[str, str]]:
    total = report.ledger.account.total()
    sums, whole = by_bucket(total), sum(total.values())
    rows = []
    for name in NAMES:
        if sums[name] <= 0.0:
            continue
        parts = [text(cause) for cause, bucket in BUCKETS.items() if bucket == name and total.get(cause, 0.0) > 0.0]
        rows.append(
            {
                "name": name,
                "seconds": f"{sums[name]:,.3f}",
                "share": percent(ratio(sums[name], whole)),
                "width": f"{100 * ratio(sums[name], whole):.2f}",
                "causes": ", ".join(parts),
            }
        )
    return rows


def _expected(report: Report) -> str:
    expected = report.ledger.expected
    if expected.between_s is None:
        return ""
    return (
        f"Once training has begun, {percent(expected.ettr)} is expected (Meta's closed form) at this run's rate of "
        f"{expected.changes} changes and {expected.losses} losses, one each {duration(expected.between_s)} of "
        f"training, each of which lost {duration(expected.u0_s)}; measured: {percent(expected.measured)}."
    )


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
