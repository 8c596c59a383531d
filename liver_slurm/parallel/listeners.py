"""Sockets that this process listens on: torch's gloo leaves one open for each group, and takes whoever calls.

What calls there after the group's own connections are made is a stranger. gloo never hangs up on one, and ends the
process once it has no descriptors left. It cannot be told to stop listening; but Linux lets a socket have a filter, and
one that takes no packet drops each request for a connection. Connections that are made have no part in it.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import struct
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_SO_ATTACH_FILTER = 26
_TAKE_NOTHING = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
"""A program of the kernel's packet filter, of one instruction: ``BPF_RET | BPF_K`` with 0 bytes."""
_lock = threading.Lock()
_ours: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def create_server(address: tuple[str, int], backlog: int) -> socket.socket:
    """Listen on a TCP port as :func:`socket.create_server` does; :func:`closed_afterwards` leaves the socket alone.

    Raises:
        OSError: that cannot be done.
    """
    server = socket.socket(socket.AF_INET)
    with _lock:
        _ours.add(server)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen(backlog)
    except OSError:
        server.close()
        raise
    return server


@contextmanager
def closed_afterwards() -> Iterator[None]:
    """Have nobody call any more, after the block, where the block has begun to listen as gloo does.

    gloo waits for its callers with an epoll instance that it makes, too, as nothing else does that may begin to listen
    in another thread meanwhile.
    """
    before = _descriptors()
    yield
    known = set(before.values())
    new = {number: link for number, link in _descriptors().items() if link not in known or before.get(number) != link}
    with _lock:
        ours = {server.fileno() for server in _ours}
    for number in {tag for each, link in new.items() if "eventpoll" in link for tag in _watched(each)}:
        if new.get(number, "").startswith("socket:") and number not in ours:
            _close_if_it_listens(number)


def _descriptors() -> dict[int, str]:
    """Return what each descriptor of this process is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def _watched(epoll: int) -> list[int]:
    """Return the descriptors that an epoll instance waits for."""
    with suppress(FileNotFoundError), open(f"/proc/self/fdinfo/{epoll}") as file:
        return [int(number) for number in re.findall(r"^tfd:\s*(\d+)", file.read(), re.MULTILINE)]
    return []


def _close_if_it_listens(number: int) -> None:
    copy = os.dup(number)
    try:
        with socket.socket(fileno=copy) as one:
            copy = -1
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                program = struct.pack("HL", 1, ctypes.addressof(_TAKE_NOTHING))
                one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    finally:
        if copy >= 0:
            os.close(copy)
