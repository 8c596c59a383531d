"""One training step of the live world."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple
from typing import Any

import torch
import torch.distributed as dist

from liver_slurm.engine.api import Samples, StepFlags, StepResult
from liver_slurm.engine.megatron import compat
from liver_slurm.engine.megatron.learning_rate import learning_rate
from liver_slurm.engine.megatron.microbatches import share
from liver_slurm.engine.megatron.rank_state import RankState

with compat.imports():
    from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
    from megatron.core.pipeline_parallel import get_forward_backward_func

compat.norm_in_few_launches()


def train_step(
    state: RankState,
    samples: Samples,
    step: int,
    flags: StepFlags,
    before_update: Callable[[float], None] | None,
) -> StepResult:
    """Run one step; see :meth:`liver_slurm.engine.api.TrainingShard.train_step`."""
    config, layout = state.config, state.world.layout
    lr = learning_rate(config.train, step)
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]
        group["weight_decay"] = config.train.weight_decay * group["wd_mult"]
    mine = share(config.train, layout.dp, state.world.place.dp)
    state.zero_gradients()
    start = time.time()
    reports = get_forward_backward_func(pp_size=layout.pp, vp_size=None)(
        forward_step_func=_forward,
        data_iterator=_microbatches(state, samples, step),
        model=[state.model],
        num_microbatches=mine.microbatches,
        seq_length=config.train.seq_length,
        micro_batch_size=config.train.micro_batch_size,
        forward_only=False,
        p2p_communicator=state.pipeline,
        pg_collection=state.groups,
    )
    if before_update is not None:
        before_update(start)
    updated, norm = _update(state)
    end = time.time()
    loss, tokens, raised = _total(state, reports, flags)
    return StepResult(step, loss, norm, lr, tokens, not updated, start, end, raised)


def _update(state: RankState) -> tuple[bool, float]:
    """Reduce and clip gradients and update, as ``ChainedOptimizer.step`` does; skip if a gradient is not finite.

    megatron-core checks for that only where it scales the loss. The norm is the same on every rank, so all skip.

    Returns:
        whether the state was updated, and the gradient's norm before clipping.
    """
    optimizer, clip_grad = state.optimizer, state.config.train.clip_grad
    with torch.no_grad():
        optimizer.prepare_grads()
        norm = float(optimizer.get_grad_norm())
        if not math.isfinite(norm):
            return False, norm
        for inner in state.inner_optimizers():
            if clip_grad > 0.0:
                clip_grad_by_total_norm_fp32(inner.get_parameters(), max_norm=clip_grad, total_norm=norm)
        optimizer.step_with_ready_grads()
    return True, norm


def _microbatches(state: RankState, samples: Samples, step: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Tokens, positions, labels and loss mask of each microbatch; only the first and the last stage read them."""
    train = state.config.train
    mine = share(train, state.world.layout.dp, state.world.place.dp)
    edge = state.world.place.pp in (0, state.world.layout.pp - 1)
    positions = torch.arange(train.seq_length, device=state.device).expand(train.micro_batch_size, -1)
    for index in range(mine.microbatches):
        counts = index < mine.count
        if not edge:
            tokens = torch.zeros(train.micro_batch_size, train.seq_length + 1, dtype=torch.int64)
        else:
            first = step * train.global_batch_size + (mine.first + index if counts else 0) * train.micro_batch_size
            tokens = torch.from_numpy(samples.batch(first, train.micro_batch_size))
        if state.device.type == "cuda":
            tokens = tokens.pin_memory()  # a copy from other memory waits for all that was launched before it
        tokens = tokens.to(state.device, non_blocking=True)
        mask = torch.full(tokens[:, 1:].shape, float(counts), device=state.device)
        yield tokens[:, :-1].contiguous(), positions, tokens[:, 1:].contiguous(), mask


def _forward(batch: Iterator[tuple[torch.Tensor, ...]], model: Any) -> tuple[torch.Tensor, Any]:
    tokens, positions, labels, mask = next(batch)
    output = model(tokens, positions, None, labels=labels)

    def loss(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        total = (losses.float() * mask).sum()
        tokens = mask.sum()
        # The schedules scale the loss in place, hence the copy in the report.
        return total, tokens.to(torch.int), {"sums": torch.stack([total.detach().clone(), tokens]).double()}

    return output, loss


def _total(state: RankState, reports: list[dict[str, torch.Tensor]], flags: StepFlags) -> tuple[float, int, StepFlags]:
    """Mean loss a token and number of tokens of the global batch, and the flags of all ranks; on every rank."""
    own = [float(flag) for flag in astuple(flags)]
    sums = torch.tensor([0.0, 0.0, *own], dtype=torch.float64, device=state.device)
    if state.world.is_last_stage and state.world.place.tp == 0:
        for report in reports:
            sums[:2] += report["sums"]
    dist.all_reduce(sums, group=state.world.groups["world"])
    loss, tokens, *raised = sums.tolist()
    return loss / tokens, int(tokens), StepFlags(*(ranks > 0 for ranks in raised))
