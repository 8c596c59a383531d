"""Object collectives without pickles: torch's own execute whatever a peer sends, and gloo asks nobody who he is.

megatron-core compares its optimizer's parameter groups with ``all_gather_object`` while a world is built. Here that
function sends plain data, and its relatives, which nothing needs, are refused.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

_thread = threading.local()
LARGEST = 1 << 20
"""Bytes of one rank's object."""
_REFUSED = (
    "broadcast_object_list",
    "gather_object",
    "recv_object_list",
    "scatter_object_list",
    "send_object_list",
)


def forbid_pickles() -> None:
    """Have object collectives of this process send plain data, or fail."""
    for module in (dist, distributed_c10d):
        module.all_gather_object = all_gather_plain
        for name in _REFUSED:
            if hasattr(module, name):
                setattr(module, name, _refusal(name))


@contextmanager
def alone() -> Iterator[None]:
    """Run a block in which this thread asks no peer: each rank's object is taken to be like its own.

    For a world that is built when a peer may be dead by now. megatron-core gathers the keys of parameter groups, so
    that ranks have the same ones in checkpoints of its own; what a rank trains does not depend on the others'.
    """
    _thread.alone = True
    try:
        yield
    finally:
        _thread.alone = False


def all_gather_plain(object_list: list[Any], obj: Any, group: Any = None) -> None:
    """Gather all ranks' objects, as ``torch.distributed.all_gather_object`` does: None, numbers, text, bytes, tuples.

    Lists become tuples on the way.

    Raises:
        RuntimeError: an object is something else, or larger than :data:`LARGEST`.
    """
    try:
        content = msgspec.msgpack.encode(obj)
    except (TypeError, ValueError) as error:
        raise RuntimeError(f"all_gather_object takes plain data only: {error}") from None
    if len(content) > LARGEST:
        raise RuntimeError(f"all_gather_object takes {LARGEST} bytes at most, not {len(content)}")
    if getattr(_thread, "alone", False):
        object_list[:] = [_tuples(msgspec.msgpack.decode(content))] * dist.get_world_size(group)
        return
    device = torch.device("cuda") if dist.get_backend(group) == "nccl" else torch.device("cpu")
    ranks = dist.get_world_size(group)
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(ranks)]
    dist.all_gather(lengths, torch.tensor([len(content)], dtype=torch.int64, device=device), group=group)
    longest = max(int(length) for length in lengths)
    if not 0 < longest <= LARGEST or min(int(length) for length in lengths) < 1:
        raise RuntimeError(f"all_gather_object: a rank speaks of {longest} bytes")
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    gathered = [torch.zeros_like(padded) for _ in range(ranks)]
    dist.all_gather(gathered, padded, group=group)
    for rank, (part, length) in enumerate(zip(gathered, lengths, strict=True)):
        object_list[rank] = _decoded(rank, part[: int(length)])


def _decoded(rank: int, content: torch.Tensor) -> Any:
    try:
        return _tuples(msgspec.msgpack.decode(content.cpu().numpy().tobytes()))
    except msgspec.DecodeError as error:
        raise RuntimeError(f"all_gather_object: what rank {rank} sent is no plain data: {error}") from None


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


def _refusal(name: str) -> Any:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError(f"torch.distributed.{name} sends pickles, which a worker does not take from the network")

    return refuse
