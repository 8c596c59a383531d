"""``liver-slurm completion``: scripts for shells, which shtab makes from the commands' parsers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from liver_slurm.cli.common import Subparsers, new_parser

SHELLS = ("bash", "zsh")
DESCRIPTION = """\
Print a script that makes a shell complete subcommands, options, job files, runs (ids, directories) and layouts. The
script asks `liver-slurm completion runs` for the runs that there are, and `completion layouts` for the layouts of the
job file or the run on the command line."""
EXAMPLES = {
    'eval "$(liver-slurm completion bash)"': "for this shell; in ~/.bashrc: for all",
    'liver-slurm completion zsh > "${fpath[1]}/_liver-slurm"': "for zsh, once",
}


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``completion`` to the commands."""
    listed = "\n".join(f"  {line}\n      {remark}" for line, remark in EXAMPLES.items())
    parser = new_parser(subparsers, "completion", DESCRIPTION, more=f"examples:\n{listed}")
    choices = (*SHELLS, "runs", "layouts")
    parser.add_argument("what", metavar="WHAT", choices=choices, help=f"one of {', '.join(choices)}")
    words = parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="WORDS", help="with layouts: the command line so far"
    )
    words.required = False  # argparse takes an empty rest for one that is missing


def run(args: argparse.Namespace) -> int:
    """Print the script for a shell, or the words that such a script asks for."""
    if args.what in SHELLS:
        sys.stdout.write(script(args.what))
    else:
        words = runs() if args.what == "runs" else layouts(args.words)
        sys.stdout.writelines(f"{word}\n" for word in words)
    return 0


def script(shell: str) -> str:
    """Make the script for ``bash`` or ``zsh``."""
    import shtab

    from liver_slurm.cli.main import full_parser

    ways = {
        "runs": shtab.cmd("liver-slurm completion runs 2>/dev/null"),
        # bash and zsh have the command line so far in different arrays; the other one is empty
        "layouts": shtab.cmd('liver-slurm completion layouts "${COMP_WORDS[@]}" "${words[@]}" 2>/dev/null'),
        "files": shtab.FILE,
    }
    parser = full_parser()
    for action in _actions(parser):
        if (words := getattr(action, "liver_words", None)) is not None:
            action.complete = ways[words]  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell=shell)) + "\n"


def runs() -> Iterator[str]:
    """List the job ids and run directories of all runs, newest first."""
    from liver_slurm.rundir.registry import list_runs

    for run_dir, info in list_runs():
        yield from (word for word in (info.job_id, str(run_dir.path)) if word)


def layouts(words: Sequence[str]) -> Iterator[str]:
    """List the allowed layouts of the first job file or run among ``words``; none if they are ``auto``."""
    from liver_slurm.base.errors import BadInput
    from liver_slurm.config.load import load_job
    from liver_slurm.rundir.registry import find_run

    for word in words:
        try:
            file = word if word.endswith(".toml") and Path(word).is_file() else find_run(word).job_file
            config = load_job(file, files=False)
        except BadInput:
            continue  # neither, or not a good one: the command itself will say so
        if config.elastic.layouts != "auto":
            yield from config.elastic.layouts
        return


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
