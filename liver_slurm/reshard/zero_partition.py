"""Which flat range of each parameter a data parallel rank owns under Megatron's distributed optimizer.

The rule of megatron-core 0.16.1, ``distributed/param_and_grad_buffer.py`` and ``optimizer/distrib_optimizer.py``:
parameters of one dtype lie in one buffer, in reverse order, each start padded to 64 elements; the buffer is cut into
buckets of about ``bucket_size`` elements (an embedding shared between pipeline stages always has a bucket of its own);
bucket ends are padded to the least common multiple of the number of replicas and 128; of every bucket the n-th replica
owns the n-th of as many equal parts. Replicas are data times context parallel ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from liver_slurm.reshard.rank_sets import Ints, spans

_START_ALIGNMENT = 64
_END_ALIGNMENT = 128


class Range(NamedTuple):
    """Elements ``[start, end)`` of one parameter that one replica owns."""

    replica: int
    start: int
    end: int


class _Bucket(NamedTuple):
    start: int
    end: int
    params: tuple[int, ...]


def _pad(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor


def _buckets(
    sizes: Sequence[int], shared: Sequence[bool], replicas: int, bucket_size: int | None
) -> tuple[list[int], list[_Bucket]]:
    """Start of each parameter in the buffer, and the buckets; ``shared[i]``: parameter i needs its own bucket."""
    divisor = math.lcm(replicas, _END_ALIGNMENT)
    starts = [0] * len(sizes)
    buckets: list[_Bucket] = []
    members: list[int] = []
    bucket_start = position = 0

    def close(end: int) -> int:
        nonlocal bucket_start
        buckets.append(_Bucket(bucket_start, _pad(end, divisor), tuple(members)))
        members.clear()
        bucket_start = buckets[-1].end
        return bucket_start

    for index in reversed(range(len(sizes))):
        position = _pad(position, _START_ALIGNMENT)
        if shared[index] and members:
            position = close(position)
        starts[index] = position
        position += sizes[index]
        members.append(index)
        if shared[index] or (bucket_size is not None and position - bucket_start >= bucket_size):
            position = close(position)
    if members:
        close(position)
    return starts, buckets


def buffer_elements(sizes: Sequence[int], shared: Sequence[bool], replicas: int, bucket_size: int | None) -> int:
    """Return the elements of the buffer that holds these parameters, padding included.

    The arguments are those of :func:`owned_table`.
    """
    _, buckets = _buckets(sizes, shared, replicas, bucket_size)
    return buckets[-1].end if buckets else 0


@lru_cache(maxsize=256)
def owned_table(sizes: tuple[int, ...], shared: tuple[bool, ...], replicas: int, bucket_size: int | None) -> Ints:
    """Return all ranges of the parameters of one buffer: rows (parameter, replica, start, end), sorted.

    Args:
        sizes: elements of each parameter.
        shared: whether the parameter is an embedding that two pipeline stages share.
        replicas: ranks that hold the parameters: data times context parallel ones.
        bucket_size: elements at which a bucket is full; None: one bucket (but for shared embeddings).
    """
    starts, buckets = _buckets(sizes, shared, replicas, bucket_size)
    first, part = np.zeros(len(sizes), dtype=np.int64), np.ones(len(sizes), dtype=np.int64)
    for bucket in buckets:
        for index in bucket.params:
            first[index] = starts[index] - bucket.start
            part[index] = (bucket.end - bucket.start) // replicas
    last = first + np.array(sizes, dtype=np.int64)
    owners = np.where(last > first, -(-last // part) - first // part, 0)
    param = np.repeat(np.arange(len(sizes), dtype=np.int64), owners)
    owner = spans(first // part, owners)
    start = np.maximum(first[param], owner * part[param]) - first[param]
    end = np.minimum(last[param], (owner + 1) * part[param]) - first[param]
    return np.stack([param, owner, start, end], axis=1)
