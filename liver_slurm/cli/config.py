"""``liver-slurm config``: what a job file may hold."""

from __future__ import annotations

import argparse
import sys

from liver_slurm.cli.common import JOB_FILES, Subparsers, add_json, new_parser, print_json

DESCRIPTION = "What job and site files may hold."
REFERENCE = """\
Print every key of a job file with what it is for, its type, allowed values and default, as TOML in which every key is a
comment. configs/reference.toml in the source tree is this text."""
FIELDS = ("name", "text", "allowed", "default", "required")
EXAMPLES = ("config reference", "config reference --json")


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``config`` and its verb to the commands."""
    parser = new_parser(subparsers, "config", DESCRIPTION, EXAMPLES)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_json(
        new_parser(verbs, "reference", REFERENCE, EXAMPLES, files=JOB_FILES),
        'print a JSON list of {"name", "text", "allowed", "default", "required"}',
    )


def run(args: argparse.Namespace) -> int:
    """Print the reference of all keys."""
    from liver_slurm.config.keys import sections
    from liver_slurm.config.reference import reference

    if args.json:
        keys = [key for section in sections(documented=True) for key in section.keys]
        print_json([{name: getattr(key, name) for name in FIELDS} for key in keys])
    else:
        sys.stdout.write(reference())
    return 0
