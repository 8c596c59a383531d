"""Messages of overlap: what a sink takes, and what it refuses because it is not due."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.api import Hyperparameters, Replica, TrainedBox
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.reshard.tensors import Piece
from liver_slurm.transfer import threads
from liver_slurm.transfer.frames import HEADER_BYTES, Header, Kind, Slots, decode, encode
from liver_slurm.transfer.optimizer_replay import Content, Index, Trained, decode_groups, digests, encode_groups
from liver_slurm.transfer.receiver import Arrivals, Receiver
from liver_slurm.transfer.route import Route

GROUPS = encode_groups({GroupSpec(): Hyperparameters(1e-3, 0.1, 0.9, 0.999, 1e-8)}).view(torch.uint8).view(-1)


class Script:
    """A transport on which the peer's messages wait already, in order; at their end it hangs up."""

    device = torch.device("cpu")

    def __init__(self, *parts: torch.Tensor) -> None:
        self.parts = deque(parts)

    def receive_now(self, peer: int, buffer: torch.Tensor) -> None:
        if not self.parts:
            raise TransferError(f"peer {peer} went away")
        part = self.parts.popleft()
        assert part.numel() == buffer.numel(), "a receiver asks for as many bytes as the header says"
        buffer.copy_(part)


BOX = Piece("w@master", (0, 0), (2, 2))


def held(value: float) -> Content:
    """A box of four elements, its weights of this value."""
    views = [torch.full((2, 2), value), torch.zeros(2, 2), torch.zeros(2, 2)]
    box = TrainedBox(Piece("w", (0, 0), (2, 2)), *views, gradient=lambda: torch.zeros(2, 2), group=GroupSpec())  # type: ignore[misc]
    return Index(Replica([box], [])).content([BOX])


SOURCE = held(3.0)
STATE = torch.empty(SOURCE.nbytes, dtype=torch.uint8)
SOURCE.pack(STATE)
GRADIENT = torch.ones(4).view(torch.uint8)
DIGESTS = torch.tensor(*digests([SOURCE])).view(torch.uint8)


def message(kind: Kind, version: int, payload: torch.Tensor | None = None, number: int = 0) -> list[torch.Tensor]:
    header = encode(Header(kind, number, version, 0 if payload is None else payload.numel()))
    return [header] if payload is None else [header, payload]


def receive(*messages: list[torch.Tensor], pool: Executor | None = None) -> Receiver:
    content = held(0.0)
    sink = Receiver(
        Arrivals(peer=1, chunks={0: content}, boxes={BOX: content}),
        Route(
            Script(*(part for parts in messages for part in parts)),  # type: ignore[arg-type]
            me=0,
            source_peers=(0, 1),
            target_peers=(0, 1),
            staging_bytes=SOURCE.nbytes,
        ),
        slots=Slots(1, SOURCE.nbytes, False),
        pool=pool,
        device=torch.device("cpu"),
        on_ended=lambda: None,
    )
    sink.run()
    return sink


def test_state_then_the_end_then_its_digests() -> None:
    sink = receive(message(Kind.STATE, 4, STATE), message(Kind.END, 4, number=9), message(Kind.DIGESTS, 4, DIGESTS))
    assert (sink.adam_step, sink.bytes_received, sink.digests_checked) == (9, 48, 3)


def test_a_digest_that_differs() -> None:
    # LS-12
    other = torch.tensor(*digests([held(2.0)])).view(torch.uint8)
    with pytest.raises(TransferError, match="the digest of what arrived differs"):
        receive(message(Kind.STATE, 0, STATE), message(Kind.END, 0), message(Kind.DIGESTS, 0, other))


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([message(Kind.GRADIENT, 1, GRADIENT)], id="a gradient before its state"),
        pytest.param([message(Kind.STATE, 0, STATE), message(Kind.GRADIENT, 1, GRADIENT)], id="without its groups"),
        pytest.param(
            [message(Kind.STATE, 0, STATE), message(Kind.GROUPS, 2, GROUPS), message(Kind.GRADIENT, 2, GRADIENT)],
            id="an update left out",
        ),
        pytest.param([message(Kind.STATE, 0, STATE), message(Kind.STATE, 0, STATE)], id="state again"),
        pytest.param([message(Kind.STATE, 0, STATE[:24])], id="too short"),
        pytest.param([message(Kind.STATE, 0, STATE, number=7)], id="an unknown chunk"),
        pytest.param([message(Kind.STATE, 0, STATE), message(Kind.DIGESTS, 0, DIGESTS)], id="digests before the end"),
        pytest.param(
            [message(Kind.STATE, 0, STATE), message(Kind.END, 0), message(Kind.GROUPS, 1, GROUPS)], id="after the end"
        ),
        pytest.param([message(Kind.END, 0)], id="an end with nothing before it"),
        pytest.param([message(Kind.STATE, 0, STATE), message(Kind.END, 1)], id="an end ahead of the state"),
    ],
)
def test_what_is_not_due_ends_the_transfer(messages: list[list[torch.Tensor]]) -> None:
    with pytest.raises(TransferError, match=r"not due|goes on after its end|are not at version|without what"):
        receive(*messages)


@pytest.fixture(params=[False, True], ids=["where it arrives", "beside"])
def pool(request: pytest.FixtureRequest) -> Iterator[Executor | None]:
    """What updates are replayed in."""
    if not request.param:
        yield None
        return
    with threads.pool(2) as pool:
        yield pool


def following(version: int, groups: torch.Tensor = GROUPS) -> list[list[torch.Tensor]]:
    return [
        message(Kind.GROUPS, version, groups, number=version - 1),
        message(Kind.GRADIENT, version, torch.full((4,), float(version)).view(torch.uint8)),
    ]


def test_updates_are_replayed_one_after_the_other(pool: Executor | None) -> None:
    last, source = 20, held(3.0)
    assert isinstance(source, Trained)
    updates = decode_groups(GROUPS.view(torch.float64))
    with torch.no_grad():
        for version in range(1, last + 1):
            source.replay(torch.full((4,), float(version)).view(torch.uint8), version - 1, updates)
    proof = torch.tensor(*digests([source])).view(torch.uint8)
    messages = [message for version in range(1, last + 1) for message in following(version)]
    end = [message(Kind.END, last, number=last), message(Kind.DIGESTS, last, proof)]
    assert receive(message(Kind.STATE, 0, STATE), *messages, *end, pool=pool).digests_checked == 3


def test_an_update_that_cannot_be_replayed(pool: Executor | None) -> None:
    other = encode_groups({GroupSpec(lr_mult=2.0): Hyperparameters(1e-3, 0.1, 0.9, 0.999, 1e-8)})
    wrong = following(1, other.view(torch.uint8).view(-1))
    with pytest.raises(TransferError, match="has no parameter group"):
        receive(message(Kind.STATE, 0, STATE), *wrong, message(Kind.END, 1, number=1), pool=pool)


@given(st.data())
def test_slots_are_lent_whole_or_in_thirds(data: st.DataObject) -> None:
    count, nbytes = 2, 50
    slots, lent = Slots(count, nbytes, pinned=False), list[torch.Tensor]()
    for _ in range(data.draw(st.integers(0, 20))):
        if lent and data.draw(st.booleans()):
            slots.give(lent.pop(data.draw(st.integers(0, len(lent) - 1))))
            continue
        wanted = data.draw(st.integers(1, nbytes))
        small = wanted <= 16
        if slots.free or (small and slots._parts):
            lent.append(slots.take(wanted))
            assert lent[-1].numel() == wanted
            assert lent[-1].data_ptr() % 4 == 0
        places = sorted((buffer.data_ptr(), buffer.data_ptr() + buffer.numel()) for buffer in lent)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(places)), "nothing is lent twice"
        assert slots.peak_bytes <= count * nbytes
    for buffer in lent:
        slots.give(buffer)
    assert slots.free == count
    assert [slots.take().numel() for _ in range(count)] == [nbytes] * count


def test_a_header_is_what_it_was() -> None:
    header = Header(Kind.GRADIENT, 3, 1 << 40, 5)
    assert encode(header).numel() == HEADER_BYTES
    assert decode(encode(header)) == header
    for wrong in (torch.zeros(HEADER_BYTES, dtype=torch.uint8), encode(Header(Kind.END, 0, 0, 0)) ^ 1):
        with pytest.raises(TransferError, match="no part of this transfer"):
            decode(wrong)
