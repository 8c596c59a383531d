"""Models as Megatron-LM's ``pretrain_gpt.py`` builds them of its arguments, of plain megatron-core."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from liver_slurm.engine.megatron import compat

with compat.imports():
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import (
        get_gpt_decoder_block_spec,
        get_gpt_layer_local_spec,
        get_gpt_layer_with_transformer_engine_spec,
    )
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer.moe import moe_utils
    from megatron.core.transformer.transformer_config import TransformerConfig

if not hasattr(moe_utils, "te_general_gemm"):
    moe_utils.te_general_gemm = None  # 0.16 asks for it where there is no Transformer Engine

SEQUENCE, VOCABULARY = 32, 300
_USUAL = {
    "num_layers": 4,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 8,
    "group_query_attention": False,
    "num_query_groups": 1,
    "kv_channels": 8,
    "seq_length": SEQUENCE,
    "max_position_embeddings": 48,
    "normalization": "LayerNorm",
    "norm_epsilon": 1e-5,
    "swiglu": False,
    "squared_relu": False,
    "openai_gelu": False,
    "bias_gelu_fusion": True,
    "add_bias_linear": True,
    "add_qkv_bias": False,
    "qk_layernorm": False,
    "position_embedding_type": "learned_absolute",
    "rotary_base": 10000,
    "rotary_percent": 1.0,
    "rotary_interleaved": False,
    "use_rope_scaling": False,
    "rope_scaling_factor": 8.0,
    "untie_embeddings_and_output_weights": False,
    "padded_vocab_size": 512,
    "vocab_size": None,
    "num_experts": None,
    "moe_layer_freq": 1,
    "moe_router_topk": 2,
    "moe_router_pre_softmax": False,
    "moe_router_score_function": "softmax",
    "moe_router_enable_expert_bias": False,
    "moe_router_load_balancing_type": "aux_loss",
    "moe_aux_loss_coeff": 0.0,
    "moe_z_loss_coeff": None,
    "moe_ffn_hidden_size": None,
    "moe_shared_expert_intermediate_size": None,
    "moe_shared_expert_gate": False,
    "multi_latent_attention": False,
    "apply_layernorm_1p": False,
    "transformer_impl": "local",
    "bf16": False,
    "params_dtype": torch.float32,
}
_LLAMA = {
    "group_query_attention": True,
    "num_query_groups": 4,
    "normalization": "RMSNorm",
    "swiglu": True,
    "add_bias_linear": False,
    "bias_gelu_fusion": False,
    "position_embedding_type": "rope",
    "untie_embeddings_and_output_weights": True,
}
_EXPERTS = {**_LLAMA, "num_experts": 4, "moe_ffn_hidden_size": 48}
MODELS: dict[str, dict[str, Any]] = {
    "gpt": {},
    "gpt-rope": {
        "position_embedding_type": "rope",
        "rotary_percent": 0.5,
        "bias_gelu_fusion": False,
        "untie_embeddings_and_output_weights": True,
        "padded_vocab_size": 304,
    },
    "llama": {**_LLAMA, "use_rope_scaling": True, "rotary_base": 500000},
    "qwen": {**_LLAMA, "add_qkv_bias": True, "qk_layernorm": True, "kv_channels": 16}
    | {"untie_embeddings_and_output_weights": False},
    "experts": {**_EXPERTS, "moe_shared_expert_intermediate_size": 80},
    "experts-sigmoid": {
        **_EXPERTS,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "untie_embeddings_and_output_weights": False,
    },
}
"""Their arguments, as far as they are not the usual ones."""
OPTIMIZERS = {"llama": "distributed", "gpt": "plain", "experts": "plain"}
"""Those that are trained, and the kind of their optimizer."""
LR, WEIGHT_DECAY, EPSILON = 1e-3, 0.1, 1e-5
"""With the usual epsilon, Adam would make much of what rounding leaves of gradients that are zero."""


def arguments(name: str, **others: Any) -> argparse.Namespace:
    """All arguments of one of them."""
    return argparse.Namespace(**{**_USUAL, **MODELS[name], **others})


def lay_out(tp: int, pp: int) -> None:
    """Give the ranks of the process group places in a layout."""
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tp, pp)
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)


def build(args: argparse.Namespace, engine: bool = False) -> Any:
    """Build this rank's part of a model, whose values are those of no other parameter, and the same in every layout.

    With ``engine`` its layers are Transformer Engine's; they have no experts.
    """
    experts = args.num_experts is not None
    config = TransformerConfig(
        num_layers=args.num_layers,
        hidden_size=args.hidden_size,
        ffn_hidden_size=args.ffn_hidden_size,
        num_attention_heads=args.num_attention_heads,
        num_query_groups=args.num_query_groups if args.group_query_attention else None,
        kv_channels=args.kv_channels,
        normalization=args.normalization,
        layernorm_epsilon=args.norm_epsilon,
        gated_linear_unit=args.swiglu,
        activation_func=torch.nn.functional.silu if args.swiglu else torch.nn.functional.gelu,
        bias_activation_fusion=not args.swiglu and args.bias_gelu_fusion,
        add_bias_linear=args.add_bias_linear,
        add_qkv_bias=args.add_qkv_bias,
        qk_layernorm=args.qk_layernorm,
        rotary_interleaved=args.rotary_interleaved,
        num_moe_experts=args.num_experts,
        moe_router_topk=args.moe_router_topk,
        moe_router_pre_softmax=args.moe_router_pre_softmax,
        moe_router_score_function=args.moe_router_score_function,
        moe_router_enable_expert_bias=args.moe_router_enable_expert_bias,
        moe_router_load_balancing_type=args.moe_router_load_balancing_type,
        moe_ffn_hidden_size=args.moe_ffn_hidden_size,
        moe_shared_expert_intermediate_size=args.moe_shared_expert_intermediate_size,
        moe_router_dtype="fp32" if experts else None,
        moe_token_dispatcher_type="allgather",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=args.bf16,
        params_dtype=args.params_dtype,
        pipeline_dtype=args.params_dtype,
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_model_parallel_size=parallel_state.get_pipeline_model_parallel_world_size(),
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
    )
    spec = (
        get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization=args.normalization)
        if experts
        else get_gpt_layer_with_transformer_engine_spec(qk_layernorm=args.qk_layernorm)
        if engine
        else get_gpt_layer_local_spec(qk_layernorm=args.qk_layernorm, normalization=args.normalization)
    )
    model = GPTModel(
        config,
        spec,
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=True,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
        rope_scaling=args.use_rope_scaling,
        rope_scaling_factor=args.rope_scaling_factor,
    )
    return model.to(args.params_dtype)


def tokens() -> torch.Tensor:
    """Tokens whose logits are compared."""
    return torch.randint(VOCABULARY, (2, SEQUENCE), generator=torch.Generator().manual_seed(3))


def batch(step: int) -> torch.Tensor:
    """Samples of a training step, [samples, tokens]."""
    return torch.randint(VOCABULARY, (2, SEQUENCE + 1), generator=torch.Generator().manual_seed(100 + step))


def forward(model: Any, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
    """Run a model without pipeline stages."""
    length = inputs.shape[1]
    positions = torch.arange(length).expand(inputs.shape)
    return model(inputs, positions, torch.ones(1, 1, length, length).triu(1).bool(), labels=labels)


def logits(model: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Logits [batch, sequence, padded vocabulary] of a model without pipeline stages."""
    model.eval()
    with torch.no_grad():
        found = gather_from_tensor_model_parallel_region(forward(model, inputs)).float()
    model.train()
    return found


class Training:
    """A model on one rank with an optimizer, ``plain`` or ``distributed``."""

    def __init__(self, model: Any, kind: str) -> None:
        distributed = kind == "distributed"
        config = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=distributed)
        self._model = DistributedDataParallel(model.config, config, model)
        adam = OptimizerConfig(
            optimizer="adam",
            lr=LR,
            min_lr=0.0,
            weight_decay=WEIGHT_DECAY,
            adam_beta1=0.9,
            adam_beta2=0.95,
            adam_eps=EPSILON,
            clip_grad=1.0,
            bf16=False,
            params_dtype=torch.float32,
            use_distributed_optimizer=distributed,
        )
        self.optimizer = get_megatron_optimizer(adam, [self._model])
        self.content = {"distrib_optim_sharding_type": "fully_reshardable"} if distributed else {}
        """What Megatron-LM notes down of how its state is saved."""

    def step(self, number: int) -> None:
        """Train on one batch."""
        samples = batch(number)
        self._model.zero_grad_buffer()
        self.optimizer.zero_grad()
        forward(self._model, samples[:, :-1], samples[:, 1:]).float().mean().backward()
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = LR, WEIGHT_DECAY * group["wd_mult"]
        done, *_ = self.optimizer.step()
        assert done
