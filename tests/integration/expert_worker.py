"""One rank of a comparison of experts' output and gradients: those of our layer, and with megatron's dispatchers."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from transition_worker import job

from liver_slurm.engine.megatron import compat
from liver_slurm.engine.megatron.expert_layer import mix
from liver_slurm.engine.megatron.model import unwrap
from liver_slurm.engine.megatron.shard import build_shard
from liver_slurm.parallel.c10d import set_default_group
from liver_slurm.parallel.groups import build_world
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership

with compat.imports():
    from megatron.core.transformer.moe import moe_utils
    from megatron.core.transformer.moe.token_dispatcher import MoEAllGatherTokenDispatcher, MoEAlltoAllTokenDispatcher


class AllToAll(MoEAlltoAllTokenDispatcher):  # type: ignore[misc]
    """Megatron's, which copies how many tokens go where beside a card's work: without a card there is nothing to do."""

    cuda_dtoh_stream = MoEAlltoAllTokenDispatcher.cuda_dtoh_stream = object()

    def _maybe_dtoh_and_synchronize(self, point: str, tokens_per_expert: Any = None) -> Any:
        if point == self.cuda_dtoh_point:
            for name in ("input_splits", "output_splits", "output_splits_tp"):
                splits = getattr(self, name)
                setattr(self, name, None if splits is None else splits.numpy())
        return tokens_per_expert


DISPATCHERS = {"allgather": MoEAllGatherTokenDispatcher, "alltoall": AllToAll}


def results(layer: Any, rank: int, tokens: int, own: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """What a rank's tokens become, and the gradients of these and of all weights of the mixture."""
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(tokens, 2, 32, generator=generator).requires_grad_()
    weights = dict(layer.mlp.named_parameters())
    output = mix(x, layer._experts(), counted=True) if own else layer.mlp(x)[0]
    target = torch.randn(output.shape, generator=generator)
    gradients = torch.autograd.grad((output * target).sum(), [x, *weights.values()], allow_unused=True)
    yield "output", output.detach()
    for name, gradient in zip(("input", *weights), gradients, strict=True):
        if name != "router.expert_bias":  # which megatron does not move by a gradient
            yield name, torch.zeros(()) if gradient is None else gradient


def main() -> None:
    rank, port, layouts = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    moe_utils.te_general_gemm = (
        None  # 0.16.1 asks for this name without having it, where there is no Transformer Engine
    )
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    for generation, text in enumerate(layouts.split(",")):
        layout = Layout.parse(text)
        members = Membership(generation, layout, tuple(map(str, range(layout.size))))
        world = build_world(members, str(rank), store, "gloo", torch.device("cpu"), timedelta(minutes=10))
        config = job("fp32", True, tied=False, experts=True)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, moe_aux_loss_coeff=0.0))
        shard = build_shard(config, world, torch.device("cpu"), fresh=True)
        shard.make_live()
        layer = unwrap(shard.chunks[0]).decoder.layers[0]
        for name, dispatcher in DISPATCHERS.items():
            if name == "alltoall" and layout.etp > 1 < layout.ep:
                continue  # it gathers parts of unlike sizes there, which gloo cannot
            mixture = layer.mlp
            experts = mixture.num_local_experts, mixture.local_expert_indices
            mixture.token_dispatcher = dispatcher(*experts, config=mixture.config, pg_collection=shard.groups)
            ours, theirs = (dict(results(layer, rank, 16 // layout.tp, own)) for own in (True, False))
            for what, expected in theirs.items():
                torch.testing.assert_close(
                    ours[what], expected, rtol=2e-5, atol=2e-6, msg=lambda said, of=(text, name, what): f"{of} {said}"
                )
            print(text, name, len(theirs), flush=True)
        set_default_group(None)
        world.destroy()
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
