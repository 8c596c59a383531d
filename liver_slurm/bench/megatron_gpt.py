"""``python -m liver_slurm.bench.megatron_gpt``: the same model trained with megatron-core alone, as a baseline.

What Megatron-LM does on one device: with Transformer Engine's layers and optimizer where that is installed, in FP8 by
its ``--fp8-format hybrid --fp8-recipe tensorwise`` if that is asked for, and with megatron-core's own layers elsewhere.
It reads a JSON document with the shape on its standard input and prints one with the times of its steps.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from liver_slurm.bench.machine import has_transformer_engine
from liver_slurm.bench.plain_gpt import EPSILON, Shape, timed_steps
from liver_slurm.config.shapes import padded_vocabulary
from liver_slurm.engine.megatron import compat

with compat.imports():
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import (
        get_gpt_layer_local_spec,
        get_gpt_layer_with_transformer_engine_spec,
    )
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer.module import Float16Module
    from megatron.core.transformer.transformer_config import TransformerConfig


def train(shape: Shape) -> dict[str, Any]:
    """Return the seconds of each step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)
    config = _config(shape, device)
    model = _model(shape, config, device)
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=1e-4,
            bf16=config.bf16,
            params_dtype=config.params_dtype,
            use_distributed_optimizer=True,
            clip_grad=1.0,
        ),
        [model],
    )
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    run = get_forward_backward_func()

    def step() -> None:
        model.zero_grad_buffer()
        optimizer.zero_grad()
        run(
            forward_step_func=_forward,
            data_iterator=_batches(shape, device),
            model=[model],
            num_microbatches=shape.global_batch // shape.micro_batch,
            seq_length=shape.sequence,
            micro_batch_size=shape.micro_batch,
            forward_only=False,
        )
        optimizer.step()

    return {"seconds": timed_steps(step, shape.steps, device)}


def _config(shape: Shape, device: torch.device) -> Any:
    fused, engine = device.type == "cuda", has_transformer_engine()
    eight = {"fp8": "hybrid", "fp8_recipe": "tensorwise"} if shape.fp8 else {}
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_query_groups=shape.groups,
        ffn_hidden_size=shape.feed_forward,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        normalization="RMSNorm",
        layernorm_epsilon=EPSILON,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=shape.bf16,
        params_dtype=torch.bfloat16 if shape.bf16 else torch.float32,
        use_cpu_initialization=not fused,
        gradient_accumulation_fusion=False,  # of the output layer's weight, which has no bias, only Apex' kernel could
        masked_softmax_fusion=False,
        bias_activation_fusion=fused,
        bias_dropout_fusion=fused,
        apply_rope_fusion=engine,
        cross_entropy_loss_fusion=fused,
        cross_entropy_fusion_impl="te" if engine else "native",
        **eight,
    )


def _model(shape: Shape, config: Any, device: torch.device) -> Any:
    inner = GPTModel(
        config,
        get_gpt_layer_with_transformer_engine_spec()
        if has_transformer_engine()
        else get_gpt_layer_local_spec(normalization=config.normalization),
        vocab_size=padded_vocabulary(shape.vocabulary),
        max_sequence_length=shape.sequence,
        share_embeddings_and_output_weights=shape.tied,
        position_embedding_type="rope",
    ).to(device)
    return DistributedDataParallel(
        config,
        DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True),
        Float16Module(config, inner) if shape.bf16 else inner,
    )


def _batches(shape: Shape, device: torch.device) -> Iterator[Tensor]:
    while True:
        yield torch.randint(0, shape.vocabulary, (shape.micro_batch, shape.sequence + 1), device=device)


def _forward(batches: Iterator[Tensor], model: Any) -> tuple[Tensor, Any]:
    tokens = next(batches)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    positions = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
    return model(inputs, positions, None, labels=labels), _loss


def _loss(losses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    mean = losses.float().mean()
    return mean, {"loss": mean.detach()}


if __name__ == "__main__":
    print(json.dumps(train(Shape(**json.load(sys.stdin)))))
