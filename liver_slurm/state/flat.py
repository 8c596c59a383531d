"""Which flat range of each parameter a data parallel rank owns under Megatron's distributed optimizer.

The rule of megatron-core 0.16.1, ``distributed/param_and_grad_buffer.py`` and ``optimizer/distrib_optimizer.py``:
parameters of one dtype lie in one buffer, in reverse order, each start padded to 64 elements; the buffer is cut into
buckets of about ``bucket_size`` elements (an embedding shared between pipeline stages always has a bucket of its own);
bucket ends are padded to the least common multiple of dp and 128; rank d of dp owns the d-th of dp equal parts of every
bucket.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

_START_ALIGNMENT = 64
_END_ALIGNMENT = 128


class Range(NamedTuple):
    """Elements ``[start, end)`` of one parameter that data parallel rank ``dp`` owns."""

    dp: int
    start: int
    end: int


class _Bucket(NamedTuple):
    start: int
    end: int
    params: tuple[int, ...]


def _pad(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor


def _buckets(
    sizes: Sequence[int], shared: Sequence[bool], dp: int, bucket_size: int | None
) -> tuple[list[int], list[_Bucket]]:
    """Start of each parameter in the buffer, and the buckets; ``shared[i]``: parameter i needs its own bucket."""
    divisor = math.lcm(dp, _END_ALIGNMENT)
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


@lru_cache(maxsize=256)
def owned_ranges(
    sizes: tuple[int, ...], shared: tuple[bool, ...], dp: int, bucket_size: int | None
) -> tuple[tuple[Range, ...], ...]:
    """For each parameter of one buffer, in the model's order: the ranges that cover it, by data parallel rank.

    Args:
        sizes: elements of each parameter.
        shared: whether the parameter is an embedding that two pipeline stages share.
        dp: data parallel ranks.
        bucket_size: elements at which a bucket is full; None: one bucket (but for shared embeddings).
    """
    starts, buckets = _buckets(sizes, shared, dp, bucket_size)
    ranges: list[tuple[Range, ...]] = [()] * len(sizes)
    for bucket in buckets:
        part = (bucket.end - bucket.start) // dp
        for index in bucket.params:
            first, last = starts[index] - bucket.start, starts[index] - bucket.start + sizes[index]
            owners = range(first // part, -(-last // part)) if sizes[index] else ()
            ranges[index] = tuple(
                Range(owner, max(first, owner * part) - first, min(last, (owner + 1) * part) - first)
                for owner in owners
            )
    return tuple(ranges)
