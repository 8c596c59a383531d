"""What one rank of plain megatron-core does in ``tests/integration/megatron_lm_worker.py``.

``make``: models of its own, trained for two steps and saved, with their logits, and what a third step makes of them;
``again``: the same, loaded and saved by these ranks;
``check``: what was exported of them, with its logits;
``goon``: what was exported of them with their moments, and what a third step makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron_lm import (
    MODELS,
    OPTIMIZERS,
    Training,
    arguments,
    build,
    lay_out,
    logits,
    tokens,
)

from liver_slurm.engine.megatron import compat

with compat.imports():
    from megatron.core import dist_checkpointing

MADE = "tp1pp1"
SINGLE = {"experts-sigmoid", "qwen"}
"""Models whose layers and experts have names of their own in what is saved again."""
ITERATION = 2


def save(folder: Path, name: str, model: Any, content: dict[str, Any], optimizer: Any = None) -> None:
    path = folder / f"iter_{ITERATION:07d}"
    if dist.get_rank() == 0:
        path.mkdir(parents=True)
        (folder / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))
    dist.barrier()
    state = {"model": model.sharded_state_dict(metadata=content), "args": arguments(name)}
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict({"model": state["model"]}, metadata=content)
    state |= {"iteration": ITERATION, "checkpoint_version": 3.0}
    dist_checkpointing.save(state, str(path), content_metadata=content)


def load(path: Path, model: Any, optimizer: Any = None) -> None:
    content = dist_checkpointing.load_content_metadata(str(path))
    state = {"model": model.sharded_state_dict(metadata=content)}
    if optimizer is not None:
        parts = optimizer.sharded_state_dict({"model": state["model"]}, is_loading=True, metadata=content)
        state["optimizer"] = parts
    found = dist_checkpointing.load(state, str(path))
    model.load_state_dict(found["model"])
    if optimizer is not None:
        # In one piece megatron-core 0.16.1 fails on the step counter of torch's own Adam.
        held = found["optimizer"]
        tensors, kind = held.pop("param_state"), held.pop("param_state_sharding_type")
        assert kind == "fully_reshardable"
        optimizer.load_state_dict(held)
        (inner,) = optimizer.chained_optimizers
        for moments in inner.optimizer.state.values():
            moments.pop("step")
        inner.load_parameter_state_from_fully_reshardable(tensors)
        for moments in inner.optimizer.state.values():
            moments["step"] = torch.tensor(float(held["optimizer"]["param_groups"][0]["step"]))


def disturb(model: Any) -> None:
    """Norms and biases too: ones and zeros would hide that two are exchanged."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if torch.is_tensor(value) and value.is_floating_point() and "local_tokens" not in name:
                value.add_(torch.randn_like(value) * 0.1)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if torch.is_tensor(value)}


def make(here: Path, name: str) -> None:
    here.mkdir()
    model = build(arguments(name))
    disturb(model)
    training = Training(model, OPTIMIZERS[name]) if name in OPTIMIZERS else None
    content = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
    if training is not None:
        for step in range(ITERATION):
            training.step(step)
        content |= training.content
    torch.save(logits(model, tokens()), here / "expected.pt")
    save(here / MADE, name, model, content, training.optimizer if training is not None else None)
    if training is not None:
        training.step(ITERATION)
        torch.save(weights(model), here / "after.pt")
        save(here / "after", name, model, content)


def do(what: str, here: Path, layout: str) -> None:
    name = here.name
    model = build(arguments(name))
    if what == "again":
        load(here / MADE / f"iter_{ITERATION:07d}", model)
        save(here / layout, name, model, {"singleton_local_shards": name in SINGLE})
    elif what == "check":
        load(here / "exported" / "release", model)
        found = logits(model, tokens())
        if dist.get_rank() == 0:
            torch.save(found, here / f"there-{layout}.pt")
    elif name in OPTIMIZERS and arguments(name).num_experts is None:
        training = Training(model, "distributed")
        training.step(0)  # a fresh distributed optimizer with torch's own Adam cannot be asked for its state
        load(here / "moments" / "iter_0000000", model, training.optimizer)
        training.step(ITERATION)
        torch.save(weights(model), here / "gone-on.pt")


def main(rank: int, ranks: int, folder: Path, orders: Sequence[str]) -> None:
    """Do it, one layout after the other, and in each for each model."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store-{'-'.join(orders)}"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    for order in orders:
        layout, _, whats = order.partition(":")
        tp, pp = map(int, layout.removeprefix("tp").split("pp"))
        lay_out(tp, pp)
        for name in MODELS:
            for what in whats.split(","):
                if what == "make":
                    make(folder / name, name)
                else:
                    do(what, folder / name, layout)
    dist.destroy_process_group()
