"""Scattered memory over a socket: every byte in its place, and an end that is gone is said so."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pytest
import torch

from liver_slurm.transfer.one_sided.description import view_of
from liver_slurm.transfer.one_sided.memory_ranges import MOST, ranges, single
from liver_slurm.transfer.one_sided.socket_memory import receive, send

PATIENCE = 60.0


@pytest.mark.parametrize("rows", [1, MOST - 1, MOST, MOST + 1, 3 * MOST + 7, 400_000])
def test_more_ranges_and_bytes_than_a_call_takes(rows: int) -> None:
    source = torch.arange(6 * rows).view(rows, 6)[:, 1:4]
    target = torch.zeros(3, rows, dtype=torch.int64).T if rows < 9000 else torch.zeros(rows, 3, dtype=torch.int64)
    one, other = socket.socketpair()
    with one, other:
        sending = threading.Thread(target=send, args=(one, ranges(view_of(source))))
        sending.start()
        receive(other, ranges(view_of(target)))
        sending.join(PATIENCE)
    assert torch.equal(source, target)


def test_an_end_that_hangs_up_in_the_middle() -> None:
    # LS-32
    one, other = socket.socketpair()
    room = torch.zeros(8, dtype=torch.uint8)
    with one, other:
        one.sendall(b"1234")
        one.shutdown(socket.SHUT_RDWR)
        with pytest.raises(ConnectionResetError):
            receive(other, single(room.data_ptr(), 8))
        with pytest.raises(OSError, match="Broken pipe"):
            send(other, single(room.data_ptr(), 8))


def test_memory_that_is_not_there() -> None:
    # LS-32
    one, other = socket.socketpair()
    with one, other, pytest.raises(OSError, match="Bad address"):
        send(one, np.array([[8, 100]], dtype=np.uint64))
