"""``bench plan``: planning for models and worlds that no machine at hand could hold. Needs no cluster and no weights.

For each case, as in a run: the coordinator numbers the members of the target world (``coordinator_s``); each rank reads
what all ranks of both worlds hold, plans, and makes its own moves (``rank_s``, of the slowest of several ranks;
``rank_cpu_s`` is its CPU time but for other ranks' moves, which says more where others use the machine too). A rank
runs in a process of its own, without torch, whose peak resident memory is ``peak_mb``, in MiB, interpreter and numpy
included. Workers leave by whole nodes of eight, drawn at random from a fixed seed.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec
import numpy as np

from liver_slurm.base import interrupts
from liver_slurm.base.errors import LiverError
from liver_slurm.bench.plan_rank import Orders, Report
from liver_slurm.config.schema import JobConfig, ModelSection, TrainSection
from liver_slurm.engine.megatron.spec import world_spec
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import World
from liver_slurm.policy.rank_assignment import rank_order
from liver_slurm.reshard.shard_spec import WorldSpec
from liver_slurm.reshard.spec_exchange import pack

_NODE, _RACK = 8, 32
"""Workers of a node, and of a rack of four."""


class Case(NamedTuple):
    """A model and a change of layout."""

    name: str
    model: ModelSection
    source: str
    target: str


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


_8B, _70B, _405B = _llama(32, 4096, 14336, 32), _llama(80, 8192, 28672, 64), _llama(126, 16384, 53248, 128)
CASES = (
    Case("8b-dp", _8B, "tp4pp2dp8", "tp4pp2dp6"),
    Case("8b-all", _8B, "tp4pp2dp8", "tp2pp4dp6"),
    Case("70b-dp", _70B, "tp8pp8dp8", "tp8pp8dp7"),
    Case("70b-all", _70B, "tp8pp8dp8", "tp4pp16dp7"),
    Case("405b-dp", _405B, "tp8pp16dp128", "tp8pp16dp120"),
    Case("405b-wider", _405B, "tp8pp16dp128", "tp16pp8dp120"),
    Case("405b-deeper", _405B, "tp8pp16dp128", "tp4pp20dp192"),
)
"""The smallest first."""


@dataclass(frozen=True)
class _Numbered:
    """A target world's members in rank order, and how long it took to number them."""

    seconds: float
    reason: str
    members: list[int]


def run(quick: bool) -> dict[str, Any]:
    """Measure all cases."""
    runs = 3 if quick else 9
    return {"bench": "plan", "runs": runs, "cases": [_measure(case, runs) for case in (CASES[:1] if quick else CASES)]}


def table(document: dict[str, Any]) -> str:
    """Return the document for people."""
    from tabulate import tabulate

    rows = [
        [
            case["name"],
            f"{case['from']} → {case['to']}",
            f"{case['ranks_from']} → {case['ranks_to']}",
            f"{case['coordinator_s']:.3f} s",
            f"{case['rank_s']:.3f} s",
            f"{case['rank_cpu_s']:.3f} s",
            f"{case['peak_mb']:.0f} MiB",
            f"{case['bytes_remote'] / case['bytes_total']:.1%}",
            f"{case['bytes_over_minimum']:.3f}",
            f"{case['max_send_over_mean']:.3f}",
            f"{case['hottest_over_least']:.3f}",
        ]
        for case in document["cases"]
    ]
    heads = ["case", "layouts", "ranks", "coordinator", "a rank", "its CPU time", "its memory", "moved", "over minimum"]
    heads += ["hottest over mean", "over least possible"]
    return tabulate(rows, heads, disable_numparse=True)


def _measure(case: Case, runs: int) -> dict[str, Any]:
    layouts = Layout.parse(case.source), Layout.parse(case.target)
    config = JobConfig(
        model=case.model,
        train=TrainSection(
            steps=1, seq_length=4096, global_batch_size=4 * max(layout.dp for layout in layouts), precision="bf16"
        ),
    )
    numbered = [_number(*layouts, config) for _ in range(runs)]
    worlds, metadata_s = _timed(lambda: [world_spec(config, layout) for layout in layouts])
    derived = config.stream.mode != "pause"
    packed, pack_s = _timed(lambda: [pack(world.shards) for world in worlds])
    orders = _orders([replace(world, derived=derived) for world in worlds], numbered[0])
    report = _in_own_process(orders, packed, runs)
    return {
        "name": case.name,
        "from": case.source,
        "to": case.target,
        "ranks_from": layouts[0].size,
        "ranks_to": layouts[1].size,
        "coordinator_s": statistics.median(one.seconds for one in numbered),
        "order": numbered[0].reason,
        "metadata_s": metadata_s,
        "pack_s": pack_s,
        "packed_bytes": [len(one) for one in packed],
        "rank_s": statistics.median(report.seconds),
        "rank_each_s": report.seconds,
        "rank_cpu_s": statistics.median(report.cpu_seconds),
        "rank_parts_s": {part: statistics.median(times) for part, times in report.parts.items()},
        "peak_mb": report.peak_bytes / 2**20,
        "import_mb": report.import_bytes / 2**20,
        "bytes_total": report.bytes_total,
        "bytes_remote": report.bytes_remote,
        "bytes_over_minimum": report.bytes_remote / report.bytes_minimum,
        "minimum_s": report.minimum_s,
        "max_send_over_mean": report.max_send_over_mean,
        "max_send_over_mean_of_all": report.max_send_over_mean_of_all,
        "hottest_over_least": report.hottest_over_least,
        "same_node_share": report.same_node_share,
    }


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def _number(source: Layout, target: Layout, config: JobConfig) -> _Numbered:
    """Number ranks as the coordinator does; members are those on the nodes that stay, or new nodes."""
    nodes = source.size // _NODE
    wanted = target.size // _NODE
    if wanted <= nodes:
        chosen = sorted(np.random.default_rng(1).permutation(nodes)[:wanted].tolist())
    else:
        chosen = list(range(wanted))
    workers = [node * _NODE + one for node in chosen for one in range(_NODE)]
    members = [str(worker) for worker in workers]
    hosts = {str(worker): str(worker // _NODE) for worker in workers}
    live = World(0, source, tuple(map(str, range(source.size))), 0)
    (ranked, reason), seconds = _timed(lambda: rank_order(live, target, members, hosts, config))
    return _Numbered(seconds, reason, list(map(int, ranked)))


def _orders(worlds: list[WorldSpec], numbered: _Numbered) -> Orders:
    source, target = worlds

    def place(worker: int) -> tuple[str, str]:
        return str(worker // _RACK), str(worker // _NODE)

    return Orders(
        layouts=(str(source.layout), str(target.layout)),
        distributed_optimizer=source.distributed_optimizer,
        precision=source.precision,
        derived=source.derived,
        source_members=[str(worker) for worker in range(source.layout.size)],
        target_members=[str(worker) for worker in numbered.members],
        source_places=[place(worker) for worker in range(source.layout.size)],
        target_places=[place(worker) for worker in numbered.members],
    )


def _in_own_process(orders: Orders, packed: list[bytes], runs: int) -> Report:
    with interrupts.temporary_folder("liver-bench-") as folder:
        (folder / "orders").write_bytes(msgspec.msgpack.encode(orders))
        for side, one in zip(("source", "target"), packed, strict=True):
            (folder / side).write_bytes(one)
        command = [sys.executable, "-m", "liver_slurm.bench.plan_rank", str(folder), str(runs)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise LiverError(f"a rank could not plan: {lines[-1] if lines else f'it ended with {done.returncode}'}")
        return msgspec.msgpack.decode((folder / "report").read_bytes(), type=Report)
