"""Where the coordinator listens: a small file in the run directory, replaced atomically at each of its starts."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from liver_slurm.errors import BadInput, ControlError


@dataclass(frozen=True)
class Address:
    """Where one coordinator process listens."""

    host: str
    port: int
    epoch: int
    pid: int

    @property
    def endpoint(self) -> str:
        """The address as ZeroMQ writes it."""
        return f"tcp://{self.host}:{self.port}"


def write(file: Path, address: Address) -> None:
    """Replace ``file``; a reader sees the old address or the new one, never half of one."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        json.dump(asdict(address), stream)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)


def read(file: Path) -> Address:
    """Read an address.

    Raises:
        ControlError: no coordinator has started yet, or the file is damaged.
    """
    try:
        return Address(**json.loads(file.read_text()))
    except FileNotFoundError:
        raise ControlError(f"{file} is missing: the run's coordinator has not started yet, or has ended") from None
    except (OSError, ValueError, TypeError) as error:
        raise ControlError(f"{file} cannot be read as a coordinator's address: {error}") from None


def reachable_host(interface: str | None) -> str:
    """The name or address under which other nodes reach this one, on ``interface`` if one is named.

    Raises:
        BadInput: there is no such interface, or it has no IPv4 address.
    """
    if interface is None:
        return _resolvable_name()
    import psutil

    for address in psutil.net_if_addrs().get(interface, ()):
        if address.family == socket.AF_INET:
            return address.address
    known = ", ".join(sorted(psutil.net_if_addrs()))
    raise BadInput(f"stream.interface: {interface!r} has no IPv4 address on {socket.gethostname()}; there are: {known}")


def _resolvable_name() -> str:
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None, socket.AF_INET)
    except socket.gaierror:
        return "127.0.0.1"  # a machine that does not know its own name is alone
    return name
