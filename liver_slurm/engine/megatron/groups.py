"""Process groups for megatron-core: a collection for the parts that are given groups, globals for the others."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from liver_slurm.engine.megatron import compat
from liver_slurm.engine.megatron.sequence_parallel import use_group
from liver_slurm.parallel.c10d import set_default_group
from liver_slurm.parallel.groups import ProcessGroups

compat.install()

from megatron.core.process_groups_config import ProcessGroupCollection  # noqa: E402
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed  # noqa: E402


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
    compat.set_globals(
        {
            "TENSOR_MODEL_PARALLEL_GROUP": groups["tp"],
            "PIPELINE_MODEL_PARALLEL_GROUP": groups["pp"],
            "MODEL_PARALLEL_GROUP": groups["mp"],
            "EMBEDDING_GROUP": groups.get("embd"),
            "POSITION_EMBEDDING_GROUP": groups.get("pos_embd"),
            "DATA_PARALLEL_GROUP": groups["dp"],
            "DATA_PARALLEL_GROUP_WITH_CP": groups["dp"],
            "INTRA_PARTIAL_DATA_PARALLEL_GROUP_WITH_CP": groups["dp"],
            "CONTEXT_PARALLEL_GROUP": groups["self"],
            "EXPERT_MODEL_PARALLEL_GROUP": groups["self"],
            "EXPERT_TENSOR_PARALLEL_GROUP": groups["tp"],
            "EXPERT_DATA_PARALLEL_GROUP": groups["dp"],
            "TENSOR_AND_CONTEXT_PARALLEL_GROUP": groups["tp"],
            "TENSOR_AND_DATA_PARALLEL_GROUP": groups["world"],
            "TENSOR_AND_DATA_PARALLEL_GROUP_WITH_CP": groups["world"],
            "EXPERT_TENSOR_AND_MODEL_PARALLEL_GROUP": groups["tp"],
            "EXPERT_TENSOR_MODEL_PIPELINE_PARALLEL_GROUP": groups["mp"],
            "INTRA_DISTRIBUTED_OPTIMIZER_INSTANCE_GROUP": groups["world"],
        },
        {
            name: dist.get_process_group_ranks(groups[group]) if group in groups else None
            for name, group in (
                ("TENSOR_MODEL_PARALLEL_GLOBAL_RANKS", "tp"),
                ("PIPELINE_GLOBAL_RANKS", "pp"),
                ("DATA_PARALLEL_GLOBAL_RANKS", "dp"),
                ("MODEL_PARALLEL_GLOBAL_RANKS", "mp"),
                ("EMBEDDING_GLOBAL_RANKS", "embd"),
                ("POSITION_EMBEDDING_GLOBAL_RANKS", "pos_embd"),
            )
        },
    )
    model_parallel_cuda_manual_seed(
        seed, tp_rank=world.place.tp, ep_rank=0, etp_rank=world.place.tp, force_reset_rng=True
    )
