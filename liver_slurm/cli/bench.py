"""``liver-slurm bench``: measure on this machine."""

from __future__ import annotations

import argparse
import importlib
from typing import Any, cast

from liver_slurm.base.errors import BadInput, ExitCode
from liver_slurm.bench import BENCHES, SIZED, Bench
from liver_slurm.cli.common import Subparsers, add_json, new_parser, positive, print_json


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
    sizes = tuple(dict.fromkeys(size for choice in SIZED.values() for size in choice))
    parser.add_argument(
        "--size",
        action="append",
        default=[],
        choices=sizes,
        help=f"only this model, may be given several times (bench {', '.join(SIZED)}): {', '.join(sizes)}; default: "
        "those that suit this machine",
        metavar="NAME",
    )
    parser.add_argument(
        "--covariates",
        default="",
        metavar="FILE",
        help="a file of real covariates, in the manner of IHDP, to draw outcomes on, too (bench advisor)",
    )
    parser.add_argument(
        "--trace",
        action="append",
        default=[],
        metavar="FILE",
        help="when which nodes are to be had, to simulate on, too, as simulate reads it; several (bench policies)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of all that is drawn at random (bench policies; default: 0)"
    )
    parser.add_argument(
        "--seeds",
        type=positive,
        metavar="N",
        help="simulate with N seeds from --seed on: means, and intervals that have them with 95 %% (bench policies)",
    )
    parser.add_argument(
        "--jobs", type=positive, metavar="N", help="in N processes at a time (bench policies; default: 1)"
    )
    add_json(parser, "print every figure as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark that was named and print its figures; 1: a case failed, and says why."""
    bench = cast(Bench, importlib.import_module(f"liver_slurm.bench.{args.name}"))
    if args.size and args.name not in SIZED:
        raise BadInput(f"bench {args.name}: --size is not allowed; it is for bench {', '.join(SIZED)}")
    if args.covariates and args.name != "advisor":
        raise BadInput(f"bench {args.name}: --covariates is not allowed; it is for bench advisor")
    of_policies = {"traces": tuple(args.trace), "seed": args.seed, "seeds": args.seeds, "jobs": args.jobs}
    given = {name: value for name, value in of_policies.items() if value not in ((), None)}
    if given and args.name != "policies":
        option = "--trace" if "traces" in given else f"--{next(iter(given))}"
        raise BadInput(f"bench {args.name}: {option} is not allowed; it is for bench policies")
    options: dict[str, Any] = {"sizes": tuple(args.size)} if args.size else {}
    if args.covariates:
        options["covariates"] = args.covariates
    document = bench.run(args.quick, **options, **given)
    if args.json:
        print_json(document)
    else:
        print(bench.table(document))
    return ExitCode.FAILED if any(case.get("failed") for case in document["cases"]) else ExitCode.DONE
