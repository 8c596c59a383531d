"""Workers find out which of them can read whose memory; whatever they say, all of them come to an end."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, get_args

import msgspec
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from liver_slurm.base.errors import BadInput
from liver_slurm.transfer.one_sided import handshake
from liver_slurm.transfer.one_sided.description import Description, Refusal
from liver_slurm.transfer.one_sided.handshake import Agreement, Way, agree, describe, open_best, open_memory
from liver_slurm.transfer.shared_box import SharedBox

PATIENCE = 120.0
CPU = torch.device("cpu")
Graph = dict[tuple[int, int], Way | None]
"""How one worker can read another's; None: not at all."""


class Opened:
    """A reader that reads nothing."""

    def __init__(self, who: str = "") -> None:
        self.who, self.closed = who, False

    def close(self) -> None:
        self.closed = True


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, Graph]:
    """Up to five workers, and what moves between them."""
    workers = draw(st.integers(1, 5))
    pairs = [(one, other) for one in range(workers) for other in range(workers) if one != other]
    moving = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    ways = st.sampled_from(["memory", "nixl", "network", None])
    return workers, {pair: draw(ways) for pair in moving}


def box(seed: int) -> SharedBox:
    values = torch.Generator().manual_seed(seed)
    state = tuple(torch.randn(3, 4, generator=values) for _ in range(3))
    return SharedBox(state, torch.randn(3, 4, generator=values))


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_both_ends_of_a_pair_know_how_it_reads_or_nobody_goes_on(case: tuple[int, Graph]) -> None:
    workers, graph = case
    store, opened = dist.HashStore(), []

    def worker(me: int) -> Agreement | str:
        outgoing = {to: describe([box(me)], torch.tensor([2 * me])) for origin, to in graph if origin == me}

        def open_reader(peer: int, owner: Description) -> tuple[Way, Any]:
            way = graph[peer, me]
            if way is None:
                raise Refusal(f"{me} cannot read {peer}")
            opened.append(Opened())
            return way, opened[-1]

        try:
            return agree(store, me, workers, outgoing, [origin for origin, to in graph if to == me], open_reader)
        except BadInput as error:
            return str(error)

    with ThreadPoolExecutor(workers) as pool:
        agreed = [each.result(PATIENCE) for each in [pool.submit(worker, me) for me in range(workers)]]
    refused = {f"{to} cannot read {origin}" for (origin, to), way in graph.items() if way is None}
    if refused:
        assert len(set(map(str, agreed))) == 1
        assert str(agreed[0]) in refused
        assert all(each.closed for each in opened)
        return
    for me, found in enumerate(agreed):
        assert isinstance(found, Agreement)
        assert {peer: source.way for peer, source in found.sources.items()} == {
            origin: way for (origin, to), way in graph.items() if to == me
        }
        assert found.read_by == {to: way for (origin, to), way in graph.items() if origin == me}


@pytest.mark.parametrize("fails", ["boxes/1/0", "answer/1/0", "answer/0/1", "come", "complete", "refusals"])
def test_what_was_opened_is_closed_where_the_store_is_closed_meanwhile(fails: str) -> None:
    """As when the attempt is given up: a card keeps what another process has mapped of it."""
    # LS-27
    store, opened = dist.HashStore(), list[Opened]()
    for key in ("boxes/1/0", "boxes/2/0"):
        store.set(key, msgspec.msgpack.encode(describe([box(1)], torch.tensor([2]))))

    class Closed:
        """A store that is closed just then."""

        def __getattr__(self, name: str) -> Any:
            def call(key: str | list[str], *rest: Any) -> Any:
                if fails in key and opened:
                    raise dist.DistStoreError("it is closed")
                return getattr(store, name)(key, *rest)

            return call

    def open_reader(_peer: int, _owner: Description) -> tuple[Way, Any]:
        opened.append(Opened())
        return "memory", opened[-1]

    store.set("answer/0/1", "memory")
    store.add("come", 2)
    outgoing = {1: describe([box(0)], torch.tensor([0]))}
    with pytest.raises(dist.DistStoreError, match="it is closed"):
        agree(Closed(), 0, 3, outgoing, [2, 1], open_reader)
    assert opened
    assert all(each.closed for each in opened)


def openers(*refusing: Way, **others: Any) -> Any:
    """Of all ways, some of which refuse."""

    def refuse(way: Way) -> Any:
        raise Refusal(f"{way} is not allowed")

    ways: tuple[Way, ...] = ("memory", "nixl", "network")
    return {**{way: partial(refuse, way) if way in refusing else partial(Opened, way) for way in ways}, **others}


@pytest.mark.parametrize("transport", ["auto", "gloo", "nccl"])
def test_the_best_way_that_works_is_taken(transport: str, caplog: pytest.LogCaptureFixture) -> None:
    # LS-32
    caplog.set_level(logging.INFO, handshake.__name__)
    assert open_best(transport, 3, openers())[0] == "memory"
    assert caplog.messages == []
    assert open_best(transport, 3, openers("memory"))[0] == "nixl"
    assert open_best(transport, 3, openers("memory", "nixl"))[0] == "network"
    assert caplog.messages == [
        "state of worker 3 is read over nixl: memory is not allowed",
        "state of worker 3 is read over a connection: memory is not allowed; nixl is not allowed",
    ]


@pytest.mark.parametrize(("transport", "way"), [("shm", "memory"), ("ucx", "nixl"), ("tcp", "network")])
def test_a_way_that_is_asked_for_is_taken_or_refused(transport: str, way: Way) -> None:
    found, reader = open_best(transport, 3, openers())
    assert found == way
    assert isinstance(reader, Opened)
    assert reader.who == way
    said = rf"^stream.transport is '{transport}', but peer 3 cannot be read: {way} is not allowed; set it to 'auto'$"
    with pytest.raises(Refusal, match=said):
        open_best(transport, 3, openers(way))


def test_an_owner_that_does_not_let_itself_be_read_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    # LS-32
    def refuse() -> None:
        raise Refusal("prctl(PR_SET_PTRACER): Operation not permitted")

    monkeypatch.setattr(handshake, "let_others_read", refuse)
    owner = describe([box(0)], torch.zeros(1, dtype=torch.int64))
    assert owner.refused == "prctl(PR_SET_PTRACER): Operation not permitted"
    with pytest.raises(Refusal, match="Operation not permitted"):
        open_memory(owner, CPU)


def _with(**changes: Any) -> Any:
    return lambda told: msgspec.msgpack.encode({**msgspec.msgpack.decode(told), **changes})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda told: b"",
        lambda told: told[:-1],
        _with(boxes=[[[[8, [1], [-1], "float32"]], None]]),
        _with(counter=[8, [1 << 40], [1], "int64"]),
    ],
    ids=["nothing", "cut", "stride", "counter"],
)
def test_a_description_that_cannot_be_is_refused_on_both_sides(spoil: Any) -> None:
    # LS-32
    store = dist.HashStore()

    class Spoiling:
        """The store of a peer that says something else."""

        def get(self, key: str) -> bytes:
            said: bytes = store.get(key)
            return bytes(spoil(said)) if key.startswith("boxes/") else said

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

    def worker(me: int) -> None:
        outgoing = {1: describe([box(0)], torch.zeros(1, dtype=torch.int64))} if me == 0 else {}
        with pytest.raises(BadInput):
            agree(Spoiling(), me, 2, outgoing, [0] if me == 1 else [], lambda *_: ("memory", Opened()))  # type: ignore

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(worker, me) for me in range(2)]:
            done.result(PATIENCE)


@pytest.mark.parametrize(
    "spoil",
    [_with(pid=0), _with(pid=-1), _with(proof=None), _with(proof=[8, b"0123456789abcdef"])],
    ids=["pid 0", "pid -1", "no proof", "proof elsewhere"],
)
def test_memory_that_is_not_where_it_is_said_to_be_is_refused(spoil: Any) -> None:
    # LS-32
    told = msgspec.msgpack.encode(describe([box(0)], torch.zeros(1, dtype=torch.int64)))
    with pytest.raises(Refusal):
        open_memory(handshake.decode(spoil(told)), CPU)


def test_every_way_can_be_opened_is_tried_and_has_a_name() -> None:
    owner = describe([box(1)], torch.zeros(1, dtype=torch.int64))
    made = handshake.openers(owner, None, CPU, None, None)  # type: ignore[arg-type]
    assert set(made) == set(get_args(Way)) == set(handshake._ALL_WAYS)
    assert set(made) - set(handshake._NAMES) == {"memory"}, "the first way is taken without a word"
    with pytest.raises(Refusal, match="nixl is not installed"):
        made["nixl"]()
