"""One rank of plain megatron-core: ``megatron_lm_worker.py RANK TP PP FOLDER WHAT NAME…``.

``make``: models of its own, saved, with their logits; ``again``: the same, loaded and saved by these ranks;
``check``: what was exported of them, with its logits.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron_lm import MODELS, SEQUENCE, VOCABULARY, arguments, begin, build, dist_checkpointing, logits

MADE = "tp1pp1"
SINGLE = {"experts-sigmoid", "qwen"}
"""Models whose layers and experts have names of their own in what is saved again."""


def save(folder: Path, name: str, model: Any, single: bool) -> None:
    path = folder / "iter_0000007"
    if dist.get_rank() == 0:
        path.mkdir(parents=True)
        (folder / "latest_checkpointed_iteration.txt").write_text("7")
    dist.barrier()
    content = {"singleton_local_shards": single}
    model_state = model.sharded_state_dict(metadata=content)
    state = {"model": model_state, "args": arguments(name), "iteration": 7, "checkpoint_version": 3.0}
    dist_checkpointing.save(state, str(path), content_metadata=content)


def load(path: Path, model: Any) -> None:
    content = dist_checkpointing.load_content_metadata(str(path))
    state = {"model": model.sharded_state_dict(metadata=content)}
    model.load_state_dict(dist_checkpointing.load(state, str(path))["model"])


def disturb(model: Any) -> None:
    """Norms and biases too: ones and zeros would hide that two are exchanged."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if torch.is_tensor(value) and "local_tokens" not in name:
                value.add_(torch.randn_like(value) * 0.1)


def main() -> None:
    rank, tp, pp, folder, what = *map(int, sys.argv[1:4]), Path(sys.argv[4]), sys.argv[5]
    begin(dist.FileStore(str(folder / f"store-{what}-{tp}-{pp}"), tp * pp), rank, tp, pp)
    for name in sys.argv[6:]:
        here, model = folder / name, build(arguments(name)).eval()
        if what == "make":
            disturb(model)
            torch.save(logits(model, tokens()), _made(here) / "expected.pt")
            save(here / MADE, name, model, single=False)
        elif what == "again":
            load(here / MADE / "iter_0000007", model)
            save(here / f"tp{tp}pp{pp}", name, model, single=name in SINGLE)
        else:
            load(here / "exported" / "release", model)
            found = logits(model, tokens())
            if rank == 0:
                torch.save(found, here / f"tp{tp}.pt")
    sys.stdout.flush()
    os._exit(0)


def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, SEQUENCE), generator=torch.Generator().manual_seed(3))


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert MODELS
    main()
