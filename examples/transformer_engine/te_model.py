"""megatron-core's GPT with Transformer Engine's layers, for jobs on cards: ``model.provider = "te_model:model"``.

``te_model:model_in_fp8`` computes them in FP8, each tensor scaled by its own greatest magnitude in each product.
Delayed scaling would keep histories that are no parameters, and is refused.
"""

from __future__ import annotations

from typing import Any

from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

_RANDOM = "model-parallel-rng"


def model(*, pre_process: bool, post_process: bool, config: Any, pg_collection: Any, job: Any) -> GPTModel:
    """Return one rank's part of the model; see examples/own_model for the arguments.

    Layers are built on the meta device, where values cost nothing; they come later, by name.
    """
    config.use_cpu_initialization, config.init_model_with_meta_device = False, True
    config.apply_rope_fusion = True
    if _RANDOM not in get_cuda_rng_tracker().get_states():
        get_cuda_rng_tracker().add(_RANDOM, job.train.seed)
    section = job.model
    return GPTModel(
        config,
        get_gpt_layer_with_transformer_engine_spec(qk_layernorm=section.qk_layernorm),
        vocab_size=section.vocab_size,
        max_sequence_length=job.train.seq_length,
        pre_process=pre_process,
        post_process=post_process,
        parallel_output=True,
        share_embeddings_and_output_weights=section.share_embeddings_and_output_weights,
        position_embedding_type="rope",
        rotary_percent=section.rotary_percent,
        rotary_base=section.rotary_base,
        pg_collection=pg_collection,
    )


def model_in_fp8(*, config: Any, **arguments: Any) -> GPTModel:
    """Return the same in FP8."""
    config.fp8, config.fp8_recipe = "hybrid", "tensorwise"
    return model(config=config, **arguments)
