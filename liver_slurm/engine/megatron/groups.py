"""Process groups for megatron-core: a collection for the parts that are given groups, globals for the others."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from liver_slurm.engine.megatron import compat
from liver_slurm.engine.megatron.sequence_parallel import use_group
from liver_slurm.parallel.c10d import set_default_group
from liver_slurm.parallel.groups import ProcessGroups

with compat.imports():
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed


def collection(world: ProcessGroups) -> Any:
    """The world's groups as a ``ProcessGroupCollection``; context and expert parallel groups are of one rank."""
    groups = world.groups
    return ProcessGroupCollection(
        tp=groups["tp"],
        pp=groups["pp"],
        dp=groups["dp"],
        mp=groups["mp"],
        embd=groups.get("embd"),
        pos_embd=groups.get("pos_embd"),
        cp=groups["self"],
        ep=groups["self"],
        hcp=None,
        tp_cp=groups["tp"],
        tp_ep=groups["tp"],
        tp_ep_pp=groups["mp"],
        tp_dp_cp=groups["world"],
        dp_cp=groups["dp"],
        expt_tp=groups["tp"],
        expt_dp=groups["dp"],
        intra_dp_cp=groups["dp"],
        intra_expt_dp=groups["dp"],
        intra_dist_opt=groups["world"],
        inter_dist_opt=None,
    )


def make_live(world: ProcessGroups, seed: int) -> None:
    """Make ``world`` the process's live one: set torch's default group and megatron's globals.

    The globals are read by the vocabulary-parallel cross entropy, the memory buffer and the random states of dropout,
    which must exist even where there is no dropout.
    """
    set_default_group(world.groups["world"])
    use_group(world.groups["tp"])
    groups = world.groups
    compat.set_globals(groups, {name: dist.get_process_group_ranks(group) for name, group in groups.items()})
    model_parallel_cuda_manual_seed(
        seed, tp_rank=world.place.tp, ep_rank=0, etp_rank=world.place.tp, force_reset_rng=True
    )
