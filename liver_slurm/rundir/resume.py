"""Whether a job can go on from another run's checkpoint. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from liver_slurm.config.batch_sizes import earlier_batches, samples_before, uneven_batch
from liver_slurm.config.schema import JobConfig
from liver_slurm.config.shapes import expert_width


def problems(config: JobConfig, resumed: JobConfig, step: int) -> list[str]:
    """Return why ``config`` cannot go on from a checkpoint that a run of ``resumed`` wrote after ``step`` steps.

    The layout may be another, and so may data, learning rate and all else that state does not depend on.
    """
    found = list(_differences(_state_keys(config), _state_keys(resumed), "in the run that is resumed"))
    if config.train.steps <= step:
        found.append(
            f"train.steps: {config.train.steps} leaves nothing to train after the checkpoint that is resumed, of step "
            f"{step}; allowed: > {step}"
        )
    return found


def notes(config: JobConfig, resumed: JobConfig, step: int) -> list[str]:
    """Say what is allowed and may still surprise, from step ``step`` on.

    The same weights compute something else, learn at another rate, or see more or fewer samples a step.
    """
    before = _meaning_keys(resumed)
    changed = {key: value for key, value in _meaning_keys(config).items() if value != before[key]}
    found = [
        f"{key}: {value}, where the run that is resumed had {before[key]}; training goes on with the new value"
        for key, value in changed.items()
    ]
    if changed.keys() & {"train.global_batch_size", "train.rampup_batch_size"}:
        first = samples_before(resumed.train, step)
        found.append(f"training goes on with sample number {first}, the one after the last that was taken")
    return found


def with_earlier_batches(config: JobConfig, resumed: JobConfig, step: int) -> JobConfig:
    """Return the job that goes on with the sample after the last one that the checkpoint's steps took.

    Where ``config`` has the batches of ``resumed``, its samples are those that they would have been there.
    """
    earlier = earlier_batches(config.train, resumed.train, step)
    return replace(config, train=replace(config.train, earlier_batches=earlier))


def why_other_samples(config: JobConfig, step: int, consumed: int) -> str | None:
    """Return why a run cannot go on from a checkpoint after ``step`` steps, which took ``consumed`` samples; None: it
    can.
    """
    begins, uneven = samples_before(config.train, step), uneven_batch(config.train, step)
    if begins != consumed:
        return f"its steps took {consumed} samples, and this job's would have taken {begins} by then"
    if uneven:
        micro = config.train.micro_batch_size
        return f"steps after it are of {uneven} samples, which train.micro_batch_size {micro} does not divide"
    return None


def _meaning_keys(config: JobConfig) -> dict[str, object]:
    """Return the keys that say what the tensors of the state mean, and how far the learning rate has come."""
    model, train = config.model, config.train
    return {
        "model.rotary_base": model.rotary_base,
        "model.rotary_percent": model.rotary_percent,
        "model.rope_scaling_factor": model.rope_scaling_factor,
        "model.activation_func": model.activation_func,
        "model.layernorm_epsilon": model.layernorm_epsilon,
        "model.extra": model.extra,
        "model.hidden_dropout": model.hidden_dropout,
        "model.attention_dropout": model.attention_dropout,
        "model.moe_router_topk": model.moe_router_topk,
        "model.moe_router_pre_softmax": model.moe_router_pre_softmax,
        "model.moe_router_score_function": model.moe_router_score_function,
        "model.moe_router_bias_update_rate": model.moe_router_bias_update_rate,
        "model.moe_aux_loss_coeff": model.moe_aux_loss_coeff,
        "model.moe_z_loss_coeff": model.moe_z_loss_coeff,
        "data.weights": list(config.data.weights),
        "data.packing": config.data.packing,
        "data.packing_window": config.data.packing_window,
        "data.reset_position_ids": config.data.reset_position_ids,
        "data.reset_attention_mask": config.data.reset_attention_mask,
        "data.eod_mask_loss": config.data.eod_mask_loss,
        "train.no_weight_decay": list(train.no_weight_decay),
        "train.z_loss_coeff": train.z_loss_coeff,
        "train.ema_decay": train.ema_decay,
        "train.moments_precision": train.moments_precision,
        "train.lr_decay_style": train.lr_decay_style,
        "train.lr_decay_steps": train.lr_decay_steps or train.steps,
        "train.lr_wsd_decay_steps": train.lr_wsd_decay_steps,
        "train.lr_wsd_decay_style": train.lr_wsd_decay_style,
        "data.paths": list(config.data.paths),
        "data.provider": config.data.provider,
        "data.eod": config.data.eod,
        "train.seed": train.seed,
        "train.seq_length": train.seq_length,
        "train.global_batch_size": train.global_batch_size,
        "train.rampup_batch_size": list(train.rampup_batch_size),
    }


_NOT_OF_WEIGHTS = (
    "model.extra",
    "model.hidden_dropout",
    "model.attention_dropout",
    "model.moe_router_bias_update_rate",
    "model.moe_aux_loss_coeff",
    "model.moe_z_loss_coeff",
)
"""Of the keys of ``[model]``, those that say how it is trained."""


def other_model(config: JobConfig, started: JobConfig, where: str) -> list[str]:
    """Return why a model cannot begin with the weights of another: it would not be the same one, whatever its
    precision.

    Args:
        started: with the model that the weights are of.
        where: that model is, for people.
    """
    new, old = ({**_state_keys(one), **_meaning_keys(one)} for one in (config, started))
    model = [key for key in new if key.startswith("model.") and key not in _NOT_OF_WEIGHTS]
    return list(_differences({key: new[key] for key in model}, old, where))


def _differences(new: Mapping[str, object], old: Mapping[str, object], where: str) -> Iterator[str]:
    for key, value in new.items():
        if value != old[key]:
            yield f"{key}: {value} is not allowed; allowed: {old[key]}, as {where}"


def _state_keys(config: JobConfig) -> dict[str, object]:
    """Return the keys that say which tensors the state has, and of which shapes."""
    model, heads = config.model, config.model.num_attention_heads
    return {
        "model.num_layers": model.num_layers,
        "model.hidden_size": model.hidden_size,
        "model.num_attention_heads": heads,
        "model.num_query_groups": model.query_groups,
        "model.kv_channels": model.kv_channels or model.hidden_size // max(heads, 1),
        "model.ffn_hidden_size": None if model.num_moe_experts else model.ffn_width,
        "model.num_moe_experts": model.num_moe_experts,
        "model.moe_router_enable_expert_bias": model.moe_router_enable_expert_bias,
        "model.moe_ffn_hidden_size": expert_width(model) if model.num_moe_experts else None,
        "model.moe_shared_expert_intermediate_size": model.moe_shared_expert_intermediate_size,
        "model.moe_shared_expert_gate": model.moe_shared_expert_gate,
        "model.vocab_size": model.vocab_size or f"that of tokenizer {config.data.tokenizer}",
        "model.share_embeddings_and_output_weights": model.share_embeddings_and_output_weights,
        "model.normalization": model.normalization,
        "model.gated_linear_unit": model.gated_linear_unit,
        "model.add_bias_linear": model.add_bias_linear,
        "model.add_qkv_bias": model.add_qkv_bias,
        "model.qk_layernorm": model.qk_layernorm,
        "model.position_embedding_type": model.position_embedding_type,
        "model.max_position_embeddings": _rows_of_positions(config),
        "model.provider": model.provider or "the built-in model",
        "train.precision": config.train.precision,
    }


def _rows_of_positions(config: JobConfig) -> int | None:
    """Return the rows of the table of learned positions; None: the model has none."""
    if config.model.position_embedding_type == "rope":
        return None
    return config.model.max_position_embeddings or config.train.seq_length
