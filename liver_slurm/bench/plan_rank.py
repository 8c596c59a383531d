"""One rank's part of planning, for ``bench plan``: a process that imports no torch, so that its memory is the plan's.

python -m liver_slurm.bench.plan_rank FOLDER RUNS
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.lower_bound import remote_minimum
from liver_slurm.reshard.peers import Peers
from liver_slurm.reshard.plan import TransferPlan, plan_transfer
from liver_slurm.reshard.shard_spec import WorldSpec
from liver_slurm.reshard.spec_exchange import unpack
from liver_slurm.reshard.tensors import ITEMSIZE, volume

_RANKS = 4
"""Ranks whose moves are made, besides the hottest owner's; the slowest one counts."""


class Orders(msgspec.Struct):
    """What a rank is told: layouts, members, and where they are."""

    layouts: tuple[str, str]
    distributed_optimizer: bool
    precision: str
    derived: bool
    source_members: list[str]
    target_members: list[str]
    source_places: list[tuple[str, str]]
    target_places: list[tuple[str, str]]


class Report(msgspec.Struct):
    """What it found; times in seconds, one for each run."""

    seconds: list[float]
    parts: dict[str, list[float]]
    cpu_seconds: list[float]
    """Of the process, whatever else the machine does."""
    import_bytes: int
    peak_bytes: int
    bytes_total: int
    bytes_remote: int
    bytes_minimum: int
    minimum_s: float
    max_send_over_mean: float
    max_send_over_mean_of_all: float
    hottest_over_least: float
    same_node_share: float


def main(folder: Path, runs: int) -> None:
    """Read what the benchmark wrote, plan several times, and write the report."""
    orders = msgspec.msgpack.decode((folder / "orders").read_bytes(), type=Orders)
    packed = [(folder / side).read_bytes() for side in ("source", "target")]
    imported = _peak_bytes()
    parts: dict[str, list[float]] = {"learn": [], "plan": [], "moves": []}
    cpu_seconds = []
    for _ in range(runs):
        begun, cpu_begun = time.perf_counter(), time.process_time()
        worlds = [
            WorldSpec(
                Layout.parse(layout),
                unpack(one),
                orders.distributed_optimizer,
                orders.precision,
                derived=orders.derived,
            )
            for layout, one in zip(orders.layouts, packed, strict=True)
        ]
        learned = time.perf_counter()
        peers = Peers.of(orders.source_members, orders.target_members)
        plan = plan_transfer(worlds[0], worlds[1], peers.keep, (orders.source_places, orders.target_places))
        planned = time.perf_counter()
        cpu_seconds.append(time.process_time() - cpu_begun)
        parts["learn"].append(learned - begun)
        parts["plan"].append(planned - learned)
        parts["moves"].append(_slowest_rank(plan))
    peak = _peak_bytes()  # before the lower bound, which no rank of a run computes
    begun = time.perf_counter()
    minimum = remote_minimum(worlds[0], worlds[1], plan.keep)
    minimum_s = time.perf_counter() - begun
    senders = plan.send_bytes[plan.senders]
    report = Report(
        seconds=[sum(times) for times in zip(*parts.values(), strict=True)],
        parts=parts,
        cpu_seconds=cpu_seconds,
        import_bytes=imported,
        peak_bytes=peak,
        bytes_total=plan.bytes_total,
        bytes_remote=plan.bytes_remote,
        bytes_minimum=minimum,
        minimum_s=minimum_s,
        max_send_over_mean=plan.max_send_over_mean,
        max_send_over_mean_of_all=float(senders.max() / senders.mean()),
        hottest_over_least=float(senders.max() / plan.least_hottest),
        same_node_share=_same_node_share(plan, orders),
    )
    (folder / "report").write_bytes(msgspec.msgpack.encode(report))


def _chosen(plan: TransferPlan) -> list[tuple[int | None, int | None]]:
    """Return the hottest owner, and some ranks from the first to the last: (source rank, target rank)."""
    target_rank = {source: rank for rank, source in enumerate(plan.keep) if source is not None}
    hottest = int(plan.send_bytes.argmax())
    some = np.linspace(0, len(plan.keep) - 1, _RANKS, dtype=int).tolist()
    return [(hottest, target_rank.get(hottest)), *((plan.keep[rank], rank) for rank in some)]


def _slowest_rank(plan: TransferPlan) -> float:
    """Return the seconds that a rank takes to make its own moves."""
    slowest = 0.0
    for source_rank, target_rank in _chosen(plan):
        begun = time.perf_counter()
        plan.moves_for(source_rank, target_rank)
        slowest = max(slowest, time.perf_counter() - begun)
    return slowest


def _same_node_share(plan: TransferPlan, orders: Orders) -> float:
    """Return the share of the bytes that the chosen ranks receive which come from their own node."""
    near = total = 0
    for source_rank, target_rank in _chosen(plan):
        for move in plan.moves_for(source_rank, target_rank).receives:
            size = volume(move.shape) * ITEMSIZE[plan.tensors[move.tensor].dtype]
            same = orders.source_places[move.source_rank] == orders.target_places[move.target_rank]
            near, total = near + size * same, total + size
    return near / total if total else 0.0


def _peak_bytes() -> int:
    """Return the peak resident memory of this process; ru_maxrss would begin with what its parent had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/self/status has no VmHWM")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
