"""Build the model that a job file describes, in any layout; on the meta device it costs no memory."""

from __future__ import annotations

import math
from typing import Any

import torch

from liver_slurm.config.layouts import padded_vocabulary, stage_layers
from liver_slurm.config.providers import load_function
from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.megatron import compat
from liver_slurm.parallel.layout import Layout

compat.install()

from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.transformer.module import Float16Module  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

_ACTIVATIONS = {"silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu, "relu": torch.nn.functional.relu}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def transformer_config(config: JobConfig, layout: Layout) -> Any:
    """megatron-core's ``TransformerConfig`` for this job in this layout."""
    model, dtype = config.model, _DTYPES[config.train.precision]
    split = stage_layers(model.num_layers, layout.pp)
    uneven = len(set(split)) > 1
    return TransformerConfig(
        **{
            "num_layers": model.num_layers,
            "hidden_size": model.hidden_size,
            "num_attention_heads": model.num_attention_heads,
            "num_query_groups": model.num_query_groups or model.num_attention_heads,
            "kv_channels": model.kv_channels,
            "ffn_hidden_size": model.ffn_hidden_size or 4 * model.hidden_size,
            "gated_linear_unit": model.gated_linear_unit,
            "activation_func": _ACTIVATIONS[model.activation_func],
            "add_bias_linear": model.add_bias_linear,
            "add_qkv_bias": model.add_qkv_bias,
            "normalization": model.normalization,
            "layernorm_epsilon": model.layernorm_epsilon,
            "init_method_std": model.init_method_std,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "attention_softmax_in_fp32": True,
            "tensor_model_parallel_size": layout.tp,
            "pipeline_model_parallel_size": layout.pp,
            "num_layers_in_first_pipeline_stage": split[0] if uneven else None,
            "num_layers_in_last_pipeline_stage": split[-1] if uneven else None,
            "params_dtype": dtype,
            "pipeline_dtype": dtype,
            "bf16": dtype is torch.bfloat16,
            "calculate_per_token_loss": True,  # replicas may have uneven numbers of microbatches
            "use_cpu_initialization": True,
            # On the meta device this costs nothing, and it marks parameters as tensor parallel, which the gradient norm
            # needs; values come later, from the seed by name or from another world.
            "perform_initialization": True,
            # kernels that need Transformer Engine or Apex
            "gradient_accumulation_fusion": False,
            "masked_softmax_fusion": False,
            "bias_activation_fusion": False,
            "bias_dropout_fusion": False,
            "persist_layer_norm": False,
            **model.extra,
        }
    )


def build_model(
    config: JobConfig, groups: Any, layout: Layout, pp_rank: int, device: str = "meta"
) -> tuple[Any, torch.nn.Module]:
    """Build one rank's part of the model, with uninitialised weights.

    Args:
        groups: the world's ``ProcessGroupCollection``.
        pp_rank: pipeline stage to build.
        device: ``meta``, or where to allocate.

    Returns:
        the ``TransformerConfig``, and the model, wrapped in ``Float16Module`` for bf16.
    """
    transformer = transformer_config(config, layout)
    first, last = pp_rank == 0, pp_rank == layout.pp - 1
    # With its group, a tied embedding is all-reduced between first and last stage when it is built. The weights do not
    # exist yet, and the target's peers must not be waited for here.
    embedding_group, groups.embd = groups.embd, None
    try:
        with torch.device(device):
            if config.model.provider:
                model = load_function(config.model.provider)(
                    pre_process=first, post_process=last, config=transformer, pg_collection=groups, job=config
                )
            else:
                model = _gpt(config, transformer, groups, first, last)
            if config.train.precision == "bf16":
                model = Float16Module(transformer, model)
    finally:
        groups.embd = embedding_group
    inner = unwrap(model)
    if hasattr(inner, "embd_group"):
        inner.embd_group = embedding_group
    return transformer, model


def _gpt(config: JobConfig, transformer: Any, groups: Any, first: bool, last: bool) -> Any:
    size = vocabulary(config)
    model = GPTModel(
        transformer,
        get_gpt_layer_local_spec(normalization=config.model.normalization),
        vocab_size=padded_vocabulary(size),
        max_sequence_length=config.train.seq_length,
        pre_process=first,
        post_process=last,
        parallel_output=True,
        share_embeddings_and_output_weights=config.model.share_embeddings_and_output_weights,
        position_embedding_type="rope",
        rotary_percent=config.model.rotary_percent,
        rotary_base=config.model.rotary_base,
        pg_collection=groups,
    )
    if last:
        rows = padded_vocabulary(size) // groups.tp.size()
        real = min(max(size - groups.tp.rank() * rows, 0), rows)
        if real < rows:
            model.output_layer.register_forward_hook(_without_padding(real))
    return model


def _without_padding(real: int) -> Any:
    """Forward hook that takes the padding rows of the vocabulary out of the softmax, so that they are never trained."""

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        logits, bias = output
        logits[..., real:] = -math.inf
        return logits, bias

    return hook


def vocabulary(config: JobConfig) -> int:
    """Size of the model's vocabulary: the job file's, else the tokenizer's."""
    if config.model.vocab_size is not None:
        return config.model.vocab_size
    from liver_slurm.engine.data.tokenizers import load_tokenizer

    return load_tokenizer(config.data.tokenizer).vocab_size


def unwrap(model: Any) -> Any:
    """The model inside ``Float16Module`` and ``DistributedDataParallel``."""
    while hasattr(model, "module"):
        model = model.module
    return model


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
