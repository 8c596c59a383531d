"""``liver-slurm cluster``: a real multi-node Slurm on this machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from liver_slurm.cli.common import new_parser
from liver_slurm.devcluster.spec import DEFAULT_DIRECTORY, ClusterSpec, resolve_directory

DESCRIPTION = """\
A real multi-node Slurm on this machine, of the distribution's own daemons, as an ordinary user: to try things out, and
for tests. `up` prints what to do next."""
EXAMPLES_OF = {
    "up": ("cluster up", "cluster up --nodes 5 --grace 30 --preempt-mode requeue"),
    "env": ("cluster env",),
    "status": ("cluster status", "cluster status --json"),
    "down": ("cluster down",),
}
EXAMPLES = tuple(line for lines in EXAMPLES_OF.values() for line in lines)
FILES = {str(DEFAULT_DIRECTORY): "the cluster's settings, logs and state"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``cluster`` and its verbs to the commands."""
    parser = new_parser(subparsers, "cluster", DESCRIPTION, EXAMPLES, files=FILES, see_also=("submit", "doctor"))
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_up(verbs)
    for name, text, verb in (
        ("env", "print the line that points your shell at the cluster", _env),
        ("status", "daemons, nodes and jobs", _status),
        ("down", "cancel the cluster's jobs, end its daemons, remove its files", _down),
    ):
        _add_verb(verbs, name, text, verb)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb that was named: up, env, status or down."""
    verb: Callable[[argparse.Namespace, Path], int] = args.cluster_verb
    return verb(args, resolve_directory(args.dir))


def _add_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    text: str,
    verb: Callable[[argparse.Namespace, Path], int],
) -> argparse.ArgumentParser:
    parser = new_parser(verbs, name, f"{text[0].upper()}{text[1:]}.", EXAMPLES_OF[name], files=FILES)
    parser.add_argument("--dir", metavar="DIR", help=f"the cluster's directory (default: {DEFAULT_DIRECTORY})")
    if name != "env":
        parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(cluster_verb=verb)
    return parser


def _add_up(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add_verb(verbs, "up", "bring a cluster up: partitions live, prod and scavenger", _up)
    parser.add_argument("--nodes", type=int, default=6, metavar="N", help="nodes n1…nN (default: 6)")
    parser.add_argument("--cpus-per-node", type=int, default=4, metavar="C", help="CPUs of a node (default: 4)")
    parser.add_argument("--gpus-per-node", type=int, default=2, metavar="G", help="fake GPUs of a node (default: 2)")
    parser.add_argument(
        "--grace", type=int, default=10, metavar="SECONDS", help="GraceTime of the scavenger partition (default: 10)"
    )
    parser.add_argument(
        "--preempt-mode", choices=("cancel", "requeue"), default="cancel", help="what preemption does (default: cancel)"
    )
    parser.add_argument("--accounting", action="store_true", help="run slurmdbd on a MariaDB of its own")
    parser.add_argument("--port", type=int, metavar="BASE", help="first port of the cluster (default: a free block)")


def _up(args: argparse.Namespace, directory: Path) -> int:
    from liver_slurm.devcluster.lifecycle import up

    cluster = up(
        ClusterSpec(
            directory=directory,
            nodes=args.nodes,
            cpus_per_node=args.cpus_per_node,
            gpus_per_node=args.gpus_per_node,
            grace=args.grace,
            preempt_mode=args.preempt_mode,
            accounting=args.accounting,
            port=args.port,
        )
    )
    if args.json:
        print(json.dumps({"dir": str(directory), "slurm_conf": str(cluster.slurm_conf), "version": cluster.version}))
        return 0
    option = f" --dir {args.dir}" if args.dir else ""
    print(f"Slurm {cluster.version} is up: {cluster.nodes} nodes, partitions live, prod, scavenger")
    print(f'  use it:        eval "$(liver-slurm cluster env{option})"')
    print(f"  take it down:  liver-slurm cluster down{option}")
    return 0


def _env(args: argparse.Namespace, directory: Path) -> int:
    from liver_slurm.devcluster.lifecycle import load

    print(f"export SLURM_CONF={load(directory).slurm_conf}")
    return 0


def _status(args: argparse.Namespace, directory: Path) -> int:
    from liver_slurm.devcluster.lifecycle import status

    document = status(directory)
    if args.json:
        print(json.dumps(document))
    else:
        _print_status(document)
    return 0 if document["running"] else 1


def _print_status(document: dict[str, object]) -> None:
    from tabulate import tabulate

    print(f"{document['dir']}: Slurm {document['version']}, {'up' if document['running'] else 'down'}")
    if document["running"]:
        nodes = document["nodes"]
        assert isinstance(nodes, list)
        print(f"jobs: {document['jobs']}")
        print(tabulate([list(node.values()) for node in nodes], headers=["node", "state", "cpus A/I/O/T", "gres"]))


def _down(args: argparse.Namespace, directory: Path) -> int:
    from liver_slurm.devcluster.lifecycle import down

    down(directory)
    if args.json:
        print(json.dumps({"dir": str(directory), "running": False}))
    else:
        print(f"the cluster in {directory} is down")
    return 0
