"""How long planning takes, for models and worlds that no machine at hand could hold. Needs no cluster and no weights.

    python benchmarks/plan.py [--json] [NAME…]

For each case: seconds to find out what every rank holds (shards on the meta device, both worlds), to plan, to make one
worker's moves, and to make all moves; and what the plan moves.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tabulate import tabulate

from liver_slurm.config.schema import JobConfig, ModelSection, TrainSection
from liver_slurm.megatron.spec import world_spec
from liver_slurm.state.layout import Layout
from liver_slurm.state.plan import plan_transfer


class Case(NamedTuple):
    """A model and a change of layout."""

    model: ModelSection
    source: str
    target: str
    list_all: bool = True


def _llama(layers: int, hidden: int, ffn: int, heads: int) -> ModelSection:
    return ModelSection(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        num_query_groups=8,
        vocab_size=128256,
        share_embeddings_and_output_weights=False,
    )


_8B, _70B = _llama(32, 4096, 14336, 32), _llama(80, 8192, 28672, 64)
CASES = {
    "8b-64-48": Case(_8B, "tp4pp2dp8", "tp4pp2dp6"),
    "8b-64-48-reshape": Case(_8B, "tp4pp2dp8", "tp2pp4dp6"),
    "70b-512-448": Case(_70B, "tp8pp8dp8", "tp8pp8dp7"),
    "70b-512-448-reshape": Case(_70B, "tp8pp8dp8", "tp4pp16dp7"),
    "70b-16384-14336": Case(_70B, "tp8pp16dp128", "tp8pp16dp112", list_all=False),
}


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def measure(case: Case) -> dict[str, Any]:
    """Run one case; times in seconds."""
    layouts = Layout.parse(case.source), Layout.parse(case.target)
    batch = 4 * max(layout.dp for layout in layouts)
    config = JobConfig(
        model=case.model, train=TrainSection(steps=1, seq_length=4096, global_batch_size=batch, precision="bf16")
    )
    worlds, spec_s = _timed(lambda: [world_spec(config, layout) for layout in layouts])
    plan, plan_s = _timed(lambda: plan_transfer(*worlds))
    rank = layouts[1].size // 2
    _, rank_s = _timed(lambda: plan.moves_for(plan.keep[rank], rank))
    moves, all_s = _timed(lambda: sum(1 for _ in plan.moves())) if case.list_all else (None, None)
    return {
        "from": case.source,
        "to": case.target,
        "spec_s": spec_s,
        "plan_s": plan_s,
        "one_worker_s": rank_s,
        "all_moves_s": all_s,
        "moves": moves,
        "bytes_total": plan.bytes_total,
        "bytes_remote": plan.bytes_remote,
        "max_send_over_mean": plan.max_send_over_mean,
    }


def main() -> None:
    """Measure the cases that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"cases: {', '.join(CASES)}")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in CASES]:
        parser.error(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
    # What importing megatron and building a first model cost is no part of any case.
    world_spec(JobConfig(model=_8B, train=TrainSection(steps=1, seq_length=8, global_batch_size=1)), Layout(1, 1, 1))
    results = {name: measure(CASES[name]) for name in args.names or CASES}
    if args.json:
        print(json.dumps(results, indent=2))
        return
    print(tabulate([{"case": name, **result} for name, result in results.items()], headers="keys", floatfmt=".3g"))


if __name__ == "__main__":
    main()
