"""The weights of a new world with the distributed optimizer, gathered while its first forward pass runs.

Each replica has derived its share of the weights from its masters. megatron gathers a bucket as a whole; here each goes
out in segments, in the order in which the forward pass asks for them, so that its first module waits for little. A
module waits for the parameters that it owns, the rule that megatron's ``overlap_param_gather`` has too.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from liver_slurm.megatron.model import unwrap
from liver_slurm.megatron.rank_state import RankState

_SEGMENT = 1 << 20
"""Elements that go out together: little enough to be waited for by few modules, enough to be worth a message."""


class Gather:
    """Weights on their way; every member of the world must make one, at any pace."""

    def __init__(self, state: RankState) -> None:
        self._parts: dict[int, list[tuple[int, Any]]] = {}
        """Of each buffer's storage: where each segment begins, in elements, and what it is waited for by."""
        self._hooks: list[Any] = []
        if state.config.train.distributed_optimizer and state.world.layout.dp > 1:
            for group in (*state.model.bucket_groups, *state.model.expert_parallel_bucket_groups):
                members = dist.get_process_group_ranks(group.intra_distributed_optimizer_instance_group)
                for bucket in group.buckets:
                    self._send(bucket.param_data, members, group.intra_distributed_optimizer_instance_group)
        if not self._parts:
            return
        if state.config.model.provider:
            self.wait()  # nobody knows whose parameters its modules use
            return
        for module in unwrap(state.model).modules():
            own = [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
            if own:
                self._hooks.append(module.register_forward_pre_hook(partial(self._before, own)))

    def wait(self) -> None:
        """Wait for all that has not arrived.

        Raises:
            RuntimeError: a peer is gone.
        """
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for parts in self._parts.values():
            for _, work in parts:
                work.wait()
        self._parts.clear()

    def _before(self, own: Sequence[torch.Tensor], *_: Any) -> None:
        """A module's forward pre-hook."""
        for parameter in own:
            parts = self._parts.get(parameter.untyped_storage().data_ptr(), [])
            begin = parameter.storage_offset()
            first = max(0, bisect.bisect_right(parts, begin, key=_begin) - 1)
            last = bisect.bisect_left(parts, begin + parameter.numel(), key=_begin)
            for _, work in parts[first:last]:
                work.wait()

    def _send(self, data: torch.Tensor, members: list[int], group: Any) -> None:
        """Send this rank's share of a bucket, and take the others'."""
        parts = self._parts.setdefault(data.untyped_storage().data_ptr(), [])
        for begin, end, owner in segments(data.numel(), len(members)):
            work = dist.broadcast(data[begin:end], members[owner], group=group, async_op=True)
            parts.append((data.storage_offset() + begin, work))
        parts.sort(key=_begin)


def segments(elements: int, replicas: int) -> Iterator[tuple[int, int, int]]:
    """Begin, end and owner of each segment of a bucket that is shared out evenly, last first.

    megatron lays parameters out in the order in which the backward pass is done with them.
    """
    share = elements // replicas
    for owner in reversed(range(replicas)):
        for begin in reversed(range(owner * share, (owner + 1) * share, _SEGMENT)):
            yield begin, min(begin + _SEGMENT, (owner + 1) * share), owner


def _begin(part: tuple[int, Any]) -> int:
    place, _ = part
    return place
