"""Two workers of one process that move boxes to each other in the pause."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from liver_slurm.base.errors import TransferError
from liver_slurm.reshard.plan import RankMoves
from liver_slurm.reshard.tensors import Move, Piece, TensorInfo
from liver_slurm.transfer.blocking_transfer import BlockingTransfer, BlockingTransferStats
from liver_slurm.transfer.packing import LARGE
from liver_slurm.transfer.route import Route
from liver_slurm.transfer.transports.host import HostTransport
from liver_slurm.transfer.transports.mesh import Connections

STAGING = 4 << 20
"""Of which a chunk may take a quarter, so that parts of the largest boxes are messages of their own."""
SHAPES = {"large": (1400, 500), "small": (3, 5), "wide": (40, 14000), "tiny": (1,)}
TENSORS = {name: TensorInfo(name, shape, "float32") for name, shape in SHAPES.items()}
Boxes = dict[str, torch.Tensor]
Worker = Callable[..., BlockingTransfer]


@pytest.fixture
def worker() -> Iterator[Worker]:
    """Makes one of two workers: 0 has "large" and "small" and gets the others, which 1 has."""
    store = dist.HashStore()
    both_connections = [Connections(store, me, 2, "auto", "lo") for me in (0, 1)]
    with ExitStack() as opened:
        for connections in both_connections:
            opened.callback(connections.close)

        def make(
            me: int, source: Boxes, target: Boxes, copies: tuple[str, ...] = (), spoil: str = ""
        ) -> BlockingTransfer:
            def moves(side: Boxes, origin: int, end: int) -> list[Move]:
                return [
                    Move(name, origin, end, (0,) * len(shape), shape)
                    for name, shape in SHAPES.items()
                    if name in side and (name in copies) == (origin == end)
                ]

            def boxes(side: Boxes) -> list[tuple[Piece, torch.Tensor]]:
                return [(Piece(name, (0,) * view.dim(), tuple(view.shape)), view) for name, view in side.items()]

            def received(view: torch.Tensor) -> None:
                if spoil and view.shape[-1] == SHAPES[spoil][-1]:
                    view.view(-1)[0] += 1

            transfer = BlockingTransfer(
                RankMoves(moves(source, me, 1 - me), moves(target, 1 - me, me), moves(source, me, me)),
                TENSORS,
                boxes(source),
                boxes(target),
                Route(
                    HostTransport(both_connections[me], timedelta(seconds=20)), me, [0, 1], [0, 1], STAGING, received
                ),
            )
            return opened.enter_context(closing(transfer))

        yield make


def values(*names: str) -> Boxes:
    return {name: torch.randn(SHAPES[name]) for name in names}


def strided(*names: str) -> Boxes:
    """Room for these, of which no two elements lie side by side."""
    return {name: torch.zeros(*SHAPES[name][:-1], 2 * SHAPES[name][-1])[..., ::2] for name in names}


def both(first: BlockingTransfer, second: BlockingTransfer) -> list[BlockingTransferStats | TransferError]:
    found: list[BlockingTransferStats | TransferError] = [TransferError("it did not end")] * 2

    def run(number: int, transfer: BlockingTransfer) -> None:
        try:
            found[number], _ = transfer.run([7])
        except TransferError as error:
            found[number] = error
            transfer.abort()

    threads = [threading.Thread(target=run, args=each) for each in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return found


@pytest.mark.parametrize("room", [strided, lambda *names: {name: torch.zeros(SHAPES[name]) for name in names}])
def test_boxes_cross_and_staging_keeps_its_limit(worker: Worker, room: Callable[..., Boxes]) -> None:
    # LS-3, LS-23
    held = values("large", "small"), values("wide", "tiny")
    arrived = room("wide", "tiny"), room("large", "small")
    workers = [worker(me, held[me], arrived[me]) for me in (0, 1)]
    first, second = both(*workers)
    assert isinstance(first, BlockingTransferStats)
    assert isinstance(second, BlockingTransferStats)
    for me in (0, 1):
        for name, view in arrived[me].items():
            assert torch.equal(view, held[1 - me][name])
    parts = [part for chunk in workers[0]._chunks for part in chunk.parts]
    assert any(4 * math.prod(part.shape) >= LARGE for part in parts), "some go straight"
    assert first.bytes_sent == second.bytes_received == sum(view.nbytes for view in held[0].values())
    assert 0 < first.staging_peak_bytes <= STAGING
    assert first.digests_checked >= 2, "large boxes are cut, and each part has its digest"


@pytest.mark.parametrize("name", ["large", "small"])
def test_a_box_that_arrives_otherwise_than_it_was_is_found(worker: Worker, name: str) -> None:
    # LS-12
    held, arrived = values("large", "small"), strided("large", "small")
    _, second = both(worker(0, held, {}), worker(1, {}, arrived, spoil=name))
    assert isinstance(second, TransferError)
    assert name in str(second)


def test_what_stays_is_copied_and_what_lies_there_already_is_left_alone(worker: Worker) -> None:
    held = values("large", "small")
    target = {"large": held["large"], **strided("small")}
    transfer = worker(0, held, target, copies=("large", "small"))
    stats, _ = transfer.run([7])
    assert torch.equal(target["small"], held["small"])
    assert (stats.bytes_local, stats.digests_checked) == (held["small"].nbytes, 1)
