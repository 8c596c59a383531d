"""The run's own timeline: from its creation to its end, each moment with one cause, and which world was live. Pure.

Steps are what the metrics say. What lies between two steps is told by the events that fall there: a checkpoint, a
reconfiguration, or the loss of the world; the usual gap of a world's steps belongs to the step before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from liver_slurm.observability.ledger.causes import Cause, Seconds
from liver_slurm.observability.ledger.facts import Facts
from liver_slurm.observability.ledger.gaps import GapWalk, disrupted_gaps
from liver_slurm.observability.ledger.step_table import Floats, StepTable
from liver_slurm.rundir.events import CheckpointWritten, ReconfigurationCommitted

COLUMNS = (
    Cause.PAUSE, Cause.FIRST_STEP, Cause.PAUSE, Cause.DATA, Cause.STEP, Cause.VALIDATION, Cause.CHECKPOINT, Cause.PAUSE,
    Cause.BETWEEN,
)  # fmt: skip
"""What a step and the gap behind it are made of, in this order: the gate of the commit, the excess of a first step, the
optimizer's hooks, samples, the rest with the usual gap; then the gap's own four."""
_GATE, _EXCESS, _HOOKS, _DATA, _STEP, _VALIDATION, _CHECKPOINT, _PAUSE, _BETWEEN = range(len(COLUMNS))
Codes = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Timeline:
    """Segments that touch each other, from ``times[0]`` to ``times[-1]``."""

    times: Floats
    """Bounds of the segments, seconds since the epoch: one more than there are segments."""
    causes: Codes
    """Of each segment."""
    _known: dict[tuple[float, float], Seconds] = field(default_factory=dict, compare=False, repr=False)

    def seconds(self, start: float, end: float) -> Seconds:
        """Sum the seconds between two moments by cause; outside of the timeline there are none."""
        start, end = max(start, float(self.times[0])), min(end, float(self.times[-1]))
        if end <= start:
            return {}
        key = (start, end)
        if key not in self._known:
            self._known[key] = self._sum(start, end)
        return self._known[key]

    def _sum(self, start: float, end: float) -> Seconds:
        first = int(np.searchsorted(self.times, start, side="right")) - 1
        last = int(np.searchsorted(self.times, end, side="left"))
        bounds = np.clip(self.times[first : last + 1], start, end)
        sums = np.bincount(self.causes[first:last], weights=np.diff(bounds), minlength=len(Cause))
        return {cause: float(sums[cause]) for cause in Cause if sums[cause] > 0.0}


def build(facts: Facts) -> Timeline:
    """Build the timeline of a run."""
    steps = facts.steps
    walk = GapWalk(facts)
    disrupted = disrupted_gaps(facts)
    if not len(steps):
        return _joined([walk.segments(-1, facts.created, facts.until, disrupted.get(-1, ()))], facts.until)
    lengths = _lengths(facts, np.array(sorted(gap for gap in disrupted if gap >= 0), dtype=np.int64))
    starts = np.empty_like(lengths)
    starts[:, : _STEP + 1] = steps.start[:, None] + _before(lengths[:, : _STEP + 1])
    starts[:, _VALIDATION:] = (steps.end + _usual_part(lengths, steps))[:, None] + _before(lengths[:, _VALIDATION:])
    used = lengths > 0.0
    used[:, _STEP] = True  # also where it is empty, so that no step is without a segment
    places = np.flatnonzero(used)
    rows, columns = np.divmod(places, len(COLUMNS))
    parts = _Parts(starts.reshape(-1)[places], np.array(COLUMNS, dtype=np.int8)[columns], rows)
    before = max(facts.created, min(float(steps.start[0]), facts.until))
    parts.insert(walk.segments(-1, facts.created, before, disrupted.get(-1, ())), -1)
    tail = len(steps) - 1
    for gap in sorted({*disrupted, tail} - {-1}):
        end = float(steps.start[gap + 1]) if gap < tail else facts.until
        parts.insert(walk.segments(gap, float(steps.end[gap]), end, disrupted.get(gap, ())), gap)
    timeline = _joined([parts.sorted()], facts.until)
    return _without_lost(timeline, facts)


def _lengths(facts: Facts, disrupted: npt.NDArray[np.int64]) -> Floats:
    """Return how long each of :data:`COLUMNS` is, for each step; of gaps that are walked, all are 0."""
    steps = facts.steps
    count = len(steps)
    lengths = np.zeros((count, len(COLUMNS)))
    left = steps.end - steps.start  # of each step, what is not given to a cause yet
    heads = _first_of_world(steps)
    validated = _validated(facts)
    usual, excess = _usual(steps, heads, validated)
    for event in facts.events:
        if isinstance(event, ReconfigurationCommitted):
            _give_hooks(steps, lengths, left, event)
            cut = int(np.searchsorted(steps.step, event.cutover_step, side="right"))  # the first step of the new world
            if cut < count:
                lengths[cut, _GATE] = min(max(0.0, event.gate_s), left[cut])
                left[cut] -= lengths[cut, _GATE]
    for head, more in excess.items():
        lengths[head, _EXCESS] = min(max(0.0, more - lengths[head, _GATE]), left[head])
        left[head] -= lengths[head, _EXCESS]
    lengths[:, _DATA] = np.minimum(np.maximum(np.nan_to_num(steps.data_s), 0.0), left)
    lengths[:, _STEP] = left - lengths[:, _DATA]
    gap = np.zeros(count)
    gap[:-1] = np.maximum(steps.start[1:] - steps.end[:-1], 0.0)
    gap[disrupted] = 0.0
    lengths[:, _VALIDATION] = np.minimum(validated, gap)
    _share_gaps(facts, lengths, gap - lengths[:, _VALIDATION], usual)
    return lengths


def _share_gaps(facts: Facts, lengths: Floats, gap: Floats, usual: Floats) -> None:
    """Share what is left of each gap among checkpoint, pause, the step before it (as much as is usual), and what nobody
    explains.
    """
    steps = facts.steps
    stall, pause = np.zeros(len(steps)), np.zeros(len(steps))
    changes = steps.generation[1:] != steps.generation[:-1]
    pause[:-1][changes] = np.inf  # all of the gap, unless the event says how much
    for event in facts.events:
        if isinstance(event, CheckpointWritten | ReconfigurationCommitted):
            number = event.step if isinstance(event, CheckpointWritten) else event.cutover_step
            index = int(np.searchsorted(steps.step, number))
            if index < len(steps) and steps.step[index] == number:
                if isinstance(event, CheckpointWritten):
                    stall[index] = max(0.0, event.stall_s)
                else:
                    pause[index] = max(0.0, event.pause_s)
    lengths[:, _CHECKPOINT] = np.minimum(stall, gap)
    gap = gap - lengths[:, _CHECKPOINT]
    known = np.isfinite(pause)
    lengths[:, _PAUSE] = np.where(known, np.minimum(pause, gap), np.maximum(gap - usual, 0.0))
    gap = gap - lengths[:, _PAUSE]
    normal = np.minimum(usual, gap)
    lengths[:, _STEP] += normal
    lengths[:, _BETWEEN] = np.maximum(gap - normal, 0.0)


def _validated(facts: Facts) -> Floats:
    """Return for each step the seconds of the validation that came after it."""
    steps, found = facts.steps, np.zeros(len(facts.steps))
    for one in facts.validations:
        row = int(np.searchsorted(steps.step, one.step))
        if row < len(steps) and steps.step[row] == one.step:
            found[row] = max(0.0, one.seconds)
    return found


def _usual_part(lengths: Floats, steps: StepTable) -> Floats:
    """Return what of the usual gap each step has been given."""
    part: Floats = lengths[:, : _STEP + 1].sum(axis=1) - (steps.end - steps.start)
    return np.maximum(part, 0.0)


def _before(lengths: Floats) -> Floats:
    """Return for each column the sum of those before it."""
    found = np.zeros_like(lengths)
    for column in range(1, lengths.shape[1]):  # a cumulative sum along rows of eight is several times slower
        np.add(found[:, column - 1], lengths[:, column - 1], out=found[:, column])
    return found


def _first_of_world(steps: StepTable) -> npt.NDArray[np.int64]:
    """Return the rows with which a world begins."""
    changes = np.flatnonzero(steps.generation[1:] != steps.generation[:-1]) + 1
    return np.concatenate([np.zeros(1, np.int64), changes])


def _usual(steps: StepTable, heads: npt.NDArray[np.int64], validated: Floats) -> tuple[Floats, dict[int, float]]:
    """Return each row's usual gap, the median of its world's, and how much longer first steps took than the others.

    What was ``validated`` in a gap is no part of it. The excess of a first step is Google's: over the mean of the other
    steps of its world.
    """
    usual, excess = np.zeros(len(steps)), {}
    durations = steps.end - steps.start
    ends = [*heads[1:].tolist(), len(steps)]
    for head, end in zip(heads.tolist(), ends, strict=True):
        gaps = np.maximum(steps.start[head + 1 : end] - steps.end[head : end - 1] - validated[head : end - 1], 0.0)
        usual[head:end] = float(np.median(gaps)) if len(gaps) else 0.0
        if end - head > 1:
            more = float(durations[head] - durations[head + 1 : end].mean())
            if more > 0.0:
                excess[head] = more
    return usual, excess


def _give_hooks(steps: StepTable, lengths: Floats, left: Floats, event: ReconfigurationCommitted) -> None:
    """Take the time inside the optimizer's hooks off the last steps before a cutover, the last one first."""
    row = int(np.searchsorted(steps.step, event.cutover_step, side="right")) - 1
    hooks = max(0.0, event.hook_s)
    while row >= 0 and hooks > 0.0 and steps.generation[row] != event.generation:
        taken = min(hooks, float(left[row]))
        lengths[row, _HOOKS] += taken
        left[row] -= taken
        hooks -= taken
        row -= 1


class _Parts:
    """Segments by row of the steps, and those that are put between."""

    def __init__(self, starts: Floats, codes: Codes, rows: npt.NDArray[np.int64]) -> None:
        self._starts, self._codes, self._rows = starts, codes, rows
        self._extra: list[tuple[int, list[tuple[float, Cause]]]] = []

    def insert(self, segments: list[tuple[float, Cause]], gap: int) -> None:
        """Put segments behind those of row ``gap``."""
        self._extra.append((int(np.searchsorted(self._rows, gap, side="right")), segments))

    def sorted(self) -> list[tuple[float, Cause]] | tuple[Floats, Codes]:
        places = [place for place, segments in self._extra for _ in segments]
        starts = [start for _, segments in self._extra for start, _ in segments]
        codes = [cause for _, segments in self._extra for _, cause in segments]
        return np.insert(self._starts, places, starts), np.insert(self._codes, places, codes)


def _joined(parts: list[list[tuple[float, Cause]] | tuple[Floats, Codes]], until: float) -> Timeline:
    (part,) = parts
    if isinstance(part, tuple):
        starts, codes = part
    else:
        starts = np.array([start for start, _ in part])
        codes = np.array([cause for _, cause in part], dtype=np.int8)
    times = np.maximum.accumulate(np.append(starts, until))
    return Timeline(np.minimum(times, until), codes)


def _without_lost(timeline: Timeline, facts: Facts) -> Timeline:
    """Count as wasted what was trained after the checkpoint from which another run goes on."""
    steps, counted = facts.steps, facts.counted
    if counted is None or counted >= steps.step[-1]:
        return timeline
    since = float(steps.start[int(np.searchsorted(steps.step, counted, side="right"))])
    trained = np.isin(timeline.causes, [Cause.STEP, Cause.FIRST_STEP, Cause.DATA])
    causes = np.where(trained & (timeline.times[:-1] >= since), np.int8(Cause.WASTED), timeline.causes)
    return Timeline(timeline.times, causes.astype(np.int8))
