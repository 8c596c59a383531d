"""Which of this host's addresses other nodes use: that of the interface which the user names, or of the host's name."""

from __future__ import annotations

import socket

from liver_slurm.base.errors import BadInput


def reachable_host(interface: str | None, key: str = "stream.interface") -> str:
    """Return the name or address under which other nodes reach this one, on ``interface`` if one is named.

    Args:
        key: where the job file names it.

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
    raise BadInput(f"{key}: {interface!r} has no IPv4 address on {socket.gethostname()}; there are: {known}")


def _resolvable_name() -> str:
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None, socket.AF_INET)
    except socket.gaierror:
        return "127.0.0.1"  # a machine that does not know its own name is alone
    return name
