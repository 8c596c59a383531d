"""The order in which moves travel: packed into chunks of bounded size, the same on both ends, without hot spots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from liver_slurm.reshard.plan import RankMoves
from liver_slurm.reshard.tensors import ITEMSIZE, Move, Piece, TensorInfo, flat_boxes, shifted, volume

_LARGE = 0.25
"""Of a chunk: what is larger has chunks for itself."""


@dataclass(frozen=True)
class Chunk:
    """One message from a source rank to a target rank: ``parts`` packed one after the other, in row-major order each.

    ``index`` counts the chunks of this pair of ranks from 0; ``nbytes`` is the size of all parts together.
    """

    source_rank: int
    target_rank: int
    index: int
    parts: tuple[Piece, ...]
    nbytes: int


def schedule(
    moves: RankMoves, tensors: Mapping[str, TensorInfo], limit: int, ranks: int, overhead: int = 0
) -> list[Chunk]:
    """One worker's messages, sent and received, in the order in which it should handle them.

    In each round a rank sends at most one chunk and receives at most one, and round after round to and from another
    peer: in round (i, d) source rank r sends the i-th chunk for target rank r + d. All workers' orders agree with one
    order of all chunks, so workers that handle theirs strictly one after the other, waiting for the other end each
    time, never wait in a circle.

    Args:
        moves: the worker's part of the plan.
        tensors: every tensor of the plan.
        limit: bytes of a chunk at most; a single element is sent even if it is larger.
        ranks: the greater of the source and the target world's number of ranks.
        overhead: bytes that a message carries for every part besides the part itself; they count towards ``limit``.
    """
    pairs: dict[tuple[int, int], list[Move]] = {}
    for move in (*moves.sends, *moves.receives):
        pairs.setdefault((move.source_rank, move.target_rank), []).append(move)
    chunks = [chunk for pair in pairs.values() for chunk in pack(pair, tensors, limit, overhead)]
    return sorted(chunks, key=lambda c: (c.index, (c.target_rank - c.source_rank) % ranks, c.source_rank))


def pack(moves: Iterable[Move], tensors: Mapping[str, TensorInfo], limit: int, overhead: int = 0) -> Iterator[Chunk]:
    """Pack the moves of one pair of ranks, in their order, into chunks of at most ``limit`` bytes.

    Both ends list a pair's moves alike, so both come to the same chunks. A large move shares its chunks with no other
    one: so it is cut alike for every peer that gets it, whatever else the peer gets.
    """
    parts: list[Piece] = []
    filled = index = source = target = 0
    shared = True
    for move in moves:
        itemsize = ITEMSIZE[tensors[move.tensor].dtype]
        size, done = volume(move.shape), 0
        large = size * itemsize > limit * _LARGE
        if parts and (large or not shared):
            yield Chunk(source, target, index, tuple(parts), filled)
            parts, filled, index = [], 0, index + 1
        source, target, shared = move.source_rank, move.target_rank, not large
        # A cut may leave as many boxes as flat_boxes makes of a range.
        most = overhead * (2 * len(move.shape) - 1)
        while done < size:
            room = (limit - filled - overhead * len(parts) - most) // itemsize
            until = _cut(move, done, room, full=bool(parts))
            for inside, shape in flat_boxes(move.shape, done, until):
                parts.append(Piece(move.tensor, shifted(move.offset, inside), shape))
            filled += (until - done) * itemsize
            if until < size:
                yield Chunk(source, target, index, tuple(parts), filled)
                parts, filled, index = [], 0, index + 1
            done = until
    if parts:
        yield Chunk(source, target, index, tuple(parts), filled)


def _cut(move: Move, done: int, room: int, full: bool) -> int:
    """Where to end the part of a move that begins at element ``done``, with room for ``room`` elements.

    At the end of a row of the outermost axis that fits, so that parts are few; inside a row only where the chunk has
    nothing else in it.
    """
    size = volume(move.shape)
    if size - done <= room:
        return size
    for axis in range(1, len(move.shape)):
        row = volume(move.shape[axis:])
        end = (done + room) // row * row
        if end > done:
            return end
    return done if full else done + max(room, 1)
