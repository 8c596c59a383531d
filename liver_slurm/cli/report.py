"""``liver-slurm report``: what a run did, to look at."""

from __future__ import annotations

import argparse
from pathlib import Path

from liver_slurm.cli.common import (
    RUN_FILES,
    Subparsers,
    add_job,
    add_json,
    complete,
    new_parser,
    print_json,
    without_collector,
)

DESCRIPTION = """\
What a run did, to look at: one HTML file that needs no network, with the world's size over time against what was
offered, each change and its cost, ETTR next to that of the same run with checkpoints and restarts, workers over time,
tokens/s, loss, pauses and reasons. From the run's files, also while it runs. Without an option, RUN/report.html."""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``report``."""
    parser = new_parser(
        subparsers,
        "report",
        DESCRIPTION,
        {
            "report 1234": "into its run directory",
            "report 1234 --html run.html --png run.png": "",
            "report 1234 --trace run.json": "for ui.perfetto.dev",
        },
        files=RUN_FILES,
        see_also=("goodput", "events", "status"),
    )
    add_job(parser)
    for name, what in (
        ("html", "the page"),
        ("png", "its first figure, as a picture"),
        ("trace", "all of it as a trace for Perfetto or chrome://tracing"),
    ):
        complete(parser.add_argument(f"--{name}", metavar="FILE", type=Path, help=f"write {what}"), "files")
    add_json(parser, 'print {"html", "png", "trace"}, the files that were written')
    undisturbed = "run of the same job that was never resized: its loss is drawn next to this one's"
    complete(parser.add_argument("--undisturbed", metavar="RUN", help=undisturbed), "runs")


def run(args: argparse.Namespace) -> int:
    """Write the files and say where they are."""
    with without_collector():
        written = _write(args)
    if args.json:
        print_json(written)
    else:
        print("\n".join(written.values()))
    return 0


def _write(args: argparse.Namespace) -> dict[str, str]:
    from liver_slurm.app.runs import find_run
    from liver_slurm.report.write import read_report, write_html, write_png, write_trace

    run_dir = find_run(args.job)
    report = read_report(run_dir, find_run(args.undisturbed) if args.undisturbed is not None else None)
    wanted = [(write_html, args.html), (write_png, args.png), (write_trace, args.trace)]
    if not any(path for _, path in wanted):
        wanted = [(write_html, run_dir.path / "report.html")]
    written = {}
    for name, (write, path) in zip(("html", "png", "trace"), wanted, strict=False):
        if path is not None:
            write(report, path)
            written[name] = str(path)
    return written
