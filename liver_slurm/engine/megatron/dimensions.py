"""What megatron-core is told of a layout's dimensions: their sizes, process groups, and each rank's part of a sequence.

Groups come as a collection for the parts that are given groups, and as globals for the others.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from liver_slurm.config.shapes import stage_layers
from liver_slurm.engine.megatron import compat
from liver_slurm.engine.megatron.sequence_parallel import use_groups
from liver_slurm.parallel.c10d import set_default_group
from liver_slurm.parallel.groups import ProcessGroups
from liver_slurm.parallel.layout import Layout

with compat.imports():
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed


def sizes(layout: Layout, layers: int) -> dict[str, Any]:
    """Return the fields of ``TransformerConfig`` that follow from the layout of a model of so many layers."""
    split = stage_layers(layers, layout.pp)
    uneven = len(set(split)) > 1
    return {
        "tensor_model_parallel_size": layout.tp,
        "context_parallel_size": layout.cp,
        "expert_model_parallel_size": layout.ep,
        "expert_tensor_parallel_size": layout.etp,
        "pipeline_model_parallel_size": layout.pp,
        "virtual_pipeline_model_parallel_size": interleaved(layout),
        # In one batch a stage's messages to the next and to the previous stage would get mixed up where these are one.
        "overlap_p2p_comm": layout.vpp > 1,
        "batch_p2p_comm": layout.vpp == 1,
        # Else the host waits for the whole card at each message, which fails while another thread records a graph, as
        # it does to connect the groups of the next world.
        "batch_p2p_sync": False,
        "num_layers_in_first_pipeline_stage": split[0] if uneven else None,
        "num_layers_in_last_pipeline_stage": split[-1] if uneven else None,
    }


def interleaved(layout: Layout) -> int | None:
    """Return the layout's chunks a stage as megatron-core wants it said: None where a stage is one chunk."""
    return layout.vpp if layout.vpp > 1 else None


def own_part(sequence: int, ranks: int, rank: int) -> slice:
    """Return the part of a sequence of so many tokens that one of so many context parallel ranks computes."""
    return slice(rank * sequence // ranks, (rank + 1) * sequence // ranks)


def collection(world: ProcessGroups) -> Any:
    """Return the world's groups as a ``ProcessGroupCollection``."""
    groups = world.groups
    return ProcessGroupCollection(
        tp=groups["tp"],
        pp=groups["pp"],
        dp=groups["dp"],
        mp=groups["mp"],
        embd=groups.get("embd"),
        pos_embd=groups.get("pos_embd"),
        cp=groups["cp"],
        ep=groups["ep"],
        hcp=None,
        tp_cp=groups["tp_cp"],
        tp_ep=groups["tp_ep"],
        tp_ep_pp=groups["tp_ep_pp"],
        tp_dp_cp=groups["world"],
        dp_cp=groups["dp_cp"],
        expt_tp=groups["etp"],
        expt_dp=groups["edp"],
        intra_dp_cp=groups["dp_cp"],
        intra_expt_dp=groups["edp"],
        intra_dist_opt=groups["world"],
        inter_dist_opt=None,
    )


def make_live(world: ProcessGroups, seed: int) -> None:
    """Make ``world`` the process's live one: set torch's default group and megatron's globals.

    The globals are read by the vocabulary-parallel cross entropy, the memory buffer and the random states of dropout,
    which must exist even where there is no dropout.
    """
    set_default_group(world.groups["world"])
    groups, layout = world.groups, world.layout
    use_groups({"tp": groups["tp"], "cp": groups["cp"], "ep": groups["ep"], "tp_ep": groups["tp_ep"]})
    compat.set_globals(groups, {name: dist.get_process_group_ranks(group) for name, group in groups.items()})
    model_parallel_cuda_manual_seed(
        seed,
        tp_rank=world.place.tp,
        ep_rank=layout.coordinate("ep", world.rank),
        etp_rank=layout.coordinate("etp", world.rank),
        force_reset_rng=True,
    )
