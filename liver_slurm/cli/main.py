"""``liver-slurm``: find the command, import only its module, and turn errors into one line and an exit code."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import keyword
import os
import re
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from liver_slurm.base import interrupts
from liver_slurm.base.errors import ExitCode, LiverError

COMMANDS = {
    "submit": "submit a job file to Slurm",
    "check": "check a job file without a cluster",
    "run": "run a job file as plain processes of this machine, without Slurm",
    "status": "what a run is doing; without a run: all of them",
    "top": "watch a run: world, speed, loss, nodes, notices, changes",
    "list": "all runs",
    "goodput": "where the device-seconds of runs went, and what each change cost",
    "events": "a run's event log",
    "import": "a model of others, to train it further",
    "export": "a run for TensorBoard or Weights & Biases, or its model for Hugging Face's libraries or Megatron-LM",
    "logs": "what the coordinator or a worker printed",
    "report": "what a run did, as an HTML page, a picture or a trace",
    "resize": "ask for another layout or number of workers",
    "checkpoint": "write a checkpoint soon",
    "evaluate": "the validation loss of checkpoints, on this machine",
    "cancel": "end a run and everything that it started",
    "compact": "compress what runs that are over wrote about themselves",
    "chaos": "inject faults into a run of a staging cluster",
    "plan": "what a change of layout would move, with no cluster and no weights",
    "simulate": "what a run would make of a cluster's capacity, in simulated time",
    "advisor": "learn from logged decisions when to take reclaimable nodes",
    "config": "every key of a job file, with its meaning and default",
    "data": "make training data from text",
    "cluster": "a real multi-node Slurm on this machine",
    "bench": "measure on this machine",
    "doctor": "whether this machine and cluster have what a run needs",
    "completion": "a script that makes bash or zsh complete these commands",
}
"""All subcommands, each a module of this package, with their help. A table, so that --help imports none of them."""

EPILOG = """\
examples:
  liver-slurm doctor job.toml
  liver-slurm submit job.toml
  liver-slurm status

`liver-slurm COMMAND --help` says more. Exit codes: 0 done, 1 failed, 2 bad input,
130 and 143 ended by Ctrl-C and by SIGTERM."""


_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})
"""What becomes of writing to an output that is full or closed; of files an error has the name."""


class _Version(argparse.Action):
    """The option ``--version``; the version is looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print the version and exit."""
        from importlib.metadata import version

        print(f"liver-slurm {version('liver-slurm')}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong, as all our errors do; its subparsers are of the same class."""

    def error(self, message: str) -> NoReturn:
        """Exit with one line, without the usage that argparse prints first."""
        self.exit(ExitCode.BAD_INPUT, f"liver-slurm: error: {reworded(message)}; see {self.prog} --help\n")


def reworded(message: str) -> str:
    """Say in words of this product what argparse says in those of Python; other messages stay as they are."""
    if number := re.fullmatch(r"(.*): invalid (\w+) value: (.*)", message):
        return f"{number[1]}: {number[3]} is no {'number' if number[2] == 'float' else 'whole number'}"
    if choice := re.fullmatch(r"argument (.*): invalid choice: '(.*)' \(choose from (.*)\)", message):
        known = [one.strip("' ") for one in choice[3].split(",")]
        near = difflib.get_close_matches(choice[2], known, n=1)
        what = f"argument {choice[1]}: {choice[2]!r} is not allowed"
        if choice[1] in ("COMMAND", "VERB", "KIND"):
            what = f"there is no {choice[1].lower()} {choice[2]!r}"
        return what + (f"; the nearest is {near[0]}" if near else f"; allowed: {', '.join(known)}")
    return message


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - None: closed by whoever has started this process
    try:
        try:
            args = _parse(arguments)
            code: int = args.run(args)
        finally:  # of --help, too, which ends with SystemExit
            sys.stdout.flush()
        return code
    except LiverError as error:
        for line in str(error).splitlines():
            print(f"liver-slurm: error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        return interrupts.say(error)
    except BrokenPipeError:
        # `liver-slurm events JOB | head`: the reader has seen enough.
        _drop_output()
        return 0
    except OSError as error:
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        _drop_output()
        print(f"liver-slurm: error: the output cannot be written: {error.strerror}", file=sys.stderr)
        return ExitCode.FAILED


def _drop_output() -> None:
    """Let what is left in the buffer of the output go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def full_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands, with all modules imported; for completion and tests."""
    parser, subparsers = _bare_parser()
    for name in COMMANDS:
        _module(name).add_parser(subparsers)
    return parser


def _bare_parser() -> tuple[argparse.ArgumentParser, argparse._SubParsersAction[argparse.ArgumentParser]]:
    parser: argparse.ArgumentParser = _Parser(
        prog="liver-slurm",
        description="LLM training on Slurm that keeps going while the nodes under it come and go.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    return parser, parser.add_subparsers(dest="command", required=True, metavar="COMMAND")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser, subparsers = _bare_parser()
    wanted = next((text for text in arguments if not text.startswith("-")), None)
    if wanted in COMMANDS:
        module = _module(wanted)
        module.add_parser(subparsers)
        for subparser in subparsers.choices.values():
            subparser.set_defaults(run=module.run)
    else:
        for name in COMMANDS:
            subparsers.add_parser(name, help=COMMANDS[name])
    return parser.parse_args(arguments)


def _module(name: str | None) -> ModuleType:
    return importlib.import_module(f"liver_slurm.cli.{name}{'_' if keyword.iskeyword(str(name)) else ''}")


if __name__ == "__main__":
    interrupts.run_command(main)
