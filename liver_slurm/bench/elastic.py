"""The product's own way: a run of plain processes, coordinator and all, that is asked for one layout after the other.

A layout is asked for as a user does, through the control channel, once the world has trained for a while; so the target
world is prepared beside training, and training stops for nothing but the cutover.
"""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from liver_slurm.app.local_run import run_local
from liver_slurm.base.errors import ControlError, ExitCode, LiverError
from liver_slurm.bench.figures import Reconfigured, usual
from liver_slurm.config.schema import JobConfig
from liver_slurm.parallel.layout import Layout
from liver_slurm.protocol.client import request
from liver_slurm.protocol.messages import CancelRequest, ResizeRequest
from liver_slurm.rundir.event_log import read_events
from liver_slurm.rundir.events import (
    Event,
    ReconfigurationAborted,
    ReconfigurationCommitted,
    ReconfigurationStarted,
    UnknownEvent,
    WorkerLost,
    WorldLive,
)
from liver_slurm.rundir.metrics import StepMetrics, read_metrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run

PATIENCE = 400.0
"""Seconds without a new world after which a run is given up; the first world compiles on cards."""
TAKEN = (
    *("prepare_s", "plan_s", "stream_s", "pause_s", "gate_s", "hook_s", "exposed_s"),
    *("bytes_moved", "bytes_remote", "bytes_early", "bytes_gradients"),
    *("staging_peak_bytes", "memory_peak_bytes", "digests_checked"),
)
"""What is taken from :class:`ReconfigurationCommitted`."""
_ERROR = re.compile(r"^\w[\w.]*(?:Error|Exception): .*", re.MULTILINE)


@dataclass
class Walk:
    """Drives one run through a list of layouts; :meth:`look` is called about ten times a second."""

    run_dir: RunDir
    layouts: Sequence[Layout]
    steps: int
    """Steps of each world before the next layout is asked for; and at least ``seconds``."""
    seconds: float
    visited: int = 0
    asked: bool = False
    over: bool = False
    since: float = field(default_factory=time.monotonic)
    problem: str = ""

    def look(self) -> None:
        """See how far the run is, and ask for what comes next."""
        if self.over:
            return
        try:
            self._look()
        except ControlError as error:
            if not self.run_dir.address_file.exists():
                return  # the coordinator is starting
            self._end(str(error))

    def _look(self) -> None:
        events = list(read_events(self.run_dir.events)) if self.run_dir.events.exists() else []
        worlds = [event for event in events if isinstance(event, WorldLive)]
        if len(worlds) > self.visited:
            self.visited, self.asked, self.since = len(worlds), False, time.monotonic()
        aborted = [event.reason for event in events if isinstance(event, ReconfigurationAborted | WorkerLost)]
        if aborted:
            return self._end(f"aborted: {aborted[0]}")
        if time.monotonic() - self.since > PATIENCE:
            return self._end(f"no new world for {PATIENCE:g} s after world {self.visited - 1}")
        if not worlds or self.asked or not self._trained(worlds[-1]):
            return None
        if self.visited == len(self.layouts):
            return self._end("")
        reply = request(self.run_dir, ResizeRequest(layout=str(self.layouts[self.visited])))
        # A standby that has not registered yet is no reason to give up: the next look asks again.
        self.asked = reply.ok
        return None

    def _trained(self, world: WorldLive) -> bool:
        """Has the newest world trained long enough for its usual step to be known?"""
        ends = [one.end for one in read_metrics(self.run_dir.metrics) if one.generation == world.generation]
        return len(ends) > self.steps and ends[-1] - ends[0] >= self.seconds

    def _end(self, problem: str) -> None:
        self.over, self.problem = True, problem
        request(self.run_dir, CancelRequest())


def walk(config: JobConfig, layouts: Sequence[Layout], steps: int = 5, seconds: float = 1.0) -> list[Reconfigured]:
    """Run through the layouts in turn; what each reconfiguration took.

    Raises:
        LiverError: the run failed, or did not get there.
        KeyboardInterrupt: Ctrl-C, or somebody cancelled the run.
    """
    run_dir = create_run(config)
    guide = Walk(run_dir, layouts, steps, seconds)
    # Without standby jobs a run changes its layout only when asked to; workers that the initial layout has no use for
    # stand by all the same.
    code = run_local(config, run_dir, max(layout.size for layout in layouts), standbys=0, on_progress=guide.look)
    events = list(read_events(run_dir.events)) if run_dir.events.exists() else []
    if code == ExitCode.CANCELLED and not guide.over:
        raise KeyboardInterrupt
    if guide.problem or code != ExitCode.CANCELLED:
        raise LiverError(f"{guide.problem or _why(events)}{said(run_dir)}")
    return measured(events, list(read_metrics(run_dir.metrics)))


def measured(events: Sequence[Event | UnknownEvent], metrics: Sequence[StepMetrics]) -> list[Reconfigured]:
    """Return every reconfiguration of a run, from its events and its steps."""
    begun = {event.generation: event.time for event in events if isinstance(event, ReconfigurationStarted)}
    done = [event for event in events if isinstance(event, ReconfigurationCommitted)]
    return [_one(event, metrics, begun) for event in done]


def _one(event: ReconfigurationCommitted, metrics: Sequence[StepMetrics], begun: dict[int, float]) -> Reconfigured:
    generation, cutover = event.generation, event.cutover_step
    by_step = {one.step: one for one in metrics}
    before, after = by_step[cutover], by_step[cutover + 1]
    usual_before = usual(_quiet(metrics, before.generation, begun))
    meanwhile = [one.end for one in metrics if one.generation == before.generation and one.end >= begun[generation]]
    return Reconfigured(
        interval_s=after.end - before.end,
        usual_s=usual(_quiet(metrics, generation, begun)),
        stood_s=event.pause_s + event.gate_s,
        before_s=event.hook_s,
        parts={
            **{name: getattr(event, name) for name in TAKEN},
            "first_step_s": after.end - after.start,
            # Time that preparing beside training takes from it: where both share cores, not where a core is free.
            "slowed_s": sum(later - earlier - usual_before for earlier, later in itertools.pairwise(meanwhile)),
        },
    )


def _quiet(metrics: Sequence[StepMetrics], generation: int, begun: dict[int, float]) -> list[float]:
    """Return the ends of the steps of one world while nothing else was being prepared."""
    following = min((time for number, time in begun.items() if number > generation), default=math.inf)
    return [one.end for one in metrics if one.generation == generation and one.end < following]


def _why(events: Sequence[Event | UnknownEvent]) -> str:
    reasons = [reason for event in events if (reason := getattr(event, "reason", ""))]
    return reasons[-1] if reasons else "its coordinator ended without a word"


def said(run_dir: RunDir) -> str:
    """Return how tracebacks in the workers' logs end, since the run directory does not stay."""
    logs = sorted(run_dir.logs.glob("*.log"))
    found = {log.stem: _ERROR.findall(log.read_text(errors="replace")) for log in logs}
    return "".join(f"; {name}: {lines[-1]}" for name, lines in found.items() if lines)
