"""Compatibility with versions of megatron-core: how its names are imported, and every private name that is used.

Whatever of megatron-core is imported is imported like this::

    from liver_slurm.engine.megatron import compat

    with compat.imports():
        from megatron.core.transformer.module import Float16Module

A name that the installed version lacks, private or not, then ends the command with one line. What differs between
versions is told apart by what they have, not by their numbers.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import sys
from collections.abc import Iterator, Mapping
from functools import reduce
from types import ModuleType
from typing import Any

from liver_slurm.base.errors import BadInput
from liver_slurm.engine.megatron.without_cuda import PREFIX, install

KNOWN = "0.16 to 0.19"
"""Versions that have been seen to work; docs/contributing.md says how to try another."""

_GROUPS = {
    "TENSOR_MODEL_PARALLEL_GROUP": "tp",
    "PIPELINE_MODEL_PARALLEL_GROUP": "pp",
    "MODEL_PARALLEL_GROUP": "mp",
    "EMBEDDING_GROUP": "embd",
    "POSITION_EMBEDDING_GROUP": "pos_embd",
    "DATA_PARALLEL_GROUP": "dp",
    "DATA_PARALLEL_GROUP_WITH_CP": "dp_cp",
    "INTRA_PARTIAL_DATA_PARALLEL_GROUP_WITH_CP": "dp_cp",
    "CONTEXT_PARALLEL_GROUP": "cp",
    "EXPERT_MODEL_PARALLEL_GROUP": "ep",
    "EXPERT_TENSOR_PARALLEL_GROUP": "etp",
    "EXPERT_DATA_PARALLEL_GROUP": "edp",
    "TENSOR_AND_CONTEXT_PARALLEL_GROUP": "tp_cp",
    "TENSOR_AND_DATA_PARALLEL_GROUP": "world",
    "TENSOR_AND_DATA_PARALLEL_GROUP_WITH_CP": "world",
    "EXPERT_TENSOR_AND_MODEL_PARALLEL_GROUP": "tp_ep",
    "EXPERT_TENSOR_MODEL_PIPELINE_PARALLEL_GROUP": "tp_ep_pp",
    "INTRA_DISTRIBUTED_OPTIMIZER_INSTANCE_GROUP": "world",
}
"""Groups that megatron-core keeps as globals of ``parallel_state``, without their underscore, and which of ours each
is."""
_RANKS = {
    "TENSOR_MODEL_PARALLEL_GLOBAL_RANKS": "tp",
    "PIPELINE_GLOBAL_RANKS": "pp",
    "DATA_PARALLEL_GLOBAL_RANKS": "dp",
    "MODEL_PARALLEL_GLOBAL_RANKS": "mp",
    "EMBEDDING_GLOBAL_RANKS": "embd",
    "POSITION_EMBEDDING_GLOBAL_RANKS": "pos_embd",
}
"""Members of groups that it keeps there."""
_NEWER_GROUPS = {
    "DATA_PARALLEL_GROUP_WITH_GTP_REMAT": "dp",
    "DATA_PARALLEL_GROUP_WITH_CP_WITH_GTP_REMAT": "dp_cp",
    "INTRA_PARTIAL_DATA_PARALLEL_GROUP_WITH_CP_WITH_GTP_REMAT": "dp",
    "EXPERT_DATA_PARALLEL_GROUP_WITH_GTP_REMAT": "edp",
    "INTRA_PARTIAL_EXPERT_DATA_PARALLEL_GROUP_WITH_GTP_REMAT": "edp",
    "EXPERT_TENSOR_MODEL_PIPELINE_PARALLEL_GROUP_WITH_EGTP": "tp_ep_pp",
}
"""Groups that 0.19 and newer ask for where older versions ask for those above; set where they exist."""
_STATE = "parallel_state"
_OPTIMIZER = "optimizer.distrib_optimizer"
_NEEDED = (
    *((_STATE, f"_{name}") for name in (*_GROUPS, *_RANKS, "GLOBAL_MEMORY_BUFFER")),
    (_STATE, "_set_global_memory_buffer"),
    ("datasets.indexed_dataset", "_INDEX_HEADER"),
    ("models.common.language_module.language_module", "parallel_state"),
    *(("optimizer", name) for name in ("Adam", "SGD", "USING_PYTORCH_OPTIMIZER")),
    (_OPTIMIZER, "Adam"),
    (_OPTIMIZER, "HAVE_APEX_OR_TE"),
    (_OPTIMIZER, "DistributedOptimizer._get_model_param_range_map"),
    (_OPTIMIZER, "DistributedOptimizer._get_main_param_and_optimizer_states"),
    (_OPTIMIZER, "DistributedOptimizer._copy_main_params_to_model_params"),
    ("optimizer.optimizer", "Float16OptimizerWithFloat16Params._copy_main_params_to_model_params"),
    ("optimizer.clip_grads", "multi_tensor_applier"),
    ("optimizer.clip_grads", "l2_norm_impl"),
    ("optimizer.clip_grads", "multi_tensor_scale_impl"),
)
"""Private names, and names that megatron-core's modules have only for themselves: module, and path in it."""


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Run a block that imports names of megatron-core: where CUDA is absent, through the hook of ``without_cuda``.

    Raises:
        BadInput: the installed version lacks one of these names, or a private name in a module imported so far; or
            there is no megatron-core.
        RuntimeError: see :func:`liver_slurm.engine.megatron.without_cuda.install`.
    """
    install()
    try:
        yield
    except ImportError as error:
        raise BadInput(_lacks(error)) from error
    check_private_names()


def check_private_names() -> None:
    """Check that modules of megatron-core that have been imported have the private names that the product needs.

    Raises:
        BadInput: one of them is missing.
    """
    for name, path in _NEEDED:
        module = sys.modules.get(PREFIX + name)
        if module is not None:
            reduce(_part, path.split("."), module)


def _part(whole: Any, name: str) -> Any:
    """Return an attribute of a module, class or object of megatron-core.

    Raises:
        BadInput: the installed version does not have it.
    """
    try:
        return getattr(whole, name)
    except AttributeError:
        place = whole.__name__ if isinstance(whole, (type, ModuleType)) else type(whole).__name__
        raise BadInput(_unknown(f"{place.removeprefix(PREFIX)}.{name}")) from None


def _lacks(error: ImportError) -> str:
    """Return what to say of an import that failed."""
    module = error.name or ""
    if module in ("megatron", "megatron.core"):
        return f"megatron-core is not installed; known to work: {KNOWN}"
    if not module.startswith(PREFIX):
        return f"megatron-core {_version()} cannot be imported: {error}; known to work: {KNOWN}"
    name = re.search(r"cannot import name '(\w+)'", str(error))
    return _unknown(module.removeprefix(PREFIX) + (f".{name[1]}" if name else ""))


def _unknown(what: str) -> str:
    return f"megatron-core {_version()} has no {what}, which is needed here; known to work: {KNOWN}"


def _version() -> str:
    try:
        return importlib.metadata.version("megatron-core")
    except importlib.metadata.PackageNotFoundError:
        return "(a copy that says no version)"


def index_header() -> bytes:
    """Return the first bytes of an indexed dataset's .idx file."""
    from megatron.core.datasets import indexed_dataset

    header: bytes = indexed_dataset._INDEX_HEADER
    return header


def fix_replica_of_embeddings() -> None:
    """Let a tied embedding's sharded state dict name data parallel replica 0, whatever megatron's globals are.

    It asks them for a replica id, which is not used here; they may be unset, or another world's.
    """
    from megatron.core import parallel_state
    from megatron.core.models.common.language_module import language_module

    class Replica0:
        def __getattr__(self, name: str) -> Any:
            return getattr(parallel_state, name)

        def get_data_parallel_rank(self, *_arguments: Any, **_options: Any) -> int:
            return 0

    language_module.parallel_state = Replica0()


def set_globals(groups: Mapping[str, Any], ranks: Mapping[str, list[int]]) -> None:
    """Set the globals of ``parallel_state`` that parts of megatron-core still read.

    Args:
        groups, ranks: this rank's process groups and their members, by our names; a global whose group is not among
            them becomes None.
    """
    from megatron.core import parallel_state

    state = vars(parallel_state)
    for name, group in (*_GROUPS.items(), *((new, ours) for new, ours in _NEWER_GROUPS.items() if f"_{new}" in state)):
        state[f"_{name}"] = groups.get(group)
    for name, group in _RANKS.items():
        state[f"_{name}"] = ranks.get(group)
    if parallel_state._GLOBAL_MEMORY_BUFFER is None:
        parallel_state._set_global_memory_buffer()


def distributed_state(optimizer: Any, parameter: Any) -> tuple[Any, dict[str, Any]] | None:
    """Return a distributed optimizer's share of a parameter; None: it has none on this rank.

    Returns:
        the range (``start``, ``end``) of the flat parameter, and by name the tensors ``param`` (fp32 master),
        the moments of these elements, as the optimizer calls them.
    """
    if parameter not in _part(optimizer, "model_param_gbuf_map"):
        return None
    share = optimizer._get_model_param_range_map(parameter)["param"]
    tensors: dict[str, Any] = optimizer._get_main_param_and_optimizer_states(parameter)
    return share, tensors


def copy_masters_to_weights(optimizer: Any) -> None:
    """Copy an optimizer's fp32 masters to the model's weights, where it keeps them apart."""
    if hasattr(optimizer, "_copy_main_params_to_model_params"):
        optimizer._copy_main_params_to_model_params()


def use_torch_optimizers() -> None:
    """Have megatron-core make torch's AdamW and SGD, where it would take Transformer Engine's or Apex' as well.

    Receivers of state and mirrors make updates again, bit for bit, by torch's rules. megatron-core refuses torch's SGD
    to its distributed optimizer only for its own checkpoints.
    """
    import torch
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    optimizer.Adam, optimizer.SGD, optimizer.USING_PYTORCH_OPTIMIZER = torch.optim.AdamW, torch.optim.SGD, True
    distrib_optimizer.Adam, distrib_optimizer.HAVE_APEX_OR_TE = (torch.optim.AdamW, torch.optim.SGD), False


def norm_in_few_launches() -> None:
    """Have megatron-core norm and scale all gradients in one call each, the same whatever is installed.

    Its own replacement for kernels of Apex or Transformer Engine launches two for each parameter.
    """
    import torch
    from megatron.core.optimizer import clip_grads

    def applier(operation: Any, overflow: Any, tensors: Any, *arguments: Any) -> Any:
        return operation(overflow, tensors, *arguments)

    def l2_norm(_overflow: Any, tensors: Any, _per_tensor: bool) -> tuple[Any, None]:
        return torch.stack(torch._foreach_norm(tensors[0])).norm().view(1), None

    def scale(_overflow: Any, tensors: Any, factor: float) -> None:
        torch._foreach_mul_(tensors[1], factor)  # from and to are the same tensors

    clip_grads.multi_tensor_applier, clip_grads.l2_norm_impl, clip_grads.multi_tensor_scale_impl = (
        applier,
        l2_norm,
        scale,
    )
