"""The tensors of a model, as megatron-core itself says that it has them, cut into units of a layer and an expert."""

from __future__ import annotations

from liver_slurm.base.errors import BadInput
from liver_slurm.config.layouts import impossible
from liver_slurm.config.problem import one_line
from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.hf.tensors import Unit
from liver_slurm.engine.megatron.spec import world_spec
from liver_slurm.parallel.layout import Layout

ONE = Layout(1, 1, 1)
_EXPERTS = ".experts.experts."


def units_of(config: JobConfig) -> list[Unit]:
    """Return all units of a job's model, those of a layer's tensor one after the other.

    Raises:
        BadInput: megatron-core can build no such model.
    """
    if reason := impossible(ONE, config.model, config.data, config.train):
        raise BadInput(f"there can be no such model: {reason}")
    try:
        weights = world_spec(config, ONE).weights
    except (ValueError, AssertionError) as error:
        raise BadInput(f"megatron-core refuses such a model: {one_line(error)}") from None
    found = []
    for name, info in weights.items():
        layers: list[int | None] = [*range(info.shape[0])] if info.layered else [None]
        stacked = info.layered and _EXPERTS in name
        experts: list[int | None] = [*range(info.shape[1])] if stacked else [None]
        found += [Unit(name, info.shape, layer, (), expert) for layer in layers for expert in experts]
    return found
