"""Reads by nixl: what arrives, and what is said where it cannot be used. Most of it needs nixl."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from memory_owner import same_bytes

from liver_slurm.base.errors import TransferError
from liver_slurm.transfer.connections import Connections
from liver_slurm.transfer.one_sided.description import Refusal
from liver_slurm.transfer.one_sided.handshake import describe
from liver_slurm.transfer.one_sided.line import Line
from liver_slurm.transfer.one_sided.registered_memory import Agent, RegisteredReader
from liver_slurm.transfer.one_sided.service import Answers, Service
from liver_slurm.transfer.one_sided.staging import Staging
from liver_slurm.transfer.shared_box import SharedBox

CPU = torch.device("cpu")
BOXES = [
    SharedBox((torch.arange(1 << 16).float().view(256, 256),), torch.arange(1 << 16).float().view(256, 256)),
    SharedBox((torch.arange(600.0).view(20, 30).T,)),
]


def nothing(*_: Any) -> None:
    """No word is asked for."""


class Lab:
    """An owner whose memory is registered, and one receiver, in this process."""

    def __init__(self, opened: ExitStack) -> None:
        store = dist.HashStore()
        self.ends = [Connections(store, me, 2, False, "lo") for me in (0, 1)]
        agents = [Agent(CPU, "lo") for _ in range(2)]
        self.counter = torch.tensor([6], dtype=torch.int64)
        agents[0].register([self.counter, *(view for box in BOXES for view in box.state)])
        owner = describe(BOXES, self.counter, agents[0].metadata())
        answers = Answers((self.counter, self.counter), self.gradient, nothing, nothing, agents[0].turn)  # type: ignore[arg-type]
        self.service = Service(self.ends[0], 1, BOXES, answers, nothing, Staging(1 << 20, 1))
        for end in self.ends:
            opened.callback(end.close)
        opened.callback(self.service.join)
        for end in self.ends:
            opened.callback(end.give_up)
        self.line = Line(self.ends[1], 0)
        self.reader = RegisteredReader(owner, agents[1], self.line, CPU, Staging(1 << 20, 1))
        self.views = [box.state[0] for box in owner.boxes]
        self.gradient_view = owner.boxes[0].gradient

    @staticmethod
    def gradient(box: SharedBox) -> torch.Tensor:
        assert box.gradient is not None
        return box.gradient


@pytest.fixture
def lab() -> Iterator[Lab]:
    with ExitStack() as opened:
        yield Lab(opened)


@pytest.mark.ucx
def test_boxes_arrive_bit_for_bit_wherever_their_elements_lie(lab: Lab) -> None:
    # LS-3
    targets = [torch.zeros(256, 256), torch.zeros(20, 30).T]
    lab.reader.expect(targets)
    for number in (0, 1):
        lab.reader.copy([targets[number]], [lab.views[number]])
        assert lab.reader.counter() == 6
        assert lab.service.asked == number + 1, "who knows that the counter stood still was heard before"
    assert all(same_bytes(target, box.state[0]) for target, box in zip(targets, BOXES, strict=True))
    part = torch.zeros(256, 256)
    lab.reader.expect([part])
    lab.reader.copy([part[3:5]], [lab.views[0].narrow(0, 7, 2)])
    assert same_bytes(part[3:5], BOXES[0].state[0][7:9])
    assert lab.gradient_view is not None
    (gradient,) = lab.reader.fetch([lab.gradient_view])
    assert same_bytes(gradient, BOXES[0].gradient)  # type: ignore[arg-type]
    lab.counter.fill_(9)
    assert lab.reader.counter() == 9


@pytest.mark.ucx
def test_an_owner_that_hangs_up_ends_a_read(lab: Lab) -> None:
    # LS-32
    target = torch.zeros(256, 256)
    lab.reader.expect([target])
    lab.ends[0].give_up()
    lab.service.join()
    with pytest.raises(TransferError):
        lab.reader.copy([target], [lab.views[0]])


def test_without_nixl_there_is_no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nixl._api", None)
    with pytest.raises(Refusal, match="nixl cannot be used"):
        Agent(CPU, None)


@pytest.mark.parametrize(("interface", "devices"), [("ib0", None), (None, None), ("lo", "lo")])
def test_an_interface_of_sockets_keeps_ucx_from_no_device(
    monkeypatch: pytest.MonkeyPatch, interface: str | None, devices: str | None
) -> None:
    monkeypatch.setenv("UCX_NET_DEVICES", "")  # so that it is as before in the end
    monkeypatch.delenv("UCX_NET_DEVICES")
    monkeypatch.setitem(sys.modules, "nixl._api", None)
    with pytest.raises(Refusal):
        Agent(CPU, interface)
    assert os.environ.get("UCX_NET_DEVICES") == devices


def test_a_nixl_that_does_not_work_is_news(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "nixl._api", None)
    with pytest.raises(Refusal):
        Agent(CPU, None)
    assert caplog.messages == []

    def breaks(*_: object, **__: object) -> None:
        raise KeyError("UCX")

    api = SimpleNamespace(nixl_agent=breaks, nixl_agent_config=dict)
    monkeypatch.setitem(sys.modules, "nixl", SimpleNamespace(_api=api))
    monkeypatch.setitem(sys.modules, "nixl._api", api)
    with pytest.raises(Refusal, match="nixl cannot be used: KeyError: 'UCX'"):
        Agent(CPU, None)
    assert caplog.messages == ["nixl cannot be used: KeyError: 'UCX'"]


class Storage:
    """Of a tensor, at an address that the test chooses."""

    def __init__(self, place: int, size: int) -> None:
        self.place, self.size = place, size

    def untyped_storage(self) -> Storage:
        return self

    def data_ptr(self) -> int:
        return self.place

    def nbytes(self) -> int:
        return self.size

    def free(self) -> None:
        """As late layers' moments are."""
        self.place = self.size = 0


def test_what_is_freed_is_not_registered_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A network card would write into pages that nobody has any more."""
    made, given_back = list[tuple[int, int]](), list[tuple[int, int]]()

    class Nixl:
        def __init__(self, *_: object) -> None:
            """Without a wire."""

        def register_memory(self, places: list[tuple[int, int, int, str]], _kind: str) -> list[tuple[int, int]]:
            made.extend((place, size) for place, size, _, _ in places)
            return [(place, size) for place, size, _, _ in places]

        def deregister_memory(self, registered: list[tuple[int, int]]) -> None:
            given_back.extend(registered)

    api = SimpleNamespace(nixl_agent=Nixl, nixl_agent_config=lambda **_: None)
    monkeypatch.setitem(sys.modules, "nixl", SimpleNamespace(_api=api))
    monkeypatch.setitem(sys.modules, "nixl._api", api)
    agent: Any = Agent(CPU, None)
    first, late, empty = Storage(0x1000, 64), Storage(0x2000, 32), Storage(0, 0)
    agent.register([first, late, empty])
    agent.register([first])
    assert made == [(0x1000, 64), (0x2000, 32)]
    late.free()
    agent.register([first, Storage(0x2000, 32)])
    assert given_back == [(0x2000, 32)]
    assert made == [(0x1000, 64), (0x2000, 32), (0x2000, 32)]
    agent.close()
    assert sorted(given_back) == sorted(made)


def test_memory_that_is_not_registered_is_refused() -> None:
    # LS-32
    with ExitStack() as opened:
        store = dist.HashStore()
        ends = [opened.enter_context(closing(Connections(store, me, 2, True, "lo"))) for me in (0, 1)]
        owner = describe(BOXES, torch.zeros(1, dtype=torch.int64))
        agent: Any = None
        with pytest.raises(Refusal, match="its memory is not registered with nixl"):
            RegisteredReader(owner, agent, Line(ends[1], 0), CPU, Staging(1, 1))
