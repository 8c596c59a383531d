"""Parts that the commands share: options, and the printing of documents and tables."""

from __future__ import annotations

import argparse
import gc
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from liver_slurm.base.errors import BadInput

Subparsers = argparse._SubParsersAction  # argparse has no public name for it


ENDED = "130 and 143 ended by Ctrl-C and by SIGTERM"
EXIT_CODES = f"0 done, 1 failed, 2 bad input, {ENDED}"
RUN_FILES = {"runs/NAME-*/": "run directories, in job.run_root"}
JOB_FILES = {
    "~/.config/liver-slurm/site.toml": "defaults of all jobs; LIVER_SITE names another",
    "configs/reference.toml": "every key of a job file",
}


def new_parser(
    subparsers: Subparsers[argparse.ArgumentParser],
    name: str,
    description: str,
    examples: Sequence[str] | Mapping[str, str] = (),
    *,
    exit_codes: str = EXIT_CODES,
    files: Mapping[str, str] | None = None,
    see_also: Sequence[str] = (),
    more: str = "",
) -> argparse.ArgumentParser:
    """Make a command's parser; its help has the parts of a manual page and keeps the line breaks of the texts.

    Args:
        examples: command lines without ``liver-slurm``; with a mapping, each with a remark.
        files: path → what it is.
        see_also: other subcommands.
        more: text before the examples.
    """
    remarks = examples if isinstance(examples, Mapping) else dict.fromkeys(examples, "")
    parts = [
        more,
        "examples:\n" + _pairs({f"liver-slurm {line}": remark for line, remark in remarks.items()}) if remarks else "",
        f"exit codes:\n  {exit_codes}",
        "files:\n" + _pairs(files) if files else "",
        "see also:\n  " + ", ".join(f"liver-slurm {other}" for other in see_also) if see_also else "",
    ]
    return subparsers.add_parser(
        name,
        help=first_sentence(description).replace("%", "%%"),
        description=description,
        epilog="\n\n".join(part for part in parts if part),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def first_sentence(text: str) -> str:
    """Return a text's first sentence in one line, without its full stop; a dot inside a word ends none."""
    return re.split(r"\.(?=\s|$)", " ".join(text.split()), maxsplit=1)[0]


def _pairs(pairs: Mapping[str, str]) -> str:
    """Lay pairs out in two columns; a remark goes on the next line where its first column is too wide."""
    width = max((len(left) for left in pairs if len(left) <= 60), default=0)
    lines = []
    for left, right in pairs.items():
        if right and len(left) > width:
            lines += [f"  {left}", f"  {'':{width}}  {right}"]
        else:
            lines.append(f"  {left:{width}}  {right}".rstrip())
    return "\n".join(lines)


def add_job(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """Add the argument that names a run."""
    complete(
        parser.add_argument(
            "job", metavar="JOB", nargs="?" if optional else None, help="Slurm job id, run name, or run directory"
        ),
        "runs",
    )


def complete(argument: argparse.Action, words: str) -> None:
    """Say what a shell may complete an argument with: see :mod:`liver_slurm.cli.completion`, which reads this."""
    argument.liver_words = words  # type: ignore[attr-defined]


def add_json(parser: argparse.ArgumentParser, help_text: str = "print one JSON document and nothing else") -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help=help_text)


def add_job_file(parser: argparse.ArgumentParser, *, resumable: bool = False, default: str = "") -> None:
    """Add the job file and its overrides.

    Args:
        resumable: and --resume, whose run's own job is the default.
        default: what there is where no job file is named; empty: one must be.
    """
    default = "with --resume: that run's own job" if resumable else default
    complete(
        parser.add_argument(
            "job_file",
            metavar="JOB.toml",
            nargs="?" if default else None,
            help="job file; configs/gpt-tiny.toml is a small one" + (f"; default {default}" if default else ""),
        ),
        "files",
    )
    if resumable:
        resume = "continue from the newest checkpoint of this run, in a new run directory"
        complete(parser.add_argument("--resume", metavar="RUN", help=resume), "runs")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="change a key of the job file, as often as needed: --set train.steps=50 --set live.component.0.nodes=4",
    )


def job_file(args: argparse.Namespace) -> str | Path:
    """Return the job file that was named, or that of the run to resume.

    Raises:
        BadInput: neither was named, or there is no such run.
    """
    if args.job_file is not None:
        return str(args.job_file)
    if args.resume is None:
        raise BadInput("JOB.toml is missing: name a job file, such as configs/gpt-tiny.toml, or a run with --resume")
    from liver_slurm.rundir.registry import find_run

    return find_run(args.resume).job_file


def print_json(document: object) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")


def print_table(rows: Iterable[Sequence[object]], headers: Sequence[str]) -> None:
    """Print a table on stdout; None is shown as a dash."""
    from tabulate import tabulate

    cells = [["-" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    print(tabulate(cells, headers=headers, tablefmt="simple", disable_numparse=True))


def printable(text: str) -> str:
    """Return a line for a terminal: what others wrote into it, such as a reason, must not break or steer it."""
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()


def moment(seconds: float) -> str:
    """Write seconds since the epoch as a local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def seconds_text(seconds: float | None) -> str:
    """Write a duration with its unit."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def clock_text(seconds: float) -> str:
    """Write a duration as a clock shows it, such as 0:07, 12:30, 1:02:03 and 3 d 04:05."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def rate_text(steps_per_s: float) -> str:
    """Write a step rate as the unit that suits it."""
    return f"{steps_per_s:.2f} steps/s" if steps_per_s >= 1.0 else f"{1.0 / steps_per_s:.2f} s a step"


def counted(count: int, noun: str) -> str:
    """Write a number and a noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def bytes_text(size: int | None) -> str:
    """Write a number of bytes with a binary unit."""
    if size is None:
        return "-"
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def reconfiguration_rows(rows: Iterable[Mapping[str, Any]]) -> list[list[object]]:
    """Turn a table of reconfigurations into rows for :data:`RECONFIGURATION_HEADERS`."""
    return [
        [
            row["generation"],
            row["from"],
            row["to"],
            row["cutover_step"],
            seconds_text(row["exposed_s"]),
            seconds_text(row["prepare_s"]),
            seconds_text(row["stream_s"]),
            bytes_text(row["bytes"]),
            row["mode"],
            row["reason"],
        ]
        for row in rows
    ]


RECONFIGURATION_HEADERS = (
    "generation", "from", "to", "step", "waited", "prepare", "stream", "bytes", "mode", "reason",
)  # fmt: skip


@contextmanager
def without_collector() -> Iterator[None]:
    """Leave the garbage collector off: what is read of a long run lives until the end, and is walked in vain."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def new_folder(option: str, text: str) -> Path:
    """Return the folder that an option names, which must not be there yet.

    Raises:
        BadInput: it is there, or cannot be.
    """
    path = Path(text).absolute()
    if not path.name or path.exists() or path.is_symlink():
        raise BadInput(f"{option} {text}: it is there already; allowed: a folder that is not")
    return path


def not_negative(text: str) -> int:
    """Read a number that counts from 0, for argparse.

    Raises:
        ArgumentTypeError: it is below 0.
    """
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


def positive(text: str) -> int:
    """Read a number of things, for argparse.

    Raises:
        ArgumentTypeError: it is not 1 or more.
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value
