"""Every transport between real processes: what is sent arrives, and who waits for the dead or the aborted is told."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transport_peers import Message, Peer, peers

from liver_slurm.transfer.transports.shared_memory import PIECE_BYTES, RING_BYTES

TRANSPORTS = ("shm", "tcp", "gloo", pytest.param("ucx", marks=pytest.mark.ucx))
PEERS = 3
HUGE = 8 * RING_BYTES
"""More than any buffer between two processes holds."""
WATCHED = 1.0
"""Seconds: how long the processor time of idle peers is measured."""

lengths = st.one_of(
    st.integers(1, 5000),
    st.sampled_from([1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, RING_BYTES + 3]),
)
pairs = st.tuples(st.integers(0, PEERS - 1), st.integers(1, PEERS - 1), lengths)


@pytest.fixture(scope="module", params=TRANSPORTS)
def talkers(request: pytest.FixtureRequest) -> Iterator[list[Peer]]:
    with peers(PEERS, request.param) as started:
        yield started


@given(messages=st.lists(pairs, min_size=1, max_size=12))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_messages_arrive_in_order(talkers: list[Peer], messages: list[tuple[int, int, int]]) -> None:
    orders: list[list[Message]] = [[] for _ in talkers]
    for source, distance, length in messages:
        target = (source + distance) % PEERS
        orders[source].append(("send", target, length))
        orders[target].append(("receive", source, length))
    for peer, order in zip(talkers, orders, strict=True):
        peer.tell("talk", order)
    assert [peer.answer() for peer in talkers] == ["done"] * PEERS


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_receiver_is_told_of_a_peer_that_dies_before_it_sent_anything(transport: str) -> None:
    with peers(2, transport) as (victim, survivor):
        survivor.tell("talk", [("receive", 0, 100)])
        victim.process.kill()
        assert survivor.answer().startswith("TransferError: ")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("direction", ["send", "receive"])
def test_a_peer_that_dies_in_the_middle_of_a_message_ends_it(
    transport: str, direction: str, eventually: Callable[..., Any]
) -> None:
    other = "receive" if direction == "send" else "send"
    with peers(2, transport) as (victim, survivor):
        # the victim's first message goes through, so both have met; it then stops, and dies, with the second under way
        victim.tell("talk", [(other, 1, 100)])
        survivor.tell("talk", [(direction, 0, 100)])
        assert (victim.answer(), survivor.answer()) == ("done", "done")
        if direction == "receive":
            victim.tell("talk", [(other, 1, HUGE)])
        os.kill(victim.process.pid, signal.SIGSTOP)
        survivor.tell("talk", [(direction, 0, HUGE)])
        victim.process.kill()
        assert survivor.answer().startswith("TransferError: ")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("waiting", ["send", "receive"])
def test_an_abort_throws_out_whoever_waits_here_and_there(transport: str, waiting: str) -> None:
    with peers(2, transport) as (first, second):
        first.tell("talk", [("receive", 1, 100), ("send", 1, 100)])
        second.tell("talk", [("send", 0, 100), ("receive", 0, 100)])
        assert (first.answer(), second.answer()) == ("done", "done")
        length = HUGE if waiting == "send" else 100
        first.tell("talk", [("receive", 1, length)])
        second.tell("talk", [(waiting, 0, 2 * HUGE if waiting == "send" else length)])
        first.tell("abort")
        assert first.answer().startswith("TransferError: ")
        assert second.answer().startswith("TransferError: ")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_who_has_nothing_to_do_takes_no_core_from_training(transport: str) -> None:
    with peers(2, transport) as (first, second):
        first.tell("talk", [("receive", 1, HUGE), ("send", 1, 100)])
        second.tell("talk", [("send", 0, HUGE), ("receive", 0, 100)])
        assert (first.answer(), second.answer()) == ("done", "done")

        def used() -> float:
            return sum(sum(psutil.Process(each.process.pid).cpu_times()[:2]) for each in (first, second))

        before = used()
        time.sleep(WATCHED)
        assert used() - before < WATCHED / 4


def test_shared_memory_is_bounded_made_for_pairs_that_talk_and_gone_with_the_processes() -> None:
    before = sorted(Path("/dev/shm").iterdir())
    with peers(3, "shm") as started:
        started[0].tell("talk", [("send", 1, HUGE)])
        started[1].tell("talk", [("receive", 0, HUGE)])
        assert (started[0].answer(), started[1].answer()) == ("done", "done")
        for peer, expected in zip(started, ([RING_BYTES], [RING_BYTES], []), strict=True):
            peer.tell("memory")
            assert peer.answer() == expected
        assert "@liver-slurm-" in Path("/proc/net/unix").read_text()
        assert sorted(Path("/dev/shm").iterdir()) == before
        for peer in started:
            peer.process.kill()
            peer.process.join()
        assert sorted(Path("/dev/shm").iterdir()) == before
