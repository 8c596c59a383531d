"""What a receiver hears over a line whose owner may already be gone."""

from __future__ import annotations

import torch
import torch.distributed as dist

from liver_slurm.transfer.connections import Connections
from liver_slurm.transfer.one_sided.line import QUESTION, Line
from liver_slurm.transfer.one_sided.words import Header, Kind, encode

DIGESTS = Header(Kind.DIGESTS, 0, 3, 5)


def test_the_last_word_is_whole_though_its_owner_is_gone() -> None:
    store = dist.HashStore()
    owner, receiver = (Connections(store, me, 2, True, "lo") for me in (0, 1))
    line, answers = Line(receiver, 0), owner.incoming(1)
    answers.sendall(encode(DIGESTS) + b"proof")
    assert line.hear() == DIGESTS
    answers.recv(QUESTION.size)
    owner.close()
    assert line.content(DIGESTS.nbytes).equal(torch.frombuffer(bytearray(b"proof"), dtype=torch.uint8))
    receiver.close()
