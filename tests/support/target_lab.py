"""Workers of a few worlds in one process, each in a thread of its own while it prepares or moves state."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from stores import open_plain
from tiny_engine import TinyEngine, TinyShard, job

from liver_slurm.config.schema import JobConfig, StreamSection
from liver_slurm.engine.api import Engine
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership
from liver_slurm.protocol.messages import Prepare
from liver_slurm.transfer.mirror.host_room import Rooms
from liver_slurm.worker.preparation import Preparation
from liver_slurm.worker.target_world import TargetWorld, prepare

PATIENCE = 120.0
CPU = torch.device("cpu")
_generations = iter(range(1000, 1_000_000))
"""Groups' names carry them, and are unique in a process."""


class Workers:
    """Each world is of one worker, as ranks of one process cannot share a world's groups."""

    def __init__(self, engine: Engine | None = None, **stream: Any) -> None:
        self.engine = engine or TinyEngine()
        self.config: JobConfig = job(stream=replace(StreamSection(staging_bytes=1 << 12), **stream))
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.made: list[TargetWorld] = []

    def message(self, member: str, source: TargetWorld | None = None, checkpoint: str = "") -> Prepare:
        """Prepare a world of one member, from the world of another or of the same one."""
        before = source.membership if source is not None else None
        return Prepare(
            epoch=0,
            generation=next(_generations),
            layout="tp1pp1dp1",
            members=[member],
            source_generation=before.generation if before else -1,
            source_layout=str(before.layout) if before else "",
            source_members=list(before.members) if before else [],
            store_host="127.0.0.1",
            store_port=self.store.port,
            checkpoint=checkpoint,
        )

    def prepare(self, message: Prepare, worker: str, live: TargetWorld | None = None) -> TargetWorld:
        """One worker's part of the world."""
        target = TargetWorld(Membership(message.generation, Layout.parse(message.layout), tuple(message.members)))
        self.made.append(target)
        shard = live.state if live is not None else None
        prepare(target, Preparation(message, worker, self.config, self.engine, shard, CPU, open_plain, Rooms(None)))
        assert target.prepared()
        return target

    def first_world(self, worker: str = "a", checkpoint: str = "") -> TargetWorld:
        """A world without a source."""
        return self.prepare(self.message(worker, checkpoint=checkpoint), worker)

    def hand_over(self, live: TargetWorld) -> tuple[TargetWorld, TargetWorld]:
        """Worker a's world moves to worker b: what a and what b have prepared."""
        message = self.message("b", live)
        return at_once(lambda: self.prepare(message, "a", live), lambda: self.prepare(message, "b"))

    def close(self) -> None:
        for target in self.made:
            target.discard()


def at_once(*calls: Callable[[], Any]) -> Any:
    """Each in a thread; what they return."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return tuple(future.result(PATIENCE) for future in [pool.submit(call) for call in calls])


def snapshot(shard: Any) -> dict[Any, torch.Tensor]:
    """Every box of a shard, copied."""
    assert isinstance(shard, TinyShard)
    return {piece: view.clone() for piece, view in shard.boxes()}


def same(one: dict[Any, torch.Tensor], other: dict[Any, torch.Tensor]) -> bool:
    """The same boxes, bit for bit."""
    return list(one) == list(other) and all(
        torch.equal(view.view(torch.uint8), other[piece].view(torch.uint8)) for piece, view in one.items()
    )
