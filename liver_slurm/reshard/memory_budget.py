"""What a reconfiguration takes of one worker's memory, and how much of the target's state can have storage at once.

Both worlds are held while training goes on: weights, masters, gradient buffers, and moments. Where that is more
than the limit, moments of the target's last layers wait for the pause: there the old world's moments of the layers that
have arrived are freed first, and then each late layer's old ones once its new ones are proven. The less is early the
lower is the peak, in every case, so the least of all workers' choices fits all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from liver_slurm.reshard.shard_spec import ParamSpec, ShardSpec
from liver_slurm.reshard.tensors import ITEMSIZE, STATE_DTYPE, moment_bytes

_STATE_ITEMSIZE = ITEMSIZE[STATE_DTYPE]
ALL = 1 << 30
"""Slices that are early where all are: more than any model has."""
NO_ROOM = -1
"""In place of a number of early slices: the reconfiguration does not fit."""


class Share(NamedTuple):
    """One rank's share of a world: replica ``rank`` of ``replicas`` of a shard."""

    shard: ShardSpec
    replicas: int
    rank: int
    distributed_optimizer: bool
    bucket_size: int | None = None
    """Of the shard's gradients; see :class:`liver_slurm.reshard.shard_spec.WorldSpec`."""
    moment_dtype: str = STATE_DTYPE
    """What moments are kept in."""

    def moment_bytes(self, param: ParamSpec) -> int:
        """Count the bytes of all moments of one element of a parameter."""
        return moment_bytes(param.moments, self.moment_dtype)


@dataclass(frozen=True)
class Footprint:
    """Bytes that one worker holds during a reconfiguration.

    A slice is what one layer has of something; slice 0 is what is in no layer, slice ``n`` is layer ``n - 1``.

    Attributes:
        building: both worlds once the target's constructors have run, when it has no moments yet, nor shares storage.
        base: both worlds, what they share once, without moments that only one of them has.
        old, new: moments that only the old world, only the target has, by slice.
        staging: for what passes through on its way, in all.
    """

    building: int
    base: int
    old: tuple[int, ...]
    new: tuple[int, ...]
    staging: int

    def beside_training(self, early: int) -> int:
        """Return the bytes while training goes on and the first ``early`` slices of the target have storage."""
        return self.base + sum(self.old) + sum(self.new[:early]) + self.staging

    def peak(self, early: int) -> int:
        """Return the bytes at most, with ``early`` slices early: never more than with one slice more."""
        arrived = list(accumulate(self.new, initial=0))
        freed = list(accumulate(self.old, initial=0))
        pause = [
            self.base + arrived[late + 1] + freed[-1] - freed[late] + self.staging
            for late in range(early, len(self.new))
        ]
        return max(self.building, self.beside_training(early), *pause)


def footprint(old: Share | None, new: Share | None, staging: int) -> Footprint:
    """Return what a worker takes that has ``old`` in the source world (None: it joins) and ``new`` in the target.

    Storage that both worlds keep in the same place, as the engine's ``sharing`` module makes it, counts once.
    """
    slices = 1 + max(
        (
            box.global_shape[0]
            for share in (old, new)
            if share is not None
            for param in share.shard.params
            for box in param.boxes
            if box.layered
        ),
        default=0,
    )
    kept = _kept(old, new)
    common = sum(_weight_bytes(param) + _master_bytes(param, param.size) for param in kept)
    old_moments, shared = _moments(old, kept, slices)
    new_moments, _ = _moments(new, kept, slices)
    old_fixed, new_fixed = _fixed(old), _fixed(new)
    # One moment of one parameter is made, to learn its strides, before it is taken its storage again.
    largest = max(_owned(new), default=0) * _STATE_ITEMSIZE if new is not None else 0
    return Footprint(
        building=old_fixed + sum(old_moments) + shared + new_fixed + largest,
        base=old_fixed + new_fixed - common + shared,
        old=old_moments,
        new=new_moments,
        staging=staging,
    )


def image_bytes(new: Share) -> int:
    """Return the bytes of host memory that a target rank's state takes.

    These are masters and moments, and weights that are not trained.
    """
    fixed = sum(_weight_bytes(param) for param in new.shard.params if not param.trained)
    elements = zip(new.shard.params, _owned(new), strict=True)
    return fixed + sum(owned * (_STATE_ITEMSIZE + new.moment_bytes(param)) for param, owned in elements)


def choose_early(footprint: Footprint, limit: int, whose: str = "stream.memory_limit") -> tuple[int, str]:
    """Return how many slices of the target get storage at once: as many as fit.

    More early slices rather than room for gradients: a box without room for its gradients only waits for the pause,
    but freeing the old world's moments for a late slice means that there is no way back.

    Args:
        whose: what sets the limit, for the reason.

    Returns:
        the number, :data:`ALL` or :data:`NO_ROOM`; and the reason.
    """
    slices = len(footprint.new)
    everything = footprint.peak(slices)
    if everything <= limit:
        return ALL, f"both worlds and staging take {everything} bytes of the {limit} that {whose} allows"
    least = footprint.peak(0)
    if least > limit:
        return NO_ROOM, f"{least} bytes are needed at least, and {whose} allows {limit}"
    early = max(number for number in range(slices) if footprint.peak(number) <= limit)
    late = f"the moments from layer {early - 1} on" if early else "all moments"
    return early, (
        f"{late} wait for the pause: both worlds and staging would take {everything} bytes, and {whose} allows {limit}"
    )


def gradient_room(footprint: Footprint, early: int, limit: int) -> int:
    """Return the bytes that are left for copies of gradients."""
    return max(0, limit - footprint.beside_training(early))


def _kept(old: Share | None, new: Share | None) -> list[ParamSpec]:
    """Return the parameters of the target that lie where the old world has them.

    See the engine's ``sharing`` module.
    """
    if old is None or new is None or new.distributed_optimizer:
        return []
    held = {(param.boxes, param.dtype) for param in old.shard.params}
    return [param for param in new.shard.params if (param.boxes, param.dtype) in held]


def _owned(share: Share) -> list[int]:
    """Return the elements of each parameter whose optimizer state the rank has."""
    params = share.shard.params
    if not share.distributed_optimizer:
        return [param.size if param.trained else 0 for param in params]
    ranges = share.shard.ranges(share.replicas, share.bucket_size)
    return [sum(r.end - r.start for r in owned if r.replica == share.rank) for owned in ranges]


def _fixed(share: Share | None) -> int:
    """Return the weights, gradient buffers and masters."""
    if share is None:
        return 0
    params = share.shard.params
    masters = sum(_master_bytes(param, owned) for param, owned in zip(params, _owned(share), strict=True))
    if not share.distributed_optimizer:
        gradients = sum(param.size for param in params if param.trained) * _STATE_ITEMSIZE
        return sum(map(_weight_bytes, params)) + gradients + masters
    buffers = share.shard.buffer_elements(share.replicas, share.bucket_size)
    weights = sum(ITEMSIZE[dtype] * elements for dtype, elements in buffers.items())
    weights += sum(_weight_bytes(param) for param in params if not param.trained)
    return weights + sum(buffers.values()) * _STATE_ITEMSIZE + masters


def _moments(share: Share | None, kept: list[ParamSpec], slices: int) -> tuple[tuple[int, ...], int]:
    """Return the bytes of moments that only this world has, by slice, and of those that both have."""
    own, shared = [0] * slices, 0
    if share is None:
        return tuple(own), 0
    common = {(param.boxes, param.dtype) for param in kept}
    for param, owned in zip(share.shard.params, _owned(share), strict=True):
        nbytes = owned * share.moment_bytes(param)
        if (param.boxes, param.dtype) in common:
            shared += nbytes
        else:
            own[param.layer + 1] += nbytes
    return tuple(own), shared


def _weight_bytes(param: ParamSpec) -> int:
    return param.size * ITEMSIZE[param.dtype]


def _master_bytes(param: ParamSpec, elements: int) -> int:
    """Return the bytes of a master that is not the weight itself."""
    return elements * _STATE_ITEMSIZE if param.trained and param.dtype != STATE_DTYPE else 0
