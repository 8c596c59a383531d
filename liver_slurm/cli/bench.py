"""``liver-slurm bench``: measure on this machine."""

from __future__ import annotations

import argparse
import importlib
from typing import cast

from liver_slurm.bench import BENCHES, Bench
from liver_slurm.cli.common import Subparsers, add_json, new_parser, print_json


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``bench`` to the commands."""
    width = max(map(len, BENCHES))
    names = "\n".join(f"  {name:<{width}}  {text}" for name, text in BENCHES.items())
    parser = new_parser(
        subparsers,
        "bench",
        "Measure on this machine: baseline and ours in the same run, medians of several.",
        ("bench transfer --quick", "bench reconfigure --json > figures.json"),
        more=f"benchmarks:\n{names}",
    )
    parser.add_argument("name", metavar="NAME", choices=tuple(BENCHES), help=", ".join(BENCHES))
    parser.add_argument("--quick", action="store_true", help="the smallest case of each, in under a minute")
    add_json(parser, "print every figure as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark that was named and print its figures."""
    bench = cast(Bench, importlib.import_module(f"liver_slurm.bench.{args.name}"))
    document = bench.run(args.quick)
    if args.json:
        print_json(document)
    else:
        print(bench.table(document))
    return 0
