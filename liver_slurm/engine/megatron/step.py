"""One training step of the live world."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from liver_slurm.engine.api import Evaluation, Samples, StepFlags, StepResult
from liver_slurm.engine.data.tokenizers import end_of_document
from liver_slurm.engine.megatron import compat
from liver_slurm.engine.megatron.attention_dropout import HeadStreams
from liver_slurm.engine.megatron.dimensions import interleaved, own_part
from liver_slurm.engine.megatron.dropout import Streams
from liver_slurm.engine.megatron.learning_rate import learning_rate
from liver_slurm.engine.megatron.microbatches import Share
from liver_slurm.engine.megatron.positions import document_starts, seen_from
from liver_slurm.engine.megatron.rank_state import RankState

with compat.imports():
    from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.utils import get_model_config

compat.norm_in_few_launches()

Item = TypeVar("Item")
Report = dict[str, torch.Tensor]


Dropped = tuple[Streams | None, HeadStreams | None]
"""What decides what a microbatch drops of hidden states and of attention weights; None: the model drops none."""


class Batch(NamedTuple):
    """This rank's part of a microbatch; each [micro batch size, own part of the sequence], but for the last."""

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    counts: torch.Tensor
    """1.0 where the loss counts, else 0.0."""
    apart: torch.Tensor | None
    """Given to the model as its attention mask; see :func:`_kept_apart`."""
    counted: bool
    """Whether it is a microbatch of the step: a replica without one computes one for nothing."""
    streams: Dropped
    """What decides what is dropped."""


def train_step(
    state: RankState,
    samples: Samples,
    step: int,
    flags: StepFlags,
    before_update: Callable[[float], None] | None,
) -> StepResult:
    """Run one step; see :meth:`liver_slurm.engine.api.TrainingShard.train_step`.

    All ranks meet once more between the gradients' norm and the update. So a rank that has begun its update proves that
    every rank has final gradients and can make its own, whoever is lost meanwhile.
    """
    config = state.config
    lr = learning_rate(config.train, step)
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]
        group["weight_decay"] = config.train.weight_decay * group["wd_mult"]
    state.final_norm = None
    state.zero_gradients()
    waited = Waited(state)
    start = time.time()
    share = state.batches.share(step)
    read = partial(state.batches.tokens, samples, step)
    streams = _streams(state, state.batches.first_of(step), share, training=True)
    reports = _pass(state, waited.over(_microbatches(state, streams, share, read)), share, forward_only=False)
    if before_update is not None:
        with not_computing(state):
            before_update(start)
    norm = _prepare_gradients(state)
    if state.gradients_final is not None:
        state.gradients_final(step, math.isfinite(norm))
    loss_sum, tokens, *raised = _total(state, reports, astuple(flags))
    updated = update(state)
    end = time.time()
    flags = StepFlags(*(ranks > 0 for ranks in raised))
    return StepResult(
        step, loss_sum / max(tokens, 1.0), norm, lr, int(tokens), not updated, start, end, flags, waited.seconds
    )


def evaluate(state: RankState, samples: Samples, first: int, count: int, interrupt: bool) -> Evaluation:
    """Run a forward pass alone; see :meth:`liver_slurm.engine.api.TrainingShard.evaluate`.

    Gradients are not turned off: layers are compiled for passes with them, and would be compiled again.
    """
    share = state.batches.share_of(count)
    read = partial(state.batches.others, samples, first, share)
    streams = _streams(state, first, share, training=False)
    reports = _pass(state, _microbatches(state, streams, share, read), share, forward_only=True)
    loss_sum, tokens, interrupted = _total(state, reports, [interrupt])
    return Evaluation(loss_sum, int(tokens), interrupted > 0)


def _streams(state: RankState, first: int, share: Share, training: bool) -> list[Dropped]:
    """Return those of each of this rank's microbatches; ``first``: number of its first sample."""
    hidden = state.dropout.streams(first, share.microbatches, training)
    heads = state.attention_dropout.streams(first, share.microbatches, training)
    return list(zip(hidden, heads, strict=True))


def _pass(state: RankState, batches: Iterator[Batch], share: Share, forward_only: bool) -> list[Report]:
    """Run megatron's schedule; what the last stage reports of each microbatch."""
    train, layout = state.config.train, state.world.layout
    reports: list[Report] = get_forward_backward_func(pp_size=layout.pp, vp_size=interleaved(layout))(
        forward_step_func=_forward,
        data_iterator=list(itertools.tee(batches, layout.vpp)),  # each chunk of the model goes through all
        model=list(state.chunks),
        num_microbatches=share.microbatches,
        seq_length=train.seq_length,
        micro_batch_size=train.micro_batch_size,
        forward_only=forward_only,
        p2p_communicator=state.pipeline,
        pg_collection=state.groups,
    )
    return reports


def _prepare_gradients(state: RankState) -> float:
    """Make the reduced gradients final, clipped if they are finite; returns their norm, the same on every rank."""
    clip_grad = state.config.train.clip_grad
    with torch.no_grad():
        state.optimizer.prepare_grads()
        norm = float(state.optimizer.get_grad_norm())
        if clip_grad > 0.0 and math.isfinite(norm):
            for inner in state.inner_optimizers():
                clip_grad_by_total_norm_fp32(inner.get_parameters(), max_norm=clip_grad, total_norm=norm)
        if math.isfinite(norm):
            for each in state.optimizer_states():
                each.gather()
    state.final_norm = norm
    return norm


def update(state: RankState) -> bool:
    """Update with final gradients, as ``ChainedOptimizer.step`` does; skip if a gradient is not finite.

    megatron-core checks for that only where it scales the loss. The norm is the same on every rank, so all skip.

    Returns:
        whether the state was updated.
    """
    norm = state.final_norm
    assert norm is not None, "only final gradients make an update"
    state.final_norm = None
    if not math.isfinite(norm):
        return False
    state.torn = True
    with torch.no_grad():
        state.optimizer.step_with_ready_grads()
    state.torn = False
    return True


@contextmanager
def not_computing(state: RankState) -> Iterator[None]:
    """Run a part of a step that may take long without being stuck."""
    state.computing = False
    yield
    state.computing = True


class Waited:
    """Counts the time that a step spends in getting its samples."""

    def __init__(self, state: RankState, clock: Callable[[], float] = time.perf_counter) -> None:
        self._state, self._clock = state, clock
        self.seconds = 0.0

    def over(self, items: Iterator[Item]) -> Iterator[Item]:
        """Hand the items on."""
        while True:
            began = self._clock()
            with not_computing(self._state):
                item = next(items, None)
            self.seconds += self._clock() - began
            if item is None:
                return
            yield item


def _microbatches(
    state: RankState, streams: Sequence[Dropped], share: Share, read: Callable[[], Iterator[torch.Tensor]]
) -> Iterator[Batch]:
    """Yield this rank's part of each microbatch.

    Middle stages read none, unless they need to know where documents begin.
    """
    train, data = state.config.train, state.config.data
    place, layout = state.world.place, state.world.layout
    own = own_part(train.seq_length, layout.cp, place.cp)
    positions = torch.arange(train.seq_length, device=state.device).expand(train.micro_batch_size, -1)[:, own]
    if place.pp in (0, layout.pp - 1) or data.resets:
        microbatches = read()
    else:
        nothing = torch.zeros(train.micro_batch_size, train.seq_length + 1, dtype=torch.int64, device=state.device)
        microbatches = itertools.repeat(nothing, share.microbatches)
    eod = end_of_document(data) if data.resets or data.eod_mask_loss else None
    for index, tokens in enumerate(microbatches):
        inputs, labels = (part[:, own].contiguous() for part in (tokens[:, :-1], tokens[:, 1:]))
        counts = torch.full(positions.shape, float(index < share.count), device=state.device)
        places, apart = positions, None
        if data.eod_mask_loss:
            counts *= inputs != eod
        if eod is not None and data.resets:
            starts = document_starts(tokens[:, :-1], eod)
            apart = _kept_apart(state, starts)
            places = positions - starts[:, own] if data.reset_position_ids else positions
        yield Batch(inputs, places, labels, counts, apart, index < share.count, streams[index])


def _kept_apart(state: RankState, starts: torch.Tensor) -> torch.Tensor | None:
    """Return what the model is given as its attention mask: our layers where documents begin, a model of the user's own
    megatron's mask, [micro batch size, 1, sequence, sequence], true where a token does not attend to another."""
    if state.config.model.provider is None:
        return starts
    return ~seen_from(starts, slice(None)).unsqueeze(1) if state.config.data.reset_attention_mask else None


def _forward(batch: Iterator[Batch], model: Any) -> tuple[torch.Tensor, Any]:
    tokens, positions, labels, counts, apart, counted, streams = next(batch)
    config = get_model_config(model)
    config.counted, (config.streams, config.head_streams) = counted, streams
    output = model(tokens, positions, apart, labels=labels)

    def loss(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        total = (losses.float() * counts).sum()
        tokens = counts.sum()
        # The schedules scale the loss in place, hence the copy in the report.
        return total, tokens.to(torch.int), {"sums": torch.stack([total.detach().clone(), tokens]).double()}

    return output, loss


def _total(state: RankState, reports: list[Report], flags: Sequence[bool]) -> list[float]:
    """Return the sum of losses and number of tokens of the world's batch, and how many ranks raise each flag.

    Every rank gets them.
    """
    own = [float(flag) for flag in flags]
    sums = torch.tensor([0.0, 0.0, *own], dtype=torch.float64, device=state.device)
    if state.world.is_last_stage and state.world.place.tp == 0:
        for report in reports:
            sums[:2] += report["sums"]
    dist.all_reduce(sums, group=state.world.groups["world"])
    total: list[float] = sums.tolist()
    return total
