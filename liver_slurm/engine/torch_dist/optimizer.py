"""What Megatron-LM keeps of an optimizer and of its learning rate besides tensors. Pure."""

from __future__ import annotations

from typing import Any

from liver_slurm.config.batch_sizes import samples_before
from liver_slurm.config.schema import JobConfig, TrainSection


def optimizer_state(train: TrainSection, steps: int) -> dict[str, Any]:
    """Return the state of its distributed optimizer, but for tensors; groups are told apart by their weight decay."""
    group = {
        "lr": train.lr,
        "max_lr": train.lr,
        "min_lr": train.min_lr,
        "betas": (train.adam_beta1, train.adam_beta2),
        "eps": train.adam_eps,
        "bias_correction": True,
        "lr_mult": 1.0,
        "is_expert_parallel": False,
        "is_decoupled_lr": False,
        "default_config": True,
        "step": steps,
    }
    decayed = [{**group, "wd_mult": share, "weight_decay": share * train.weight_decay} for share in (1.0, 0.0)]
    return {"optimizer": {"param_groups": decayed}, "param_state_sharding_type": "fully_reshardable"}


def scheduler_state(config: JobConfig, iteration: int) -> dict[str, Any]:
    """Return the state of its schedule of the learning rate, which counts samples."""
    train = config.train
    end = train.lr_decay_steps or train.steps
    return {
        "max_lr": train.lr,
        "min_lr": train.min_lr,
        "lr_warmup_steps": samples_before(train, train.lr_warmup_steps),
        "lr_decay_steps": samples_before(train, end),
        "lr_decay_style": {"wsd": "WSD"}.get(train.lr_decay_style, train.lr_decay_style),
        "num_steps": samples_before(train, iteration),
        "start_wd": train.weight_decay,
        "end_wd": train.weight_decay,
        "wd_incr_style": "constant",
        "wd_incr_steps": samples_before(train, train.steps),
    }
