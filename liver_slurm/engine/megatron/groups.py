"""A world's groups as megatron-core takes them: a collection for what is handed groups, globals for what is not."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from liver_slurm.engine.megatron import compat
from liver_slurm.parallel.c10d import set_default_group
from liver_slurm.parallel.groups import ProcessGroups

compat.install()

from megatron.core import parallel_state  # noqa: E402
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
    """Make ``world`` the process's live one: torch's default group, and the globals that parts of megatron still read.

    Those readers are the vocabulary-parallel cross entropy, the memory buffer and the random states of dropout, which
    must exist even where there is no dropout.
    """
    set_default_group(world.groups["world"])
    groups = world.groups
    names = {
        "_TENSOR_MODEL_PARALLEL_GROUP": "tp",
        "_PIPELINE_MODEL_PARALLEL_GROUP": "pp",
        "_MODEL_PARALLEL_GROUP": "mp",
        "_EMBEDDING_GROUP": "embd",
        "_POSITION_EMBEDDING_GROUP": "pos_embd",
        "_DATA_PARALLEL_GROUP": "dp",
        "_DATA_PARALLEL_GROUP_WITH_CP": "dp",
        "_INTRA_PARTIAL_DATA_PARALLEL_GROUP_WITH_CP": "dp",
        "_CONTEXT_PARALLEL_GROUP": "self",
        "_EXPERT_MODEL_PARALLEL_GROUP": "self",
        "_EXPERT_TENSOR_PARALLEL_GROUP": "tp",
        "_EXPERT_DATA_PARALLEL_GROUP": "dp",
        "_TENSOR_AND_CONTEXT_PARALLEL_GROUP": "tp",
        "_TENSOR_AND_DATA_PARALLEL_GROUP": "world",
        "_TENSOR_AND_DATA_PARALLEL_GROUP_WITH_CP": "world",
        "_EXPERT_TENSOR_AND_MODEL_PARALLEL_GROUP": "tp",
        "_EXPERT_TENSOR_MODEL_PIPELINE_PARALLEL_GROUP": "mp",
        "_INTRA_DISTRIBUTED_OPTIMIZER_INSTANCE_GROUP": "world",
    }
    state = vars(parallel_state)
    for name, group in names.items():
        if name not in state:
            raise RuntimeError(f"this megatron-core has no parallel_state.{name}; 0.16.1 has been tried")
        state[name] = groups.get(group)
    for name, group in (
        ("_TENSOR_MODEL_PARALLEL_GLOBAL_RANKS", "tp"),
        ("_PIPELINE_GLOBAL_RANKS", "pp"),
        ("_DATA_PARALLEL_GLOBAL_RANKS", "dp"),
        ("_MODEL_PARALLEL_GLOBAL_RANKS", "mp"),
        ("_EMBEDDING_GLOBAL_RANKS", "embd"),
        ("_POSITION_EMBEDDING_GLOBAL_RANKS", "pos_embd"),
    ):
        state[name] = dist.get_process_group_ranks(groups[group]) if group in groups else None
    if parallel_state._GLOBAL_MEMORY_BUFFER is None:
        parallel_state._set_global_memory_buffer()
    model_parallel_cuda_manual_seed(
        seed, tp_rank=world.place.tp, ep_rank=0, etp_rank=world.place.tp, force_reset_rng=True
    )
