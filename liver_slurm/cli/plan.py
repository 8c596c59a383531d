"""``liver-slurm plan``: what a reconfiguration would move; needs no cluster, no GPU and no weights."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from liver_slurm.base.errors import BadInput
from liver_slurm.cli.common import JOB_FILES, Subparsers, add_job_file, add_json, complete, new_parser
from liver_slurm.parallel.layout import Layout

if TYPE_CHECKING:
    from liver_slurm.config.schema import JobConfig
    from liver_slurm.reshard.plan import TransferPlan
    from liver_slurm.reshard.shard_spec import WorldSpec


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``plan`` to the commands."""
    parser = new_parser(
        subparsers,
        "plan",
        "What a change of layout would move; needs no cluster and no weights.",
        (
            "plan configs/gpt-7b.toml --from tp4pp1dp8 --to tp4pp1dp16",
            "plan configs/gpt-tiny.toml --from tp2pp1dp2 --to tp1pp2dp3 --json",
        ),
        files=JOB_FILES,
        see_also=("resize",),
    )
    add_job_file(parser)
    now = "layout now, such as tp2pp1dp2"
    complete(parser.add_argument("--from", dest="source", required=True, metavar="LAYOUT", help=now), "layouts")
    then = "layout to go to"
    complete(parser.add_argument("--to", dest="target", required=True, metavar="LAYOUT", help=then), "layouts")
    parser.add_argument(
        "--keep",
        metavar="RANKS",
        help="for each target rank the source rank of the same worker, - for one that joins: 0,1,-,2;"
        " best: the same workers as by default, each at the rank where it keeps most"
        " (default: worker i of the source is worker i of the target)",
    )
    add_json(parser, "print the whole plan as one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Plan the transfer and print the plan or a summary of it."""
    from liver_slurm.config import own_loop
    from liver_slurm.config.load import load_job

    config = load_job(args.job_file, args.overrides, files=False)
    own_loop.refuse(config, "plan")
    source, target = _layout(config, "--from", args.source), _layout(config, "--to", args.target)
    keep = _keep(None if args.keep == "best" else args.keep, source.size, target.size)
    worlds = _world(config, source), _world(config, target)
    if args.keep == "best":
        keep = _best(*worlds, keep)

    from liver_slurm.config.memory import rank_memory
    from liver_slurm.reshard.plan import plan_transfer

    start = time.perf_counter()
    plan = plan_transfer(*worlds, keep)
    seconds = time.perf_counter() - start
    memory = [rank_memory(config, layout) for layout in (source, target)]
    if args.json:
        needed = {key: one and one.total for key, one in zip(("from", "to"), memory, strict=True)}
        json.dump(document(plan) | {"memory_of_a_rank": needed}, sys.stdout)
        print()
    else:
        print(_summary(plan, seconds))
        for layout, one in zip((source, target), memory, strict=True):
            if one is not None:
                print(f"a rank of {layout} needs about {one}")
    return 0


def document(plan: TransferPlan) -> dict[str, Any]:
    """Make the document that ``plan --json`` prints."""
    from liver_slurm.reshard.lower_bound import remote_minimum

    return {
        "from": str(plan.source.layout),
        "to": str(plan.target.layout),
        "tensors": {name: {"shape": info.shape, "dtype": info.dtype} for name, info in plan.tensors.items()},
        "source": _all_pieces(plan.source),
        "target": _all_pieces(plan.target),
        "moves": [move._asdict() for move in plan.moves()],
        "bytes_total": plan.bytes_total,
        "bytes_remote": plan.bytes_remote,
        "bytes_remote_minimum": remote_minimum(plan.source, plan.target, plan.keep),
        "max_send_over_mean": plan.max_send_over_mean,
    }


def _all_pieces(world: WorldSpec) -> dict[str, list[dict[str, Any]]]:
    from liver_slurm.reshard.shard_spec import pieces

    return {str(rank): [piece._asdict() for piece in pieces(world, rank)] for rank in range(world.layout.size)}


def _summary(plan: TransferPlan, seconds: float) -> str:
    from tabulate import tabulate

    joining = plan.keep.count(None)
    leaving = plan.source.layout.size - (len(plan.keep) - joining)
    senders = plan.send_bytes[plan.senders]
    hottest, mean = (int(senders.max()), float(senders.mean())) if len(senders) else (0, 0.0)
    rows = [
        ("workers", f"{plan.source.layout.size} → {plan.target.layout.size}: {joining} join, {leaving} leave"),
        ("state of the target world", _bytes(plan.bytes_total)),
        ("copied inside workers", _bytes(plan.bytes_total - plan.bytes_remote)),
        ("sent between workers", _bytes(plan.bytes_remote)),
        ("hottest owner", f"{_bytes(hottest)}; {_bytes(mean)} the mean of the {len(senders)} ranks that could serve"),
        ("hottest over mean, where replicas leave a choice", f"{plan.max_send_over_mean:.3f}"),
        ("planned in", f"{seconds:.2f} s"),
    ]
    return f"{plan.source.layout} → {plan.target.layout}\n" + tabulate(rows, tablefmt="plain")


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} TiB"


def _layout(config: JobConfig, option: str, text: str) -> Layout:
    from liver_slurm.config.layouts import impossible

    try:
        layout = Layout.parse(text)
    except ValueError as error:
        raise BadInput(f"{option}: {error}") from None
    reason = impossible(layout, config.model, config.data, config.train)
    if reason is not None:
        raise BadInput(f"{option} {layout}: {reason}")
    return layout


def _keep(text: str | None, source_size: int, target_size: int) -> list[int | None]:
    from liver_slurm.reshard.plan import default_keep, keep_problem

    if text is None:
        return default_keep(source_size, target_size)
    try:
        keep = [None if part.strip() == "-" else int(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(
            f"--keep {text}: write source ranks and - separated by commas, such as 0,1,-,2, or best"
        ) from None
    problem = keep_problem(keep, source_size, target_size)
    if problem is not None:
        raise BadInput(f"--keep {text}: {problem}")
    return keep


def _best(source: WorldSpec, target: WorldSpec, keep: list[int | None]) -> list[int | None]:
    from liver_slurm.reshard.rank_mapping import Depth, number

    anywhere = [""] * len(keep)
    order, _ = number(source.layout, target.layout, keep, anywhere, Depth.between(source, target))
    return [keep[member] for member in order]


def _world(config: JobConfig, layout: Layout) -> WorldSpec:
    from liver_slurm.engine.megatron.spec import world_spec

    try:
        return world_spec(config, layout)
    except ValueError as error:
        raise BadInput(f"{layout}: the model cannot be built in this layout: {error}") from error
