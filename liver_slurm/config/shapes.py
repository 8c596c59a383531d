"""Sizes of a model's parts that follow from its section, and how its layers are split over stages. Pure."""

from __future__ import annotations

from liver_slurm.config.schema import ModelSection

BYTE_VOCABULARY = 257
"""Tokens of the tokenizer ``byte``: the bytes, and the end of a document."""
VOCABULARY_MULTIPLE = 128
"""The vocabulary is padded to a multiple of this, whatever tp is: every layout has the same global shapes."""


def padded_vocabulary(size: int) -> int:
    """Count the rows of the embedding for a vocabulary of ``size`` tokens."""
    return -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def head_width(model: ModelSection) -> int:
    """Give the width of one attention head; 0 where a model provider leaves the sizes out."""
    return model.kv_channels or model.hidden_size // max(1, model.num_attention_heads)


def expert_width(model: ModelSection) -> int:
    """Give the width of one expert."""
    return model.moe_ffn_hidden_size or model.ffn_width


def expert_weights(model: ModelSection) -> int:
    """Count the parameters of one expert of one layer."""
    return (3 if model.gated_linear_unit else 2) * model.hidden_size * expert_width(model)


def idle_expert_weights(model: ModelSection) -> int:
    """Count the parameters of experts, over all layers, that a token does not meet."""
    idle = max(0, (model.num_moe_experts or 0) - model.moe_router_topk)
    return model.num_layers * idle * expert_weights(model)


def stage_layers(layers: int, stages: int) -> list[int]:
    """Split layers over pipeline stages: equally if possible, else the most even split that megatron-core can express.

    It can give the first and the last stage numbers of their own; all stages between have the same.
    """
    if layers < stages:
        raise ValueError(f"{layers} layers cannot fill {stages} pipeline stages")
    if stages == 1 or layers % stages == 0:
        return [layers // stages] * stages
    if stages == 2:
        return [layers - layers // 2, layers // 2]
    splits = []
    for middle in range(1, (layers - 2) // (stages - 2) + 1):
        ends = layers - middle * (stages - 2)
        splits.append([ends - ends // 2, *[middle] * (stages - 2), ends // 2])
    return min(splits, key=lambda split: (max(split), max(split) - min(split)))
