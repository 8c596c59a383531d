"""How two workers find out in which way one can read the other's state: through the store, in PREPARE.

An owner describes, for each peer that it has state for, where that state lies; the peer tries the ways that it may
take, best first, and says which one it has taken.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, NamedTuple

import msgspec
import torch

from liver_slurm.base.errors import BadInput
from liver_slurm.transfer.connections import machine
from liver_slurm.transfer.one_sided import card_memory, process_memory
from liver_slurm.transfer.one_sided.card_memory import CardReader
from liver_slurm.transfer.one_sided.description import (
    BoxDescription,
    Description,
    Reader,
    Refusal,
    View,
    check,
    decode,
    own_proof,
    view_of,
)
from liver_slurm.transfer.one_sided.line import COUNTER, FIRST_BOX, Line
from liver_slurm.transfer.one_sided.network import NetworkReader
from liver_slurm.transfer.one_sided.process_memory import ProcessReader, let_others_read
from liver_slurm.transfer.one_sided.registered_memory import Agent, RegisteredReader
from liver_slurm.transfer.one_sided.staging import Staging
from liver_slurm.transfer.shared_box import SharedBox

_log = logging.getLogger(__name__)

Way = Literal["memory", "nixl", "network"]
"""Directly, on one machine; by RDMA; over a connection."""
_ALL_WAYS: tuple[Way, ...] = ("memory", "nixl", "network")
_WAYS: dict[str, tuple[Way, ...]] = {"shm": ("memory",), "ucx": ("nixl",), "tcp": ("network",)}
"""By ``stream.transport``; with any other value all of them."""
_NAMES = {"nixl": "nixl", "network": "a connection"}


class Source(NamedTuple):
    """One owner, as its receiver sees it."""

    description: Description
    reader: Reader
    way: Way


class Agreement(NamedTuple):
    """How all pairs of workers of a transfer read."""

    sources: Mapping[int, Source]
    """By peer, what this worker reads."""
    read_by: Mapping[int, Way]
    """Peers that read this worker's, and how."""


def agree(
    store: Any,
    me: int,
    peers: int,
    outgoing: Mapping[int, Description],
    incoming: Collection[int],
    open_reader: Callable[[int, Description], tuple[Way, Reader]],
) -> Agreement:
    """Agree with all workers of both worlds; blocks until all have come.

    Args:
        store: a torch store of the transfer's own scope.
        me, peers: this worker's number, and how many there are.
        outgoing: by peer, what it gets from here.
        incoming: peers that something comes from.
        open_reader: opens a peer's memory in the best way that there is, or raises Refusal.

    Raises:
        BadInput: some worker cannot read another's state in any way that ``stream.transport`` allows; on all alike.
    """
    for peer, description in outgoing.items():
        store.set(f"boxes/{me}/{peer}", msgspec.msgpack.encode(description))
    sources: dict[int, Source] = {}
    with ExitStack() as opened:  # what is closed again where the rest fails, as where the store is closed meanwhile
        for peer in incoming:
            said = store.get(f"boxes/{peer}/{me}")
            try:
                owner = decode(said)
                way, reader = open_reader(peer, owner)
            except Refusal as error:
                store.set("refused", str(error))
                store.set(f"answer/{peer}/{me}", "")
                store.add("refusals", 1)
            else:
                opened.callback(reader.close)
                sources[peer] = Source(owner, reader, way)
                store.set(f"answer/{peer}/{me}", way)
        read_by = {
            peer: msgspec.convert(store.get(f"answer/{me}/{peer}").decode() or None, Way | None) for peer in outgoing
        }
        if store.add("come", 1) == peers:
            store.set("complete", "")
        store.wait(["complete"])
        if store.add("refusals", 0):
            raise BadInput(store.get("refused").decode())
        opened.pop_all()
    return Agreement(sources, {peer: way for peer, way in read_by.items() if way is not None})


def describe(boxes: Sequence[SharedBox], counter: torch.Tensor, agent: bytes = b"") -> Description:
    """Describe this process's boxes for one that will read them.

    Args:
        agent: metadata of the nixl agent that they are registered with; empty: they are with none.
    """
    on_card = counter.is_cuda
    number = FIRST_BOX

    def numbered(tensor: torch.Tensor) -> View:
        nonlocal number
        number += 1
        return msgspec.structs.replace(view_of(tensor), number=number - 1)

    described = [
        BoxDescription(
            tuple(map(numbered, box.state)),
            numbered(box.gradient) if box.gradient is not None else None,
            box.identity,
        )
        for box in boxes
    ]
    found, refused = [], ""
    gradients = [box.gradient for box in boxes if box.gradient is not None]
    tensors = [counter, *(view for box in boxes for view in box.state), *gradients]
    try:
        if on_card:
            found = card_memory.regions(tensors)
        else:
            let_others_read()
            found = process_memory.regions(tensors)
    except Refusal as error:
        refused = str(error)
    return Description(
        machine=machine(),
        pid=os.getpid(),
        proof=None if on_card else own_proof(),
        regions=found,
        counter=msgspec.structs.replace(view_of(counter), number=COUNTER),
        boxes=described,
        refused=refused,
        agent=agent,
        device_number=counter.device.index or 0,
    )


def open_memory(owner: Description, device: torch.device) -> Reader:
    """Return a reader of the owner's memory, which is on this machine.

    Raises:
        Refusal: there can be none.
    """
    check(owner, machine())
    return CardReader(owner, device) if device.type == "cuda" else ProcessReader(owner)


def openers(
    owner: Description, line: Line, device: torch.device, staging: Staging, agent: Agent | None
) -> dict[Way, Callable[[], Reader]]:
    """Return what makes a reader of one owner's state, for each way; each raises Refusal where it does not work.

    Args:
        line: to the owner.
        device: where the state is read to.
        agent: None: nixl is not there, or of no use here.
    """

    def by_nixl() -> Reader:
        if agent is None:
            raise Refusal("nixl is not installed")
        return RegisteredReader(owner, agent, line, device, staging)

    return {
        "memory": partial(open_memory, owner, device),
        "nixl": by_nixl,
        "network": partial(NetworkReader, line, device, staging),
    }


def open_best(transport: str, peer: int, openers: Mapping[Way, Callable[[], Reader]]) -> tuple[Way, Reader]:
    """Return a reader in the best way that ``stream.transport`` allows.

    Args:
        openers: make a reader, or raise Refusal.

    Raises:
        Refusal: it allows none that works.
    """
    reasons: list[str] = []
    for way in _WAYS.get(transport, _ALL_WAYS):
        reader = _try(openers[way], reasons)
        if reader is not None:
            if reasons:
                _log.info("state of worker %d is read over %s: %s", peer, _NAMES[way], "; ".join(reasons))
            return way, reader
    why = f"peer {peer} cannot be read: {'; '.join(reasons)}"
    raise Refusal(f"stream.transport is {transport!r}, but {why}; set it to 'auto'")


def _try(opener: Callable[[], Reader], reasons: list[str]) -> Reader | None:
    try:
        return opener()
    except Refusal as error:
        reasons.append(str(error))
        return None
