"""How two workers find out whether one can read the other's memory: through the store, in PREPARE.

An owner describes, for each peer that it has state for, where that state lies; the peer tries to open it, and says
whether it could. Whatever cannot be read comes in messages.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import torch

from liver_slurm.transfer.one_sided.card_memory import CardReader, regions
from liver_slurm.transfer.one_sided.description import (
    BoxDescription,
    Description,
    Reader,
    Refusal,
    check,
    decode,
    own_proof,
    view_of,
)
from liver_slurm.transfer.one_sided.process_memory import ProcessReader, let_others_read
from liver_slurm.transfer.shared_box import SharedBox
from liver_slurm.transfer.transports.mesh import machine

_log = logging.getLogger(__name__)


class Agreement(NamedTuple):
    """Which pairs of workers do without messages."""

    readers: Mapping[int, tuple[Description, Reader]]
    """By peer, the memory that this worker can read."""
    read_by: frozenset[int]
    """Peers that can read this worker's."""
    anywhere: bool
    """Some pair of the whole transfer does."""
    everywhere: bool
    """No pair needs messages."""


def agree(
    store: Any,
    me: int,
    peers: int,
    outgoing: Mapping[int, Sequence[SharedBox]],
    incoming: Mapping[int, Sequence[SharedBox]],
    counter: torch.Tensor,
) -> Agreement:
    """Agree with all workers of both worlds; blocks until all have come.

    Args:
        store: a torch store of the transfer's own scope.
        me, peers: this worker's number, and how many there are.
        outgoing: by peer, the boxes that it gets from here.
        incoming: by peer, where the boxes that come from it go.
        counter: this worker's update counter, on the device where state lies.
    """
    for peer, boxes in outgoing.items():
        store.set(f"boxes/{me}/{peer}", msgspec.msgpack.encode(describe(boxes, counter)))
    readers: dict[int, tuple[Description, Reader]] = {}
    for peer in incoming:
        said, refused = store.get(f"boxes/{peer}/{me}"), ""
        try:
            owner = decode(said)
            readers[peer] = owner, open_reader(owner, counter.device)
        except Refusal as error:
            refused = str(error)
            _log.info("state comes from worker %d in messages: %s", peer, refused)
        store.set(f"answer/{peer}/{me}", refused or "yes")
    read_by = frozenset(peer for peer in outgoing if store.get(f"answer/{me}/{peer}") == b"yes")
    store.add("reads", len(read_by))
    store.add("messages", len(outgoing) - len(read_by))
    if store.add("come", 1) == peers:
        store.set("complete", "")
    store.wait(["complete"])
    return Agreement(readers, read_by, store.add("reads", 0) > 0, store.add("messages", 0) == 0)


def describe(boxes: Sequence[SharedBox], counter: torch.Tensor) -> Description:
    """Describe this process's boxes for one that will read them."""
    on_card = counter.is_cuda
    described = [
        BoxDescription(tuple(map(view_of, box.state)), view_of(box.gradient) if box.gradient is not None else None)
        for box in boxes
    ]
    found, refused = [], ""
    try:
        if on_card:
            gradients = [box.gradient for box in boxes if box.gradient is not None]
            found = regions([counter, *(view for box in boxes for view in box.state), *gradients])
        else:
            let_others_read()
    except Refusal as error:
        refused = str(error)
    return Description(
        machine=machine(),
        pid=os.getpid(),
        proof=None if on_card else own_proof(),
        regions=found,
        counter=view_of(counter),
        boxes=described,
        refused=refused,
    )


def open_reader(owner: Description, device: torch.device) -> Reader:
    """A reader of the owner's memory.

    Raises:
        Refusal: there can be none.
    """
    check(owner, machine())
    return CardReader(owner, device) if device.type == "cuda" else ProcessReader(owner)
