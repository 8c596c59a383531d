"""Build the model that a job file describes, in any layout; on the meta device it costs no memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from liver_slurm.base.errors import BadInput, first_line
from liver_slurm.config.providers import load_function
from liver_slurm.config.schema import JobConfig, ModelSection
from liver_slurm.config.shapes import expert_width, padded_vocabulary
from liver_slurm.engine.megatron import compat
from liver_slurm.engine.megatron.attention_dropout import HeadStreams
from liver_slurm.engine.megatron.dense_layer import block_spec, dense_spec, gelu_tanh
from liver_slurm.engine.megatron.dimensions import interleaved, sizes
from liver_slurm.engine.megatron.dropout import EMBEDDING, Streams, drop
from liver_slurm.engine.megatron.expert_layer import add_biases, expert_spec, reduce_by_themselves
from liver_slurm.engine.megatron.loss import token_losses
from liver_slurm.parallel.layout import Layout

with compat.imports():
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.module import Float16Module
    from megatron.core.transformer.transformer_config import TransformerConfig

_ACTIVATIONS = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu-tanh": gelu_tanh,
    "relu": torch.nn.functional.relu,
}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class DecoderConfig(TransformerConfig):  # type: ignore[misc]
    """megatron-core's configuration, with what :class:`DenseLayer` asks for."""

    compile_layers: bool = False
    """Compile the layers' forward passes, and with them their backward passes."""
    recompute_layers: Literal["none", "selective", "full"] = "none"
    """What of a layer's activations is computed again in the backward pass: nothing, the MLP's, or all."""
    linear_in_fp8: bool = False
    """Compute the layers' matrix products in FP8, but for attention's own and those of experts."""
    reset_position_ids: bool = False
    """Count positions from the beginning of each document."""
    reset_attention_mask: bool = False
    """Let tokens attend to those of their own document only."""
    streams: Streams | None = None
    """What decides what the microbatch whose forward pass runs drops of hidden states."""
    head_streams: HeadStreams | None = None
    """What decides which attention weights it drops."""
    counted: bool = True
    """The tokens of the microbatch whose forward pass runs count, and so do the losses of their routing to experts."""


def is_dense(config: JobConfig, layout: Layout) -> bool:
    """Return whether the model consists of layers that :class:`DenseLayer` can run in this layout.

    ``model.extra`` may turn on anything that megatron-core has, and so may a provider; with fewer query groups than
    tensor parallel ranks, ranks share a group; and sequence parallelism needs a sequence that can be divided.
    """
    groups = config.model.query_groups
    usual = not config.model.extra and not config.model.provider
    return usual and groups >= layout.tp and config.train.seq_length % (layout.tp * layout.cp) == 0


def transformer_config(config: JobConfig, layout: Layout) -> Any:
    """Return megatron-core's ``TransformerConfig`` for this job in this layout.

    Raises:
        BadInput: it does not take what ``model.extra`` says.
    """
    try:
        return _decoder_config(config, layout)
    except (AssertionError, TypeError) as error:
        if not config.model.extra:
            raise
        raise BadInput(f"model.extra: megatron-core does not take it: {first_line(error)}") from error


def _decoder_config(config: JobConfig, layout: Layout) -> DecoderConfig:
    model, train, dtype = config.model, config.train, _DTYPES[config.train.precision]
    return DecoderConfig(
        **{
            "num_layers": model.num_layers,
            "hidden_size": model.hidden_size,
            "num_attention_heads": model.num_attention_heads,
            "num_query_groups": model.query_groups,
            "kv_channels": model.kv_channels,
            "ffn_hidden_size": model.ffn_width,
            "gated_linear_unit": model.gated_linear_unit,
            "activation_func": _ACTIVATIONS[model.activation_func],
            "add_bias_linear": model.add_bias_linear,
            "add_qkv_bias": model.add_qkv_bias,
            "qk_layernorm": model.qk_layernorm,
            "normalization": model.normalization,
            "layernorm_epsilon": model.layernorm_epsilon,
            "init_method_std": model.init_method_std,
            **_experts(model),
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "attention_softmax_in_fp32": True,
            **sizes(layout, model.num_layers),
            "sequence_parallel": layout.tp > 1 and is_dense(config, layout),
            "compile_layers": train.compile and torch.cuda.is_available(),
            "recompute_layers": train.recompute,
            "linear_in_fp8": train.fp8,
            "reset_position_ids": config.data.reset_position_ids,
            "reset_attention_mask": config.data.reset_attention_mask,
            "params_dtype": dtype,
            "pipeline_dtype": dtype,
            "bf16": dtype is torch.bfloat16,
            "calculate_per_token_loss": True,  # replicas may have uneven numbers of microbatches
            "use_cpu_initialization": True,
            # It marks parameters as tensor parallel, which the gradient norm needs; values come later, from the seed by
            # name or from another world, and to draw them even on the meta device takes half of the time of building.
            "perform_initialization": True,
            "init_method": _no_values,
            "output_layer_init_method": _no_values,
            # kernels that need Transformer Engine or Apex
            "gradient_accumulation_fusion": False,
            "masked_softmax_fusion": False,
            "bias_activation_fusion": False,
            "bias_dropout_fusion": False,
            "persist_layer_norm": False,
            **model.extra,
        }
    )


def _experts(model: ModelSection) -> dict[str, Any]:
    """Return the fields of ``TransformerConfig`` about experts."""
    if model.num_moe_experts is None:
        return {}
    return {
        "num_moe_experts": model.num_moe_experts,
        "moe_router_topk": model.moe_router_topk,
        "moe_router_pre_softmax": model.moe_router_pre_softmax,
        "moe_router_score_function": model.moe_router_score_function,
        "moe_ffn_hidden_size": expert_width(model),
        "moe_aux_loss_coeff": model.moe_aux_loss_coeff,
        "moe_z_loss_coeff": model.moe_z_loss_coeff,
        "moe_shared_expert_intermediate_size": model.moe_shared_expert_intermediate_size,
        "moe_shared_expert_gate": model.moe_shared_expert_gate,
        "moe_router_dtype": "fp32",
    }


def _no_values(weight: torch.Tensor) -> torch.Tensor:
    """Return an ``init_method`` that leaves the weight as it is."""
    return weight


def build_model(
    config: JobConfig, groups: Any, layout: Layout, pp_rank: int, device: str = "meta"
) -> tuple[Any, list[torch.nn.Module]]:
    """Build one rank's part of the model, with uninitialised weights.

    Args:
        groups: the world's ``ProcessGroupCollection``.
        pp_rank: pipeline stage to build.
        device: ``meta``, or where to allocate.

    Returns:
        the ``TransformerConfig``, and the chunks of the model, each wrapped in ``Float16Module`` for bf16.
    """
    transformer = transformer_config(config, layout)
    # With its group, a tied embedding is all-reduced between first and last stage when it is built. The weights do not
    # exist yet, and the target's peers must not be waited for here.
    embedding_group, groups.embd = groups.embd, None
    try:
        with torch.device(device):
            chunks = [_chunk(config, transformer, groups, layout, stage) for stage in layout.chunks(pp_rank)]
    finally:
        groups.embd = embedding_group
    for inner in map(unwrap, chunks):
        if hasattr(inner, "embd_group"):
            inner.embd_group = embedding_group
    return transformer, chunks


def _chunk(config: JobConfig, transformer: Any, groups: Any, layout: Layout, stage: int) -> torch.nn.Module:
    """Return one virtual stage of the model."""
    if config.model.provider:
        model = load_function(config.model.provider)(
            pre_process=stage == 0,
            post_process=stage == layout.virtual_stages - 1,
            config=transformer,
            pg_collection=groups,
            job=config,
        )
        _refuse_histories(model)
    else:
        model = _gpt(config, transformer, groups, layout, stage)
    chunk = Float16Module(transformer, model) if config.train.precision == "bf16" else model
    if balance_rate(config.model):
        add_biases(chunk, transformer.sequence_parallel)
    if layout.etp != layout.tp:
        reduce_by_themselves(chunk)
    return chunk


def _refuse_histories(model: Any) -> None:
    """Check that a model of the user's own keeps no scales from step to step, which are no parameters.

    Raises:
        BadInput: it is in Transformer Engine's FP8 with delayed scaling.
    """
    configs = [getattr(module, "config", None) for module in model.modules()]
    if any(getattr(its, "fp8", None) and getattr(its, "fp8_recipe", "delayed") == "delayed" for its in configs):
        raise BadInput(
            'model.provider: its model has fp8_recipe "delayed", whose histories of scales are no parameters, so that '
            'nothing would move them; allowed: "tensorwise" or "blockwise", which keep none'
        )


def balance_rate(model: ModelSection) -> float:
    """Return how far a step moves the biases of experts; 0: there are none."""
    return model.moe_router_bias_update_rate if model.moe_router_enable_expert_bias else 0.0


def _gpt(config: JobConfig, transformer: Any, groups: Any, layout: Layout, stage: int) -> Any:
    size, last, dense = vocabulary(config), stage == layout.virtual_stages - 1, is_dense(config, layout)
    chunk, pp_rank = divmod(stage, layout.pp)
    vp_stage = chunk if interleaved(layout) else None
    if dense:
        layer = expert_spec(transformer) if config.model.num_moe_experts else dense_spec(transformer)
        spec = block_spec(layer, transformer, pp_rank, vp_stage)
    else:
        spec = get_gpt_layer_local_spec(
            normalization=config.model.normalization, qk_layernorm=config.model.qk_layernorm
        )
    section, scaling = config.model, config.model.rope_scaling_factor
    model = GPTModel(
        transformer,
        spec,
        vocab_size=padded_vocabulary(size),
        max_sequence_length=section.max_position_embeddings or config.train.seq_length,
        pre_process=stage == 0,
        post_process=last,
        parallel_output=True,
        share_embeddings_and_output_weights=section.share_embeddings_and_output_weights,
        position_embedding_type=section.position_embedding_type,
        rotary_percent=section.rotary_percent,
        rotary_base=section.rotary_base,
        rope_scaling=scaling is not None,
        rope_scaling_factor=scaling or 1.0,
        pg_collection=groups,
        vp_stage=vp_stage,
    )
    if stage == 0 and section.hidden_dropout:
        model.embedding.register_forward_hook(partial(_dropped, transformer))
    if section.position_embedding_type == "rope":
        model.rotary_pos_emb.cp_group = None  # megatron would cut them up on a card; DenseLayer takes what it needs
    if last:
        rows = padded_vocabulary(size) // groups.tp.size()
        real = min(max(size - groups.tp.rank() * rows, 0), rows)
        # megatron's own loss copies the logits to fp32, and keeps the copy for the backward pass.
        model.compute_language_model_loss = partial(
            _loss, real, groups.tp, transformer.compile_layers, config.train.z_loss_coeff
        )
    return model


def _dropped(config: DecoderConfig, _embedding: Any, _tokens: Any, states: torch.Tensor) -> torch.Tensor:
    """Drop some of the embedding's output; its forward hook."""
    streams = config.streams
    return states if streams is None else drop(states, streams._replace(keys=streams.keys[EMBEDDING]), 0)


def _loss(
    real: int, tp: Any, compiled: bool, z_loss: float, labels: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """Return the losses [batch, sequence] of logits [sequence, batch, rows] and labels [batch, sequence]."""
    losses = token_losses(logits, labels.transpose(0, 1).contiguous(), real, tp, compiled, z_loss)
    return losses.transpose(0, 1)


def vocabulary(config: JobConfig) -> int:
    """Return the size of the model's vocabulary: the job file's, else the tokenizer's."""
    if config.model.vocab_size is not None:
        return config.model.vocab_size
    from liver_slurm.engine.data.tokenizers import load_tokenizer

    return load_tokenizer(config.data.tokenizer).vocab_size


def unwrap(model: Any) -> Any:
    """Return the model inside ``Float16Module`` and ``DistributedDataParallel``."""
    while hasattr(model, "module"):
        model = model.module
    return model


def named_parameters(chunks: Sequence[Any]) -> dict[str, torch.nn.Parameter]:
    """Return the parameters of a rank by their local names, which begin with the chunk's number if there are several.

    Whatever wraps the chunks has no part in the names.
    """
    named = [dict(unwrap(chunk).named_parameters()) for chunk in chunks]
    if len(named) == 1:
        return named[0]
    return {f"{number}.{name}": each for number, names in enumerate(named) for name, each in names.items()}


def materialise(model: torch.nn.Module, device: torch.device, hollow: bool = False) -> None:
    """Give every meta parameter uninitialised storage on ``device``, in place.

    ``Module.to_empty`` would drop the attributes that megatron keeps on parameters, and untie shared ones.

    Args:
        hollow: trained parameters get storage elsewhere soon; until then all their elements share one.
    """
    replaced: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) not in replaced:
                if hollow and parameter.requires_grad:
                    values = torch.zeros((), dtype=parameter.dtype, device=device).expand(parameter.shape)
                else:
                    values = torch.empty_like(parameter, device=device)
                real = torch.nn.Parameter(values, requires_grad=parameter.requires_grad)
                real.__dict__.update(parameter.__dict__)
                replaced[id(parameter)] = real
            module.register_parameter(name, replaced[id(parameter)])
