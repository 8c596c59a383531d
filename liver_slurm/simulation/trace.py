"""What a trace says: which nodes of a cluster were to be had, and when. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random


@dataclass(frozen=True)
class Span:
    """Time in which one node could be had. Times are seconds since the trace's beginning."""

    node: str
    begin: float
    end: float
    """When its owner takes it, or the trace is over."""
    sudden: bool = False
    """It dies at the end: nobody is told before."""


@dataclass(frozen=True)
class Published:
    """What others chose on a trace, from which second on."""

    name: str
    choices: tuple[tuple[float, int, int], ...]
    """Seconds, replicas, pipeline stages."""


@dataclass(frozen=True)
class Trace:
    """Spans of all nodes, by time of their beginning."""

    name: str
    seconds: float
    """Length of the trace."""
    spans: tuple[Span, ...]
    note: str = ""
    """What else is known of it, for people."""
    published: tuple[Published, ...] = ()

    @property
    def node_seconds(self) -> float:
        """Node-seconds on offer."""
        return sum(span.end - span.begin for span in self.spans)

    @property
    def events(self) -> int:
        """Count the moments at which the offer changes."""
        times = {span.begin for span in self.spans} | {span.end for span in self.spans}
        return len([time for time in times if 0.0 < time < self.seconds])

    @property
    def most(self) -> int:
        """The most nodes on offer at once."""
        return max((count for _, count in self.counts()), default=0)

    def counts(self) -> list[tuple[float, int]]:
        """Return how many nodes are on offer from which time on, where that changes."""
        steps: dict[float, int] = {0.0: 0}
        for span in self.spans:
            steps[span.begin] = steps.get(span.begin, 0) + 1
            steps[span.end] = steps.get(span.end, 0) - 1
        found: list[tuple[float, int]] = []
        count = 0
        for time in sorted(steps):
            count += steps[time]
            if time < self.seconds and (not found or found[-1][1] != count):
                found.append((time, count))
        return found


def from_spans(name: str, seconds: float, spans: Iterable[Span], note: str = "") -> Trace:
    """Make a trace of spans: what lies outside is cut off, and spans of one node that touch become one."""
    by_node: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda one: (one.begin, one.end)):
        cut = replace(span, begin=max(0.0, span.begin), end=min(seconds, span.end))
        if cut.end <= cut.begin:
            continue
        known = by_node.setdefault(cut.node, [])
        if known and cut.begin <= known[-1].end and not known[-1].sudden:
            known[-1] = replace(known[-1], end=max(known[-1].end, cut.end), sudden=cut.sudden)
        else:
            known.append(cut)
    return Trace(name, seconds, tuple(sorted(_all(by_node), key=lambda one: (one.begin, one.node))), note)


def _all(by_node: dict[str, list[Span]]) -> list[Span]:
    return [span for spans in by_node.values() for span in spans]


def from_counts(name: str, seconds: float, counts: Sequence[tuple[float, int]], random: Random) -> Trace:
    """Make a trace of (time, nodes on offer) in order of time: which nodes go when fewer are left is drawn by lot."""
    free: list[int] = []
    here: dict[int, float] = {}
    spans: list[Span] = []
    numbers = 0
    for time, count in counts:
        while len(here) < count:
            if free:
                number = free.pop()
            else:
                numbers += 1
                number = numbers
            here[number] = time
        for number in random.sample(sorted(here), max(0, len(here) - count)):
            spans.append(Span(f"node{number}", here.pop(number), time))
            free.append(number)
    spans += [Span(f"node{number}", begin, seconds) for number, begin in here.items()]
    return from_spans(name, seconds, spans)


def cut(trace: Trace, seconds: float) -> Trace:
    """Return the trace's first ``seconds``."""
    length = min(seconds, trace.seconds)
    spans = [span for span in trace.spans if span.begin < length]
    kept = [replace(span, end=length, sudden=False) if span.end > length else span for span in spans]
    return replace(trace, seconds=length, spans=tuple(kept))


def with_deaths(trace: Trace, per_1000_node_days: float, repair: float, random: Random) -> Trace:
    """Return the trace with sudden deaths of nodes, at a constant rate, that are back ``repair`` seconds later."""
    rate = per_1000_node_days / 1000.0 / 86400.0
    if rate <= 0.0:
        return trace
    spans: list[Span] = []
    for span in trace.spans:
        begin = span.begin
        while (death := begin + random.expovariate(rate)) < span.end:
            spans.append(Span(span.node, begin, death, sudden=True))
            begin = death + repair
            if begin >= span.end:
                break
        else:
            spans.append(replace(span, begin=begin))
    return replace(trace, spans=tuple(sorted(spans, key=lambda one: (one.begin, one.node))))
