"""``liver-slurm top``: one run, watched."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from liver_slurm.base import interrupts
from liver_slurm.base.errors import BadInput
from liver_slurm.cli.common import RUN_FILES, Subparsers, complete, moment, new_parser, print_json, print_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from liver_slurm.app.watch import Watch
    from liver_slurm.observability.top_view import TopView
    from liver_slurm.rundir.paths import RunDir

DESCRIPTION = """\
Watch a run: the world and its layout, how far it is and how fast, the loss, workers by node and partition, standbys,
notices with the time that is left, and the last changes with their reasons. Without a run: the one that goes on, or
those there are to choose from.

Keys: q or Ctrl-C ends the view and nothing else. Where there is no terminal, one view is printed; on a dumb terminal
one every ten intervals. It ends when the run does, and leaves its last view on the screen."""
DUMB = 10
"""Intervals between two views on a terminal that cannot replace what it shows."""
BLINK = 0.2
"""Seconds in which a new size of the terminal is noticed."""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``top`` to the commands."""
    parser = new_parser(
        subparsers,
        "top",
        DESCRIPTION,
        {"top": "the run that goes on", "top 1234": "", "top 1234 --once": "one view, for a log or a mail"},
        files=RUN_FILES,
        see_also=("status", "events", "list"),
    )
    named = parser.add_argument("job", metavar="RUN", nargs="?", help="Slurm job id, run name, or run directory")
    complete(named, "runs")
    parser.add_argument("--once", action="store_true", help="print one view and end")
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="time between two views (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="print one view as a JSON document and nothing else")


def run(args: argparse.Namespace) -> int:
    """Show the run until it ends or the user does."""
    if not 0.1 <= args.interval <= 3600:
        raise BadInput(f"--interval: {args.interval:g} is not allowed; allowed: 0.1 to 3600")
    asks = not args.json and not args.once and sys.stdin.isatty() and sys.stdout.isatty()
    run_dir = _named(args.job) if args.job is not None else _only_one(asks)
    if run_dir is None:
        return 0
    from liver_slurm.app.watch import Watch

    watch = Watch(run_dir)
    if args.json:
        from msgspec import to_builtins

        print_json(to_builtins(_one(watch)))
        return 0
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    with interrupts.orderly():
        if args.once or not console.is_terminal:
            _print(console, _one(watch))
        elif console.is_dumb_terminal:
            _print_on(console, watch, args.interval * DUMB)
        else:
            _on_screen(console, watch, args.interval)
    return 0


# ---- which run -----------------------------------------------------------------------------------------------------


def _named(text: str) -> RunDir:
    from liver_slurm.app.runs import find_run

    return find_run(text)


def _only_one(asks: bool) -> RunDir | None:
    """Choose the run that goes on; of several, the user does; None: the user wants none.

    Raises:
        BadInput: there is none, or there are several and nobody can be asked.
    """
    from pathlib import Path

    from liver_slurm.cli.list import overview
    from liver_slurm.observability.summary import LOST, OVER, PREPARED
    from liver_slurm.rundir.paths import RunDir

    runs = overview()
    going = [one for one in runs if one["state"] not in OVER | {LOST, PREPARED}] or runs
    if not going:
        raise BadInput("there are no runs; start one: liver-slurm submit configs/gpt-tiny.toml")
    if len(going) == 1:
        return RunDir(Path(going[0]["run_dir"]))
    if not asks:
        names = ", ".join(one["job_id"] or Path(one["run_dir"]).name for one in going[:10])
        raise BadInput(f"there are {len(going)} runs; name one: {names}{', …' if len(going) > 10 else ''}")
    rows = [
        (
            number,
            one["job_id"] or None,
            one["name"],
            one["state"],
            f"{one['step']}/{one['steps']}",
            moment(one["created"]),
        )
        for number, one in enumerate(going, 1)
    ]
    print_table(rows, ("", "job", "name", "state", "step", "created"))
    number = _choice(len(going))
    return RunDir(Path(going[number - 1]["run_dir"])) if number is not None else None


def _choice(count: int) -> int | None:
    """Ask for a number from 1 to ``count``; None: the user wants none."""
    while True:
        try:
            text = input(f"Which one, 1 to {count} (Enter: 1, q: none)? ").strip()
        except EOFError:
            return None
        if text in ("q", "Q"):
            return None
        if not text:
            return 1
        if text.isdecimal() and 1 <= int(text) <= count:
            return int(text)


# ---- ways to show it -----------------------------------------------------------------------------------------------


def _one(watch: Watch) -> TopView:
    """Take one view; the coordinator is asked, where there is one, and waited for."""
    view = watch.view()
    if view.over:
        return view
    watch.ask()
    return watch.view()


def _print(console: Console, view: TopView) -> None:
    from liver_slurm.cli.frame import frame, glyphs_for

    for line in frame(view, console.width, 1000, glyphs_for(console.encoding)):
        console.print(line)


def _print_on(console: Console, watch: Watch, interval: float) -> None:
    """Print views one below the other until the run ends."""
    view = _one(watch)
    _print(console, view)
    while not view.over:
        time.sleep(interval)
        view = _one(watch)
        console.print()
        _print(console, view)


def _on_screen(console: Console, watch: Watch, interval: float) -> None:
    """Show views in place of one another until the run ends, whose last view stays on the screen, or the user does."""
    from rich.live import Live

    with watch, _keys() as keyboard, Live(console=console, screen=True, auto_refresh=False) as screen:
        while True:
            view = watch.view()
            if view.over or _leaves(screen, view, keyboard, interval):
                break
    if view.over:
        _print(console, view)


def _leaves(screen: Live, view: TopView, keyboard: int | None, interval: float) -> bool:
    """Show a view for an interval, once for each size that the terminal takes; True: the user wants to leave."""
    size = None
    until = time.monotonic() + interval
    while (left := until - time.monotonic()) > 0:
        if screen.console.size != size:
            size = screen.console.size
            _draw(screen, view, size.width, size.height)
        if _pressed(keyboard, min(left, BLINK)) in ("q", "Q", "\x03", "\x1b"):
            return True
    return False


def _draw(screen: Live, view: TopView, width: int, height: int) -> None:
    from rich.console import Group

    from liver_slurm.cli.frame import frame, glyphs_for

    screen.update(Group(*frame(view, width, height, glyphs_for(screen.console.encoding))), refresh=True)


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """Take keys as they are pressed; yields the keyboard's descriptor, None: there is no keyboard."""
    if not sys.stdin.isatty():
        yield None
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _pressed(keyboard: int | None, seconds: float) -> str:
    """Wait for a key, for so many seconds at most; empty: there was none."""
    if keyboard is None:
        time.sleep(seconds)
        return ""
    ready, _, _ = select.select([keyboard], [], [], seconds)
    if not ready:
        return ""
    # What has no more to give is a terminal that was closed.
    return os.read(keyboard, 64)[:1].decode(errors="replace") or "q"
