"""The progress of a run while one waits for it, on stderr: one line on a terminal, lines now and then elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType

from msgspec import UNSET, convert

from liver_slurm.base import interrupts
from liver_slurm.cli.common import bytes_text, clock_text, counted, printable, rate_text, seconds_text
from liver_slurm.observability.history import Happening, told
from liver_slurm.observability.run_view import RunFiles
from liver_slurm.observability.status import RunStatus
from liver_slurm.observability.summary import OVER
from liver_slurm.observability.throughput import Pace, pace
from liver_slurm.rundir.events import Document, RunEnded, from_document
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.validation import ValidationMetrics

INTERVAL = 0.5
"""Seconds between looks at the run's files."""
QUIET = 60.0
"""Seconds after which a line is printed where there is no terminal, though nothing but steps has changed."""


class ProgressView:
    """Shows a run while the ``with`` block lasts. Reads files only, so it costs the run nothing."""

    def __init__(self, run_dir: RunDir, title: str) -> None:
        self._files = RunFiles(run_dir)
        self._title = title
        self._stop = threading.Event()
        self._on_terminal = sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._shown = ""
        self._shown_at = 0.0

    def __enter__(self) -> ProgressView:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            last = self._stop.is_set()  # asked first, so that the final state is still shown
            if not interrupts.interrupted():  # else there is one line more, and it is not ours
                self._show()
            if last or interrupts.interrupted():
                self._draw("")
                return
            self._stop.wait(INTERVAL)

    def _show(self) -> None:
        happened = [one for line in self._files.refresh() if (one := _news(line)) is not None]
        status = self._files.status()
        speed = pace(self._files.recent, status.step, status.steps)
        if not self._on_terminal:
            self._print(status, speed, happened)
            return
        for one in happened:
            self._draw("")
            print(change_line(one), file=sys.stderr)
        self._draw(f"{self._title}: {progress_line(status, speed)}")

    def _draw(self, line: str) -> None:
        """Put a line in place of the one that is shown, cut off at the terminal's edge."""
        if self._on_terminal:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
            sys.stderr.write(f"\r{line[: max(0, columns - 1)]}\x1b[K")
            sys.stderr.flush()

    def _print(self, status: RunStatus, speed: Pace, happened: Sequence[Happening]) -> None:
        """Print what has happened, and how far the run is if that is news or has not been said for a while."""
        for one in happened:
            print(change_line(one), file=sys.stderr, flush=True)
        tenth = status.step * 10 // max(1, status.steps)
        change = f"{status.state} {status.generation} {tenth}"
        if change != self._shown or time.monotonic() - self._shown_at >= QUIET:
            self._shown, self._shown_at = change, time.monotonic()
            print(progress_line(status, speed), file=sys.stderr, flush=True)


def _news(line: Document) -> Happening | None:
    """Tell what has happened, but for the run's end: whoever has waited for that says it, with the reason, at last."""
    event = from_document(line)
    return None if isinstance(event, RunEnded) else told(event)


def progress_line(status: RunStatus, speed: Pace) -> str:
    """Return how far a run is, in one line: the state, the step, the time that is left, loss, layout and standbys."""
    parts = [status.state, f"step {status.step} of {status.steps}"]
    if status.state == "training" and speed.remaining_s is not None and speed.step_seconds:
        parts.append(f"{clock_text(speed.remaining_s)} left at {rate_text(1.0 / speed.step_seconds)}")
    if isinstance(status.loss, float):
        parts.append(f"loss {status.loss:.4f}")
    if status.layout is not None:
        target = f" → {status.target.layout}" if status.target is not None else ""
        parts.append(f"{status.layout}{target}")
    if status.standbys:
        parts.append(counted(len(status.standbys), "standby"))
    if status.reason and status.state not in {"training", *OVER}:
        parts.append(status.reason)
    return printable(", ".join(parts))


def change_line(one: Happening) -> str:
    """Return one turn in a run's life, in one line."""
    when = time.strftime("%H:%M:%S", time.localtime(one.time))
    step = f" at step {one.step}" if one.step is not None else ""
    cost = f", training waited {seconds_text(one.cost_s)}" if one.cost_s is not None else ""
    return printable(f"{when} {one.what}{step}{cost}" + (f": {one.why}" if one.why else ""))


# ---- the lines of `status` -----------------------------------------------------------------------------------------


def progress_rows(status: RunStatus) -> list[tuple[str, str]]:
    """Name and value of each line of ``status``."""
    target, last = status.target, status.reconfiguration
    layout = f"{status.layout} (generation {status.generation})" if status.layout else "-"
    throughput = throughput_parts(status)
    rows = [
        ("state", status.state),
        ("step", f"{status.step} of {status.steps}"),
        ("loss", f"{status.loss:.4f}" if isinstance(status.loss, float) else "-"),
        ("layout", f"{status.layout or '-'} → {target.layout}" if target else layout),
        ("workers", f"{len(status.workers)}, and {counted(len(status.standbys), 'standby')}"),
        *([("throughput", " · ".join(throughput))] if throughput else []),
    ]
    if validation := validation_text(status):
        rows.insert(3, ("validation", validation))
    if last is not None:
        waited = seconds_text(last.exposed_s or last.pause_s)
        text = f"{last.source} → {last.to} at step {last.cutover_step}, training waited {waited}"
        rows.append(("last change", f"{text}, {bytes_text(last.bytes_moved)}"))
    if status.reason:
        rows.append(("reason", status.reason))
    return rows


def validation_text(status: RunStatus) -> str:
    """Tell the last validation, and how far one is that goes on; empty: there is none."""
    parts: list[str] = []
    if status.validation is not UNSET:
        last = convert(status.validation, ValidationMetrics)
        best = "the best" if last.best_step == last.step else f"the best is {last.best_loss:.4f} at {last.best_step}"
        parts.append(f"loss {last.loss:.4f} after step {last.step}, {best}")
    if status.validating is not UNSET:
        done, left = status.validating
        parts.append(f"validating after step {status.step}: {done} samples done, {clock_text(left)} left")
    return "; ".join(parts)


def throughput_parts(status: RunStatus) -> list[str]:
    """Return how fast the run trains, as far as its status tells."""
    if status.tokens_per_s is UNSET:
        return []
    parts = [f"{status.tokens_per_s:,.0f} tokens/s"]
    if status.tflops is not UNSET:
        parts.append(f"{status.tflops:,.1f} TFLOP/s a GPU")
    if status.mfu is not UNSET:
        parts.append(f"MFU {status.mfu:.3f}")
    return parts
