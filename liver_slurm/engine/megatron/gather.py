"""All-gather of a new world's weights, with the distributed optimizer, while its first forward pass runs.

Each replica has derived its share of the weights from its masters. megatron gathers each bucket as a whole; here
buckets are sent in segments, in the order in which the forward pass needs them, so that its first module waits for
little. A module waits for the parameters that it owns, as with megatron's ``overlap_param_gather``. On GPUs it is
megatron's own gather, which the stream waits for, because two NCCL communicators at once may block each other on a GPU
that workers share.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from liver_slurm.engine.megatron.dense_layer import DenseLayer
from liver_slurm.engine.megatron.model import unwrap
from liver_slurm.engine.megatron.rank_state import RankState

_SEGMENT = 1 << 22
"""Elements of a segment: few enough that few modules wait for it, enough to be worth a message."""


class Gather:
    """Weights that are being gathered; every member of the world must create one, at any pace."""

    def __init__(self, state: RankState) -> None:
        self._parts: dict[int, tuple[list[int], list[Any]]] = {}
        """For each buffer's storage: the first element of each segment, in order, and its pending broadcast."""
        self._hooks: list[Any] = []
        layout = state.world.layout
        gathered = state.config.train.distributed_optimizer and max(layout.dense_replicas, layout.edp) > 1
        if gathered and state.device.type == "cuda":
            for chunk in state.chunks:
                chunk.start_param_sync(force_sync=True)
        elif gathered:
            for group in itertools.chain.from_iterable(map(_bucket_groups, state.chunks)):
                members = dist.get_process_group_ranks(group.intra_distributed_optimizer_instance_group)
                for bucket in group.buckets:
                    self._send(bucket.param_data, members, group.intra_distributed_optimizer_instance_group)
        if not self._parts:
            return
        if state.config.model.provider:
            self.wait()  # modules of a user's model may use parameters of others
            return
        for module, reads in itertools.chain.from_iterable(_readers(unwrap(chunk)) for chunk in state.chunks):
            own = [parameter for parameter in reads if parameter.requires_grad]
            if own:
                self._hooks.append(module.register_forward_pre_hook(partial(self._before, own)))

    def wait(self) -> None:
        """Wait for all segments.

        Raises:
            RuntimeError: a peer is gone.
        """
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for _, works in self._parts.values():
            for work in works:
                work.wait()
        self._parts.clear()

    def _before(self, own: Sequence[torch.Tensor], *_: Any) -> None:
        """Wait for a module's own parameters; its forward pre-hook."""
        for parameter in own:
            begins, works = self._parts.get(parameter.untyped_storage().data_ptr(), ([], []))
            begin = parameter.storage_offset()
            end = begin + parameter.numel()
            for work in works[max(0, bisect.bisect_right(begins, begin) - 1) : bisect.bisect_left(begins, end)]:
                work.wait()

    def _send(self, data: torch.Tensor, members: list[int], group: Any) -> None:
        """Send this rank's share of a bucket, and receive the others'."""
        begins, works = self._parts.setdefault(data.untyped_storage().data_ptr(), ([], []))
        for begin, end, owner in segments(data.numel(), len(members)):
            work = dist.broadcast(data[begin:end], members[owner], group=group, async_op=True)
            at = bisect.bisect(begins, data.storage_offset() + begin)
            begins.insert(at, data.storage_offset() + begin)
            works.insert(at, work)


def _bucket_groups(chunk: Any) -> Iterator[Any]:
    """Yield what megatron gathers at a time: the bucket groups of a chunk, and those of its experts."""
    yield from (*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups)


def _readers(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, list[torch.nn.Parameter]]]:
    """Yield each module whose forward pass runs, with the parameters that it reads: its own, or all below it."""
    whole = isinstance(module, DenseLayer)
    yield module, list(module.parameters(recurse=whole))
    for child in () if whole else module.children():
        yield from _readers(child)


def segments(elements: int, replicas: int) -> Iterator[tuple[int, int, int]]:
    """Begin, end and owner of each segment of a bucket that replicas own in even shares, last first.

    megatron lays parameters out in the order in which the backward pass is done with them.
    """
    share = elements // replicas
    for owner in reversed(range(replicas)):
        for begin in reversed(range(owner * share, (owner + 1) * share, _SEGMENT)):
            yield begin, min(begin + _SEGMENT, (owner + 1) * share), owner
