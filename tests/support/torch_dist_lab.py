"""Checkpoints whose every value is another, to be exported and imported again."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from checkpoint_files import tensors

from liver_slurm.config.schema import DataSection, JobConfig, ModelSection, TrainSection
from liver_slurm.engine.foreign import publish_import
from liver_slurm.engine.hf.importing import box_of
from liver_slurm.engine.torch_dist.table import units_of
from liver_slurm.reshard.tensors import ADAM
from liver_slurm.rundir.checkpoints import checkpoint_path
from liver_slurm.rundir.start import import_meta

DENSE = ModelSection(
    num_layers=2, hidden_size=32, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=48, vocab_size=300
)
EXPERTS = replace(
    DENSE,
    num_moe_experts=4,
    moe_ffn_hidden_size=16,
    moe_router_score_function="sigmoid",
    moe_router_enable_expert_bias=True,
    moe_shared_expert_intermediate_size=32,
    moe_shared_expert_gate=True,
)
BIASED = replace(
    DENSE,
    num_query_groups=None,
    normalization="LayerNorm",
    gated_linear_unit=False,
    activation_func="gelu",
    add_bias_linear=True,
    position_embedding_type="learned_absolute",
    max_position_embeddings=24,
    share_embeddings_and_output_weights=False,
)


def job(model: ModelSection) -> JobConfig:
    """A job of a model."""
    train = TrainSection(steps=9, seq_length=16, global_batch_size=2)
    return JobConfig(model=model, data=DataSection(paths=("nowhere",)), train=train)


def checkpoint(folder: Path, config: JobConfig, dtype: torch.dtype = torch.float32, moments: bool = False) -> Path:
    """A checkpoint of step 5, whose every value is another."""
    torch.manual_seed(1)
    units, path = units_of(config), checkpoint_path(folder, 5)
    kinds = ("", *(f"@{name}" for name in ADAM if moments))
    boxes = []
    for kind in kinds:
        for unit in units:
            fp32 = kind or unit.tensor.endswith("expert_bias")
            values = torch.randn(unit.shape, dtype=torch.float32).to(torch.float32 if fp32 else dtype)
            if unit.tensor in ("embedding.word_embeddings.weight", "output_layer.weight"):
                values[config.model.vocab_size :] = 0.0
            boxes.append(box_of(unit, f"{unit.tensor}{kind}", values))
    shapes = {f"{unit.tensor}{kind}": unit.whole for unit in units for kind in kinds}
    publish_import(path, boxes, shapes, {**import_meta(config.model, None), "step": 5}, steps=4)
    return path


def same(one: Path, other: Path) -> bool:
    """Whether two checkpoints have the same tensors."""
    expected, found = tensors(one), tensors(other)
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]) for name in expected
    )


def common_of(file: Path) -> dict[str, Any]:
    """What a file ``common.pt`` says, as Megatron-LM reads it."""
    with torch.serialization.safe_globals([Namespace]):
        found: dict[str, Any] = torch.load(file, weights_only=True)
    return found
