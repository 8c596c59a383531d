"""Strips: workers over time, each moment in the colour of what the worker did."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from liver_slurm.observability.ledger.account import Account, Piece
from liver_slurm.observability.ledger.causes import Cause
from liver_slurm.report.model import Report
from liver_slurm.report.palette import KIND_OF, KINDS
from liver_slurm.report.words import unit_of

LABELLED = 40
"""Workers at most that have their names beside them."""
BOXES = 1000
"""Boxes at most that are drawn each for itself, if there are few workers; else all of it is an image."""
COLUMNS = 800
"""Moments that an image tells apart."""


@dataclass(frozen=True)
class Box:
    """A part of a strip. Times are seconds since the run's creation; ``kind`` is a place in KINDS."""

    row: int
    start: float
    end: float
    kind: int


@dataclass(frozen=True)
class Strips:
    """Workers from top to bottom, and what they did."""

    labels: tuple[str, ...]
    boxes: tuple[Box, ...]

    @property
    def labelled(self) -> bool:
        """Whether there are few enough for names."""
        return len(self.labels) <= LABELLED

    def kinds(self) -> list[int]:
        """Return which kinds there are, in the order of KINDS."""
        return sorted({box.kind for box in self.boxes})


def make_strips(account: Account, length: float) -> Strips:
    """Lay out the presences of a run; what is shorter than a :data:`COLUMNS`-th of it is not told apart."""
    rows: dict[str, int] = {}
    boxes: list[Box] = []
    long = _long_segments(account, length / COLUMNS)
    created = account.facts.created
    for one, pieces in zip(account.presences, account.pieces, strict=True):
        row = rows.setdefault(one.place, len(rows))
        for piece in pieces:
            shared = piece.cause is None or one.guaranteed
            own = _kind(Cause.STEP if piece.cause is None else piece.cause)
            boxes.append(Box(row, piece.start - created, piece.end - created, own))
            if shared:
                boxes += _overlaid(row, piece, long, created)
    return Strips(tuple(rows), tuple(boxes))


def _kind(cause: Cause) -> int:
    return KINDS.index(KIND_OF[cause])


def _long_segments(account: Account, least: float) -> list[tuple[float, float, Cause]]:
    """Return the segments of the run's timeline that can be seen and are no training."""
    times, causes = account.timeline.times, account.timeline.causes
    lengths = np.diff(times)
    plain = np.isin(causes, [Cause.STEP, Cause.DATA, Cause.BETWEEN, Cause.IN_FLIGHT])
    rows = np.flatnonzero(~plain & (lengths >= least))
    return [(float(times[row]), float(times[row + 1]), Cause(int(causes[row]))) for row in rows.tolist()]


def _overlaid(row: int, piece: Piece, long: list[tuple[float, float, Cause]], created: float) -> Iterator[Box]:
    outside = (Cause.PAUSE, Cause.FIRST_STEP, Cause.CHECKPOINT, Cause.VALIDATION, Cause.WASTED)
    for start, end, cause in long:
        start, end = max(start, piece.start), min(end, piece.end)
        if end > start and not (piece.cause is not None and cause in outside):
            yield Box(row, start - created, end - created, _kind(cause))


def draw_strips(axes: Axes, strips: Strips, report: Report) -> None:
    """Draw the strips, from top to bottom."""
    _, unit = unit_of(report.length)
    count = max(1, len(strips.labels))
    if strips.labelled and len(strips.boxes) <= BOXES:
        by_kind: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
        for order, box in enumerate(strips.boxes):
            by_kind[box.row, order].append((box.start / unit, (box.end - box.start) / unit))
        for (row, order), spans in by_kind.items():
            colour = KINDS[strips.boxes[order].kind].colour
            axes.broken_barh(spans, (row - 0.4, 0.8), facecolors=colour, linewidth=0)
    else:
        axes.imshow(
            image(strips, report.length), aspect="auto", interpolation="nearest",
            extent=(0.0, report.length / unit, count - 0.5, -0.5),
        )  # fmt: skip
    if strips.labelled:
        axes.set_yticks(range(count), strips.labels)
    else:
        axes.set_yticks([])
        axes.set_ylabel(f"{count:,} workers")
    axes.set_ylim(count - 0.5, -0.5)
    axes.grid(visible=False)


def image(strips: Strips, length: float) -> npt.NDArray[np.float64]:
    """Return the strips as colours, ``[workers, COLUMNS, 4]``; where a worker was not there, it is transparent."""
    codes = np.full((len(strips.labels), COLUMNS), -1)
    for box in strips.boxes:
        first = int(box.start / length * COLUMNS)
        codes[box.row, first : max(first + 1, round(box.end / length * COLUMNS))] = box.kind
    colours = np.array([*(to_rgba(kind.colour) for kind in KINDS), (0.0, 0.0, 0.0, 0.0)])
    found: npt.NDArray[np.float64] = colours[codes]
    return found
