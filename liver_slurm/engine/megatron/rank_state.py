"""One rank's model and optimizer in one world: built beside whatever else the process trains."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.megatron import compat
from liver_slurm.engine.megatron.groups import collection
from liver_slurm.engine.megatron.model import build_model, materialise
from liver_slurm.parallel.groups import ProcessGroups

compat.install()

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig  # noqa: E402
from megatron.core.distributed.finalize_model_grads import finalize_model_grads  # noqa: E402
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # noqa: E402
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator  # noqa: E402


@dataclass
class RankState:
    """This rank's share of a world's training state, and what a step needs to run on it."""

    config: JobConfig
    world: ProcessGroups
    device: torch.device
    groups: Any
    """The world's ``ProcessGroupCollection``."""
    transformer: Any
    """megatron's ``TransformerConfig``."""
    model: Any
    """``DistributedDataParallel`` around the model."""
    optimizer: Any
    """megatron's ``ChainedOptimizer``."""
    pipeline: Any
    """``P2PCommunicator`` between pipeline stages."""
    gradients_used: bool = False
    """A backward pass may have added to the gradient buffers, which are made of zeros."""
    before_zeroing: Callable[[], None] | None = None
    """Called when gradients are about to go, by a step that begins."""

    def inner_optimizers(self) -> Iterator[Any]:
        """megatron's optimizers that hold parameters of this rank."""
        for optimizer in self.optimizer.chained_optimizers:
            if not optimizer.is_stub_optimizer:
                yield optimizer

    def zero_gradients(self) -> None:
        """Have zeros in the gradient buffers, for a step that begins.

        A world's first step finds them there, and training stands until that step has begun.
        """
        if self.before_zeroing is not None:
            self.before_zeroing()
        if self.gradients_used:
            self.model.zero_grad_buffer()
            self.optimizer.zero_grad()
        self.gradients_used = True

    def set_step(self, step: int) -> None:
        """Set Adam's step counters to ``step`` completed optimizer steps."""
        for optimizer in self.inner_optimizers():
            for group in optimizer.optimizer.param_groups:
                for parameter in group["params"]:
                    optimizer.optimizer.state[parameter]["step"] = torch.tensor(float(step))

    def steps(self) -> set[int]:
        """Adam's step counters, as a set: one value, unless something went wrong."""
        return {
            int(optimizer.optimizer.state[parameter]["step"])
            for optimizer in self.inner_optimizers()
            for group in optimizer.optimizer.param_groups
            for parameter in group["params"]
        }


def build_rank_state(
    config: JobConfig, world: ProcessGroups, device: torch.device, initialise: Any = None, *, moments: bool = True
) -> RankState:
    """Build this rank's model and optimizer of ``world``; all members must do so, at any pace.

    Args:
        initialise: called with the model once its storage exists and before fp32 masters are copied from it; None
            leaves the values undefined, for a target world that receives them.
        moments: whether Adam's moments get storage now, or later, from
            :class:`liver_slurm.engine.megatron.storage.Moments`.
    """
    with world.scope():
        groups = collection(world)
        transformer, module = build_model(config, groups, world.layout, world.place.pp)
        # The distributed optimizer's constructor moves trained weights into a buffer, from storage of their own.
        materialise(module, device, hollow=initialise is None and config.train.distributed_optimizer)
        if initialise is not None:
            initialise(module)
        model = DistributedDataParallel(
            transformer,
            DistributedDataParallelConfig(
                grad_reduce_in_fp32=True,
                use_distributed_optimizer=config.train.distributed_optimizer,
                average_in_collective=False,
            ),
            module,
            pg_collection=groups,
        )
        transformer.finalize_model_grads_func = functools.partial(finalize_model_grads, pg_collection=groups)
        optimizer = get_megatron_optimizer(
            _optimizer_config(config, transformer), [model], use_gloo_process_groups=False, pg_collection=groups
        )
        state = RankState(
            config, world, device, groups, transformer, model, optimizer, P2PCommunicator(groups.pp, transformer)
        )
        _seed_adam(state, moments)
        return state


def _optimizer_config(config: JobConfig, transformer: Any) -> Any:
    train = config.train
    return OptimizerConfig(
        optimizer="adam",
        lr=train.lr,
        min_lr=train.min_lr,
        weight_decay=train.weight_decay,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        adam_eps=train.adam_eps,
        clip_grad=train.clip_grad,
        bf16=transformer.bf16,
        params_dtype=transformer.params_dtype,
        use_distributed_optimizer=train.distributed_optimizer,
    )


def _seed_adam(state: RankState, moments: bool) -> None:
    """Create what AdamW makes lazily in its first step, so that there is storage to receive into and to save."""
    make = torch.zeros_like if moments else _without_storage
    for optimizer in state.inner_optimizers():
        for group in optimizer.optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.optimizer.state[parameter].update(
                    step=torch.tensor(0.0), exp_avg=make(parameter), exp_avg_sq=make(parameter)
                )


def _without_storage(parameter: torch.Tensor) -> torch.Tensor:
    moment = torch.empty_like(parameter)
    moment.untyped_storage().resize_(0)
    return moment
