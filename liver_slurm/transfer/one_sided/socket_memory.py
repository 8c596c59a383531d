"""Bytes between a stream socket and scattered memory: the kernel copies straight out of, and into, where they lie."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from typing import Any

import numpy as np

from liver_slurm.transfer.one_sided.memory_ranges import MOST, Ranges, advance, behind


class _Message(ctypes.Structure):
    """``struct msghdr``."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("ranges", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


_libc = ctypes.CDLL(None, use_errno=True)
for _call in (_libc.sendmsg, _libc.recvmsg):
    _call.restype, _call.argtypes = ctypes.c_ssize_t, (ctypes.c_int, ctypes.POINTER(_Message), ctypes.c_int)


def send(connection: socket.socket, memory: Ranges) -> None:
    """Send what lies in these ranges.

    Raises:
        OSError: the other end is gone, or a range is not there.
    """
    _carry(_libc.sendmsg, connection, memory, socket.MSG_NOSIGNAL)


def receive(connection: socket.socket, memory: Ranges) -> None:
    """Fill these ranges.

    Raises:
        OSError: the other end is gone.
    """
    # MSG_WAITALL: one call for all of it, so that a busy training thread is asked for the interpreter only once
    _carry(_libc.recvmsg, connection, memory, socket.MSG_WAITALL)


def _carry(call: Any, connection: socket.socket, memory: Ranges, flags: int) -> None:
    left = memory[memory[:, 1] > 0]
    while len(left):
        some = np.ascontiguousarray(left[:MOST])
        message = _Message(ranges=some.ctypes.data, count=len(some))
        done = call(connection.fileno(), ctypes.byref(message), flags)
        if done < 0 and ctypes.get_errno() == errno.EINTR:
            continue
        if done < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        if done == 0:
            raise ConnectionResetError("it hung up")
        left = behind(left, *advance(some, done))
