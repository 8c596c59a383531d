"""One worker of the transition table: walks through every ordered pair of layouts, and checks every box on the way.

The state is trained once and then only moved, so whenever a rank is in a layout again, each of its boxes must be what
it was the first time, bit for bit; and in the end training goes on as it does in a copy that was never moved.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
import torch

from liver_slurm.config.schema import JobConfig, ModelSection, StreamSection, TrainSection
from liver_slurm.control.messages import Prepare
from liver_slurm.megatron.boxes import state_boxes
from liver_slurm.megatron.groups import make_live
from liver_slurm.megatron.rank_state import RankState
from liver_slurm.megatron.step import train_step
from liver_slurm.state.layout import Layout
from liver_slurm.worker.target import Target, prepare
from liver_slurm.world.c10d import set_default_group
from liver_slurm.world.world import Membership

DEVICE = torch.device(os.environ.get("TRANSITION_DEVICE", "cpu"))


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


def job(precision: str, distributed: bool, tied: bool) -> JobConfig:
    """A model that every layout of the table can hold, with an odd vocabulary and layers that 4 does not divide."""
    return JobConfig(
        model=ModelSection(
            num_layers=5,
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
        ),
        stream=StreamSection(staging_bytes=1 << 14),
    )


class Walker:
    """The worker's present state, and what it has seen in each layout."""

    def __init__(self, name: str, config: JobConfig, port: int, first_generation: int) -> None:
        self.name, self.config, self.port = name, config, port
        self.generation = first_generation
        self.state: RankState | None = None
        self.membership: Membership | None = None
        self.adam_step = 0
        self.seen: dict[Layout, list[tuple[Any, torch.Tensor]]] = {}
        self.steps: dict[Layout, set[int]] = {}
        self.peak = 0

    def go(self, layout: Layout) -> None:
        """Move to ``layout``: worlds are of the first workers."""
        members = [f"w{index}" for index in range(layout.size)]
        old = self.membership
        message = Prepare(
            epoch=0,
            generation=self.generation,
            layout=str(layout),
            members=members,
            source_generation=old.generation if old else -1,
            source_layout=str(old.layout) if old else "",
            source_members=list(old.members) if old else [],
            store_host="127.0.0.1",
            store_port=self.port,
        )
        self.generation += 1
        membership = Membership(message.generation, layout, tuple(members))
        self.membership = membership
        if self.name not in members and (old is None or self.name not in old.members):
            return
        target = Target(membership)
        prepare(target, message, self.name, self.config, self.state, DEVICE)
        if target.transfer is not None:
            counters = [max(self.state.steps())] if self.state else None
            stats, (self.adam_step,) = target.transfer.run(counters)
            self.peak = max(self.peak, stats.staging_peak_bytes)
            target.close_transfer()
        previous, self.state = self.state, target.state
        if self.state is not None:
            if old is not None:
                self.state.set_step(self.adam_step)
            make_live(self.state.world, self.config.train.seed)
        else:
            set_default_group(None)
        if previous is not None:
            previous.world.destroy()

    def check(self) -> int:
        """Compare with what this layout's boxes were before; returns how many are compared."""
        if self.state is None:
            return 0
        boxes, layout = state_boxes(self.state), self.state.world.layout
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


def main() -> None:
    name, port, layouts, cases, hub = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5]
    walk = circuit([Layout.parse(text) for text in layouts.split(",")], Layout.parse(hub) if hub else None)
    for number, case in enumerate(json.loads(cases)):
        config = job(**case)
        walker = Walker(name, config, port, first_generation=1000 * number)
        walker.go(walk[0])
        losses = [train_step(walker.state, Patterned(), step).loss for step in range(3)] if walker.state else []
        compared = walker.check()
        for layout in walk[1:]:
            walker.go(layout)
            compared += walker.check()
        if walker.state is not None:
            losses += [train_step(walker.state, Patterned(), step).loss for step in range(3, 6)]
        undisturbed = Walker(name, config, port, first_generation=1000 * number + 500)
        undisturbed.go(walk[0])
        expected = (
            [train_step(undisturbed.state, Patterned(), step).loss for step in range(6)] if undisturbed.state else []
        )
        assert losses == expected, (losses, expected)
        assert walker.peak <= config.stream.staging_bytes
        print(json.dumps({**case, "transitions": len(walk) - 1, "boxes": compared, "losses": losses}), flush=True)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
