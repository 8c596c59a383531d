"""The progress of a run while one waits for it: a live view on a terminal, a line a change elsewhere; on stderr."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from msgspec import UNSET

from liver_slurm.base import interrupts
from liver_slurm.cli.common import bytes_text, seconds_text
from liver_slurm.observability.run_view import RunFiles
from liver_slurm.observability.status import RunStatus
from liver_slurm.rundir.paths import RunDir

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

INTERVAL = 0.5
"""Seconds between looks at the run's files."""


class ProgressView:
    """Shows a run while the ``with`` block lasts. Reads files only, so it costs the run nothing."""

    def __init__(self, run_dir: RunDir, title: str) -> None:
        self._files = RunFiles(run_dir)
        self._title = title
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._live: Live | None = None
        self._thread: threading.Thread | None = None
        self._shown = self._told = ""

    def __enter__(self) -> ProgressView:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            self._live = Live(get_renderable=self._panel, console=console, refresh_per_second=1 / INTERVAL)
            self._live.start()
        else:
            self._thread = threading.Thread(target=self._print_changes, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._live is not None:
            self._live.stop()
        if self._thread is not None:
            self._thread.join()

    def status(self) -> RunStatus:
        """The run's status as of now, from its files."""
        with self._lock:
            self._files.refresh()
            return self._files.status()

    def _print_changes(self) -> None:
        while True:
            last = self._stop.is_set()  # asked first, so that the final state is still printed
            if interrupts.interrupted():
                return  # there is one line more, and it is not ours
            self._print_if_changed(self.status())
            if last:
                return
            self._stop.wait(INTERVAL)

    def _print_if_changed(self, status: RunStatus) -> None:
        # A new line for each tenth of the way, and for whatever changes besides steps.
        tenth = status.step * 10 // max(1, status.steps)
        target = status.target.layout if status.target else ""
        change = f"{status.state} {status.generation} {target} {status.reason} {tenth}"
        if change != self._shown:
            told, self._shown, self._told = self._told, change, f"{status.generation} {status.reason}"
            print(progress_line(status, brief=told == self._told), file=sys.stderr, flush=True)

    def _panel(self) -> RenderableType:
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        status = self.status()
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold")
        grid.add_column()
        for name, value in progress_rows(status):
            grid.add_row(name, value)
        bar = ProgressBar(total=max(1, status.steps), completed=status.step, width=60)
        outer = Table.grid()
        outer.add_row(grid)
        outer.add_row(bar)
        return Panel(outer, title=self._title, title_align="left", expand=False)


def progress_rows(status: RunStatus) -> list[tuple[str, str]]:
    """Name and value of each line of the live view."""
    target, last = status.target, status.reconfiguration
    layout = status.layout or "-"
    rows = [
        ("state", status.state),
        ("step", f"{status.step} of {status.steps}"),
        ("loss", f"{status.loss:.4f}" if isinstance(status.loss, float) else "-"),
        ("layout", f"{layout} → {target.layout}" if target else f"{layout} (generation {status.generation})"),
        ("workers", f"{len(status.workers)}, and {len(status.standbys)} standbys"),
        *_throughput(status),
    ]
    if last is not None:
        text = f"{last.source} → {last.to} at step {last.cutover_step}, pause {seconds_text(last.pause_s)}"
        rows.append(("last change", f"{text}, {bytes_text(last.bytes_moved)}"))
    if status.reason:
        rows.append(("reason", status.reason))
    return rows


def _throughput(status: RunStatus) -> list[tuple[str, str]]:
    if status.tokens_per_s is UNSET:
        return []
    parts = [f"{status.tokens_per_s:,.0f} tokens/s"]
    if status.tflops is not UNSET:
        parts.append(f"{status.tflops:,.1f} TFLOP/s a GPU")
    if status.mfu is not UNSET:
        parts.append(f"MFU {status.mfu:.3f}")
    return [("throughput", " · ".join(parts))]


def progress_line(status: RunStatus, brief: bool = False) -> str:
    """The same in one line; ``brief``: without the last change and the reason."""
    rows = [row for row in progress_rows(status) if not brief or row[0] not in ("last change", "reason")]
    return ", ".join(value if name == "state" else f"{name} {value}" for name, value in rows)
