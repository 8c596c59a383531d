"""What ``model.extra`` may not say of megatron-core's ``TransformerConfig``, and why.

Its values are passed on unread. Without this some fields would be ignored in silence, so that another model would be
trained than the user has asked for, and others would contradict what the product decides itself.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields

from liver_slurm.base.sources import fields_of, find_module, source_of
from liver_slurm.config.functions import own_environment
from liver_slurm.config.problem import Problem, join, shown
from liver_slurm.config.schema import LiveSection, ModelSection
from liver_slurm.config.types import MAX_INT, is_text

_LAYOUT = "the layout decides it"
_EXPERTS = "this product's own layer of experts would not heed it"
_OTHER_MODEL = "the model would not have it; model.provider builds your own"
_TE = "it is of Transformer Engine's layers, which this product's own are not; for FP8 set train.fp8"
_OWN_TE = "a model of your own sets it in its own config, as examples/transformer_engine does"
_VALUES = "weights come from train.seed by their names, or from another world"
_FUNCTION = "it is a function, which a job file cannot hold"
_UNHEEDED = "nothing in this product's model and step heeds it"
_KERNELS = "it is for kernels of Apex or Transformer Engine, which this product's model does not use"
_SCHEDULE = "the product runs the step, and does it in its own way"

_ALWAYS: tuple[tuple[str, str], ...] = (
    (r"(tensor|pipeline|virtual_pipeline|context|expert)_(model_|tensor_)?parallel_\w+", _LAYOUT),
    (r"sequence_parallel|h\w+_context_parallel(_sizes)?|max_seqlen_per_dp_cp_rank|cp_comm_type", _LAYOUT),
    (r"num_layers_in_\w+_pipeline_stage|pipeline_model_parallel_layout|account_for_\w+", _LAYOUT),
    (r"microbatch_group_size_per_vp_stage|mtp_standalone|moe_extended_tp", _LAYOUT),
    (r"params_dtype|pipeline_dtype|bf16|fp16|enable_autocast|autocast_dtype", "train.precision decides it"),
    (r"use_cpu_initialization|perform_initialization|init_model_with_meta_device", _VALUES),
    (r"\w+_func|\w*init_method|timers", _FUNCTION),
    (r"cpu_offloading\w*|fine_grained_activation_offloading|offload_modules|min_offloaded_tensor_size", _SCHEDULE),
    (r"\w*cuda_graph\w*|overlap_p2p\w*|batch_p2p\w*|use_ring_exchange_p2p|defer_embedding_wgrad_compute", _SCHEDULE),
    (r"variable_seq_lengths|deallocate_pipeline_outputs|overlap_moe_\w+|delay_wgrad_compute", _SCHEDULE),
    (r"(fp8|fp4|tp_comm|use_te|use_kitchen|kitchen)\w*|quant_recipe|gradient_accumulation_fusion", _TE),
)
_OF_OUR_MODEL: tuple[tuple[str, str], ...] = (
    (r"moe_\w+", _EXPERTS),
    (r"(mtp|dsa|linear|mamba)_\w+|multi_latent_attention|experimental_attention_variant|is_hybrid_model", _OTHER_MODEL),
    (r"heterogeneous_block_specs|hetereogenous_dist_checkpoint|transformer_impl|mrope_section", _OTHER_MODEL),
    (r"qk_l2_norm|qk_clip\w*|embedding_init_method_std|apply_residual_connection_post_layernorm", _UNHEEDED),
    (r"layernorm_zero_centered_gamma|\w+_layer_norm|batch_invariant_mode|symmetric_ar_type", _KERNELS),
    (r"inference_\w+|flash_decode|use_inference_optimized_layers|use_mamba_mem_eff_path", _OTHER_MODEL),
)
"""Fields that a model of the user's own may know what to do with."""
_CONFIGS = (
    ("megatron.core.transformer.transformer_config", "TransformerConfig"),
    ("megatron.core.model_parallel_config", "ModelParallelConfig"),
)
"""Where the fields are, the class and what it inherits from."""
_OURS = frozenset(field.name for field in fields(ModelSection)) - {"extra", "provider"}


def why_refused(name: str, value: object, own_model: bool) -> str | None:
    """Say why ``model.extra`` may not give a field this value; None: it may.

    Args:
        own_model: ``model.provider`` builds the model.
    """
    if name in _OURS:
        return f"write it as model.{name}"
    if name == "calculate_per_token_loss":
        return None if value is True else "replicas may have uneven numbers of microbatches"
    for pattern, reason in _ALWAYS if own_model else (*_ALWAYS, *_OF_OUR_MODEL):
        if re.fullmatch(pattern, name):
            return _OWN_TE if own_model and reason is _TE else reason
    return None


def extra_problems(model: ModelSection) -> Iterator[Problem]:
    """Find fields that may not be given, and values that JSON cannot hold."""
    for name, given in model.extra.items():
        if reason := why_refused(name, given, own_model=model.provider is not None):
            yield Problem(join("model.extra", name), f"is not allowed: {reason}")
    for key, value in _leaves("model.extra", model.extra):
        number = isinstance(value, (int, float)) and abs(value) <= MAX_INT  # nan is no such number
        if not number and not (isinstance(value, str) and is_text(value)):
            yield Problem(key, f"{shown(value)} is not allowed; allowed: text, numbers, true, false, lists, tables")


def unknown_fields(model: ModelSection, live: LiveSection) -> Iterator[Problem]:
    """Find fields that the installed megatron-core does not have; the job may have another one."""
    if not model.extra or own_environment(live) is not None or not (known := transformer_fields()):
        return
    for name in model.extra:
        if name not in known and why_refused(name, model.extra[name], own_model=model.provider is not None) is None:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            text = "no such field of megatron-core's TransformerConfig"
            yield Problem(join("model.extra", name), text + (f"; the nearest is {near[0]}" if near else ""))


def transformer_fields() -> frozenset[str]:
    """Read the names of TransformerConfig's fields off its source, as its import takes seconds; empty: it is not there,
    or looks otherwise than in the versions that are known."""
    found: set[str] = set()
    for module, name in _CONFIGS:
        spec = find_module(module)
        read = fields_of(source, name) if spec is not None and (source := source_of(spec)) is not None else None
        if read is None or not set(read[1]) <= {known for _, known in _CONFIGS}:
            return frozenset()
        found |= set(read[0])
    return frozenset(found)


def _leaves(key: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(join(key, str(name)), inner)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _leaves(f"{key}.{index}", inner)
    else:
        yield key, value
