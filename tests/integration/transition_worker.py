"""One worker of the transition table: walks through every ordered pair of layouts, and checks every box on the way.

The state is trained once and then only moved, so whenever a rank is in a layout again, each of its boxes must be what
it was the first time, bit for bit; and in the end training goes on as it does in a copy that was never moved.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from stores import open_plain

from liver_slurm.config.schema import JobConfig, ModelSection, StreamSection, TrainSection
from liver_slurm.engine.api import TrainingShard
from liver_slurm.engine.megatron.engine import MegatronEngine
from liver_slurm.engine.megatron.shard import MegatronShard
from liver_slurm.engine.megatron.spec import world_spec
from liver_slurm.parallel.c10d import set_default_group
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership
from liver_slurm.protocol.messages import Prepare
from liver_slurm.reshard.memory_budget import Footprint, Share, footprint
from liver_slurm.transfer.mirror.host_room import Rooms
from liver_slurm.worker.device import claim_card
from liver_slurm.worker.preparation import Preparation
from liver_slurm.worker.target_world import TargetWorld, prepare

DEVICE = claim_card(os.environ) if os.environ.get("TRANSITION_DEVICE") == "cuda" else torch.device("cpu")


class Patterned:
    """Samples that can be learnt, as a function of their number."""

    def __len__(self) -> int:
        return 1 << 20

    def batch(self, first: int, count: int) -> np.ndarray[Any, Any]:
        rows = []
        for number in range(first, first + count):
            row = np.random.default_rng(number).integers(0, 60, 17)
            row[1::2] = (row[0:-1:2] * 3 + 1) % 60
            rows.append(row)
        return np.stack(rows).astype(np.int64)


def job(
    precision: str, distributed: bool, tied: bool, experts: bool = False, layers: int = 5, **train: Any
) -> JobConfig:
    """A model that every layout of the table can hold, with an odd vocabulary and layers that 4 does not divide."""
    mixture: dict[str, Any] = {
        "num_query_groups": 4,
        "num_moe_experts": 4,
        "moe_ffn_hidden_size": 32,
        "moe_aux_loss_coeff": 0.01,
        "moe_shared_expert_intermediate_size": 16,
        "moe_shared_expert_gate": True,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
    }
    config = JobConfig(
        model=ModelSection(
            num_layers=layers,
            hidden_size=32,
            num_attention_heads=4,
            num_query_groups=2,
            ffn_hidden_size=48,
            vocab_size=61,
            share_embeddings_and_output_weights=tied,
        ),
        train=TrainSection(
            steps=100,
            seq_length=16,
            micro_batch_size=1,
            global_batch_size=4,
            lr=1e-2,
            precision=precision,  # type: ignore[arg-type]
            distributed_optimizer=distributed,
            no_weight_decay=("embedding.*",),
            **train,
        ),
        stream=StreamSection(mode="pause", staging_bytes=1 << 14),
    )
    return replace(config, model=replace(config.model, **mixture)) if experts else config


def members_of(layout: Layout) -> list[str]:
    """Worlds are of the first workers."""
    return [f"w{index}" for index in range(layout.size)]


class Walker:
    """The worker's present state, and what it has seen in each layout."""

    def __init__(self, name: str, config: JobConfig, port: int, first_generation: int, limited: bool = False) -> None:
        """``limited``: each transition gets as little memory as it needs, or a little more."""
        self.name, self.config, self.port = name, config, port
        self.generation = first_generation
        self.state: TrainingShard | None = None
        self.membership: Membership | None = None
        self.adam_step = 0
        self.seen: dict[Layout, list[tuple[Any, torch.Tensor]]] = {}
        self.steps: dict[Layout, set[int]] = {}
        self.peak = self.early = self.trained = self.late = 0
        self.limited = limited
        self.store = dist.TCPStore("127.0.0.1", port, is_master=False)

    def go(self, layout: Layout) -> None:
        """Move to ``layout``: worlds are of the first workers."""
        members = members_of(layout)
        old = self.membership
        message = self._message(layout, old)
        membership = Membership(message.generation, layout, tuple(members))
        self.membership = membership
        if self.name not in members and (old is None or self.name not in old.members):
            return
        target = TargetWorld(membership)
        limit = self._limit(old, membership) if self.limited and old is not None else None
        config = replace(self.config, stream=replace(self.config.stream, memory_limit=limit))
        self._prepare(target, message, config)
        if target.transfer is not None:
            self.adam_step = target.transfer.finish()
            stats = target.transfer.prove()
            target.holds(target.held_bytes + stats.staging_peak_bytes)
            self.peak = max(self.peak, stats.staging_peak_bytes)
            self._move_late(target, limit)
            target.close_transfer()
        if target.state is not None and old is not None:
            target.state.set_step(self.adam_step)
        self._switch(target.state)

    def _prepare(self, target: TargetWorld, message: Prepare, config: JobConfig) -> None:
        """Prepare, and wait until all have, as they do for the coordinator's word."""
        prepare(
            target,
            Preparation(message, self.name, config, MegatronEngine(), self.state, DEVICE, open_plain, Rooms(None)),
        )
        involved, key = {*message.source_members, *message.members}, f"prepared/{message.generation}"
        if self.store.add(key, 1) == len(involved):
            self.store.set(f"{key}/all", b"")
        self.store.wait([f"{key}/all"])

    def _message(self, layout: Layout, old: Membership | None) -> Prepare:
        self.generation += 1
        return Prepare(
            epoch=0,
            generation=self.generation - 1,
            layout=str(layout),
            members=members_of(layout),
            source_generation=old.generation if old else -1,
            source_layout=str(old.layout) if old else "",
            source_members=list(old.members) if old else [],
            store_host="127.0.0.1",
            store_port=self.port,
        )

    def _switch(self, state: TrainingShard | None) -> None:
        previous, self.state = self.state, state
        if state is not None:
            state.make_live()
        else:
            set_default_group(None)
        if previous is not None:
            previous.world.destroy()

    def go_overlapped(self, layout: Layout, steps: int) -> int:
        """Move to ``layout`` while ``steps`` steps are trained, and compare with what the old world then holds.

        The last step but one is skipped, for its gradient is not finite. Returns how many boxes were compared.
        """
        old = self.membership
        assert old is not None
        limit = self._limit(old, Membership(0, layout, tuple(members_of(layout)))) if self.limited else None
        target = self._prepared(layout, old, limit)
        if target is None:
            self.trained += steps
            return 0
        overlap = target.overlap
        assert overlap is not None
        overlap.start()
        for number in range(steps):
            if self.state is not None:
                overlap.attach()
                overlap.open(last=number == steps - 1)
                spoil = self._spoil if number == steps - 2 else None
                result = self.state.train_step(Patterned(), self.trained, before_update=spoil)
                assert result.skipped == (number == steps - 2)
            self.trained += 1
        self._tell()
        self.adam_step = overlap.finish()
        stats = overlap.prove()
        target.holds(target.held_bytes + stats.staging_peak_bytes + stats.gradient_staging_bytes)
        overlap.release()
        self.peak = max(self.peak, stats.staging_peak_bytes)
        self.early += stats.bytes_early
        self._move_late(target, limit)
        compared = 0
        if target.state is not None:
            target.state.derive_weights(self.adam_step).wait()
            compared = self._compare(target.state, old)
        target.close_transfer()
        self._switch(target.state)
        return compared

    def _tell(self) -> None:
        """Put what this rank holds into the store, unless another replica holds the same."""
        if self.state is None or (
            self.state.world.layout.replica(self.state.world.rank) > 0 and not self.config.train.distributed_optimizer
        ):
            return
        data = io.BytesIO()
        torch.save(([(tuple(piece), view.cpu()) for piece, view in self.state.boxes()], self.state.steps()), data)
        self.store.set(f"told/{self.generation}/{self.state.world.rank}", data.getvalue())

    def _compare(self, state: TrainingShard, old: Membership) -> int:
        """Every box of a new rank with what the old world's ranks told; returns how many there are."""
        whole: dict[str, torch.Tensor] = {}
        shapes = world_spec(self.config, old.layout).tensors
        replicas = old.layout.replicas if self.config.train.distributed_optimizer else 1
        for rank in range(old.layout.size):
            if old.layout.replica(rank) >= replicas:
                continue
            boxes, steps = torch.load(io.BytesIO(self.store.get(f"told/{self.generation}/{rank}")))
            assert state.steps() == steps
            for (name, offset, shape), view in boxes:
                tensor = whole.setdefault(name, torch.empty(shapes[name].shape, dtype=view.dtype))
                tensor[tuple(slice(a, a + n) for a, n in zip(offset, shape, strict=True))] = view
        boxes = state.boxes()
        for (name, offset, shape), view in boxes:
            place = tuple(slice(a, a + n) for a, n in zip(offset, shape, strict=True))
            same = torch.equal(_bits(view.cpu()), _bits(whole[name][place]))
            assert same, f"{old.layout}->{state.world.layout}: {name} at {offset} is not what the old world held"
        return len(boxes)

    def _move_late(self, target: TargetWorld, limit: int | None) -> None:
        """What the cutover does with late layers; and nothing was held beyond the limit."""
        if target.late is not None:
            late = target.late.run()
            self.adam_step = max(self.adam_step, late.adam_step)
            target.holds(late.peak_bytes)
            self.late += len(target.late)
            self.peak = max(self.peak, late.moved.staging_peak_bytes)
        assert limit is None or target.state_peak_bytes <= limit

    def _limit(self, old: Membership, new: Membership) -> int:
        """The least that every worker can do with, and of what all at once takes besides, nothing or a third."""
        takes = [self._takes(old, new, worker) for worker in {*old.members, *new.members}]
        least, most = (max(each.peak(early) for each in takes) for early in (0, len(takes[0].new)))
        return least + (most - least) // 3 * (self.generation % 2)

    def _takes(self, old: Membership, new: Membership, worker: str) -> Footprint:
        shares = []
        for world in (old, new):
            rank = world.rank_of(worker)
            if rank is None:
                shares.append(None)
                continue
            replica = world.layout.replica(rank)
            spec = world_spec(self.config, world.layout)
            shard = spec.shards[world.layout.shard_key(rank)]
            how = (spec.distributed_optimizer, None, spec.moment_dtype)
            shares.append(Share(shard, world.layout.replicas, replica, *how))
        return footprint(*shares, self.config.stream.staging_bytes)

    def _prepared(self, layout: Layout, old: Membership, limit: int | None) -> TargetWorld | None:
        message = self._message(layout, old)
        self.membership = Membership(message.generation, layout, tuple(message.members))
        if self.name not in message.members and self.name not in old.members:
            return None
        target = TargetWorld(self.membership)
        config = replace(self.config, stream=replace(self.config.stream, mode="overlap", memory_limit=limit))
        self._prepare(target, message, config)
        takes = self._takes(old, self.membership, self.name)
        late = len(target.late) if target.late is not None else 0
        assert target.held_bytes == takes.beside_training(len(takes.new) - late) - config.stream.staging_bytes
        return target

    def _spoil(self, _start: float) -> None:
        """Make this rank's gradient not finite."""
        assert isinstance(self.state, MegatronShard)
        self.state.chunks[0].buffers[0].grad_data[0] = math.inf

    def check(self) -> int:
        """Compare with what this layout's boxes were before; returns how many are compared."""
        if self.state is None:
            return 0
        boxes, layout = self.state.boxes(), self.state.world.layout
        if layout not in self.seen:
            self.seen[layout] = [(piece, view.clone()) for piece, view in boxes]
            self.steps[layout] = self.state.steps()
            return 0
        for (piece, view), (before, kept) in zip(boxes, self.seen[layout], strict=True):
            assert piece == before
            assert torch.equal(_bits(view), _bits(kept)), f"{layout} {piece} is not what it was"
        assert self.state.steps() == self.steps[layout]
        return len(boxes)


def _bits(view: torch.Tensor) -> torch.Tensor:
    return view.contiguous().view(torch.uint8)


def circuit(layouts: list[Layout], hub: Layout | None) -> list[Layout]:
    """A closed walk from the first layout that takes each ordered pair of layouts once (Hierholzer 1873).

    With a hub, only the pairs that it is in.
    """
    unused = {
        layout: [other for other in layouts if other != layout and (hub is None or hub in (layout, other))]
        for layout in layouts
    }
    walk, stack = [], [layouts[0]]
    while stack:
        if unused[stack[-1]]:
            stack.append(unused[stack[-1]].pop())
        else:
            walk.append(stack.pop())
    return walk[::-1]


def overlapped_walk(
    name: str, port: int, walk: list[Layout], number: int, limited: bool, case: dict[str, Any]
) -> dict[str, Any]:
    """Every transition while training goes on."""
    walker = Walker(name, job(**case), port, 1000 * number, limited)
    walker.go(walk[0])
    compared = 0
    for step, layout in enumerate(walk[1:]):
        compared += walker.go_overlapped(layout, steps=3 if step % 2 else 2)
    assert walker.peak <= walker.config.stream.staging_bytes
    return {"transitions": len(walk) - 1, "boxes": compared, "early": walker.early, "late": walker.late}


def main() -> None:
    name, port, layouts, cases, hub = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5]
    walk = circuit([Layout.parse(text) for text in layouts.split(",")], Layout.parse(hub) if hub else None)
    for number, case in enumerate(json.loads(cases)):
        limited = case.pop("limited", False)
        if case.pop("overlap", False):
            print(json.dumps({**case, **overlapped_walk(name, port, walk, number, limited, case)}), flush=True)
            continue
        config = job(**case)
        walker = Walker(name, config, port, 1000 * number, limited)
        walker.go(walk[0])
        losses = [walker.state.train_step(Patterned(), step).loss for step in range(3)] if walker.state else []
        compared = walker.check()
        for layout in walk[1:]:
            walker.go(layout)
            compared += walker.check()
        if walker.state is not None:
            losses += [walker.state.train_step(Patterned(), step).loss for step in range(3, 6)]
        undisturbed = Walker(name, config, port, first_generation=1000 * number + 500)
        undisturbed.go(walk[0])
        expected = (
            [undisturbed.state.train_step(Patterned(), step).loss for step in range(6)] if undisturbed.state else []
        )
        assert losses == expected, (losses, expected)
        assert walker.peak <= config.stream.staging_bytes
        found = {"transitions": len(walk) - 1, "boxes": compared, "losses": losses, "late": walker.late}
        print(json.dumps({**case, **found}), flush=True)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
