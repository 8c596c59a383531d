"""How two peers of a transfer prove to each other that they belong to it, and what a stranger can do until then.

Each process has a random token, which peers learn from the run's store; only holders of the run's keys can read that.
The token itself never crosses a data connection: both ends show that they know it, over numbers that are used once.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import socket
import struct
from collections.abc import Callable

CHALLENGE = 32
"""Bytes that whoever is dialled says first."""
_INTRODUCTION = struct.Struct("<I32s32s")
"""The dialler's number, its own challenge, and its proof."""
INTRODUCTION = _INTRODUCTION.size
PATIENCE = 60.0
"""Seconds that whoever was dialled may take to answer: it is a thread beside one that trains."""
CALLER_SECONDS = 5.0
"""Time in which a caller must have introduced itself."""
MOST_CALLERS = 64
"""Callers beyond the number of peers that may be about to introduce themselves; then the oldest is hung up on."""


def _proof(token: bytes, *said: bytes) -> bytes:
    return hmac.new(token, b"".join(said), hashlib.sha256).digest()


def challenge() -> bytes:
    """Return a number that is used once."""
    return secrets.token_bytes(CHALLENGE)


def introduction(token: bytes, me: int, theirs: bytes, ours: bytes) -> bytes:
    """Return what the dialler ``me`` says to whoever has the token, and has said ``theirs``."""
    number = me.to_bytes(4, "little")
    return _INTRODUCTION.pack(me, ours, _proof(token, b"dials", number, theirs, ours))


def answer_to(token: bytes, ours: bytes, said: bytes) -> tuple[int, bytes] | None:
    """Return the number of a caller that has introduced itself, and what to answer.

    None: it does not know the token.
    """
    peer, theirs, proof = _INTRODUCTION.unpack(said)
    if not hmac.compare_digest(proof, _proof(token, b"dials", peer.to_bytes(4, "little"), ours, theirs)):
        return None
    return peer, _proof(token, b"takes", theirs)


def introduce(
    connection: socket.socket, token: bytes, me: int, receive: Callable[[socket.socket, memoryview], None]
) -> None:
    """Introduce this process to whoever it has dialled.

    Raises:
        OSError: it hung up, said nothing in time, or does not know its own token: somebody else has its address.
    """
    connection.settimeout(PATIENCE)
    theirs, proof, ours = bytearray(CHALLENGE), bytearray(hashlib.sha256().digest_size), challenge()
    receive(connection, memoryview(theirs))
    connection.sendall(introduction(token, me, bytes(theirs), ours))
    receive(connection, memoryview(proof))
    if not hmac.compare_digest(proof, _proof(token, b"takes", ours)):
        raise ConnectionRefusedError("whoever listens there is somebody else")
    connection.settimeout(None)


def same_user(connection: socket.socket) -> bool:
    """Return whether the other end of a connection within this machine is a process of this user."""
    credentials = struct.Struct("3i")
    _, user, _ = credentials.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size))
    return bool(user == os.geteuid())
