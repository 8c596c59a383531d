"""State that is no tensor, such as a scheduler's: it travels as the bytes of one tensor of a fixed size."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec
import torch

from liver_slurm.base.errors import RunIsOver

ROOM = 1 << 16
"""Bytes of that tensor: its size must be the same in every world."""
_HEAD = 8
"""Bytes that say how many follow."""


def pack(state: dict[str, Any], into: torch.Tensor) -> None:
    """Write plain data into a tensor of :data:`ROOM` bytes.

    Raises:
        RunIsOver: it is not plain, or larger.
    """
    for name, value in state.items():
        _check_plain(name, value)
    # A model may have thousands of parameters, each with a counter of the same value.
    content = zlib.compress(msgspec.msgpack.encode(state), 1)
    if len(content) > ROOM - _HEAD:
        raise RunIsOver(f"the state of {', '.join(state)} takes {len(content)} bytes; allowed: {ROOM - _HEAD} in all")
    whole = bytearray(len(content).to_bytes(_HEAD, "little") + content)
    into[: len(whole)].copy_(torch.frombuffer(whole, dtype=torch.uint8))


def unpack(packed: torch.Tensor) -> dict[str, Any]:
    """Undo :func:`pack`."""
    content = bytes(packed.cpu().tolist())
    length = int.from_bytes(content[:_HEAD], "little")
    found: dict[str, Any] = msgspec.msgpack.decode(zlib.decompress(content[_HEAD : _HEAD + length]))
    return found


def _check_plain(name: str, value: Any) -> None:
    try:
        msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise RunIsOver(f"the state of {name} is not numbers, text, lists and dictionaries: {error}") from error
