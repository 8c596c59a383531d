"""Parties of a run in network namespaces of their own, on one bridge, with holes between any two of them. Needs root.

A hole is silent, as that of a switch or a firewall that drops: each side has a wrong hardware address for the other, so
nothing arrives, nobody is told, and connections stay open.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

INTERFACE = "eth0"
NOBODY = "02:00:00:00:00:01"
"""A hardware address that no party has."""
_numbers = itertools.count()


def why_not() -> str:
    """Return why there can be no namespaces here; empty: there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2"
    try:
        Network(("probe",)).close()
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"
    return ""


def ip(*arguments: str) -> None:
    """Run iproute2's ``ip``."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Network:
    """A bridge, which this process is on, too, and a namespace for each party."""

    def __init__(self, parties: Sequence[str]) -> None:
        number = next(_numbers) % 100
        self._tag = f"lv{os.getpid() % 100_000}n{number}"
        self._net = f"10.{77 + os.getpid() % 100}.{number}"
        self._parties = {party: index for index, party in enumerate(parties, start=1)}
        try:
            ip("link", "add", self._tag, "type", "bridge")
            ip("address", "add", f"{self._net}.254/24", "dev", self._tag)
            ip("link", "set", self._tag, "up")
            for party in parties:
                self._join(party)
        except BaseException:
            self.close()
            raise

    def _join(self, party: str) -> None:
        space, outer = self._space(party), f"{self._tag}p{self._parties[party]}"
        ip("netns", "add", space)
        ip("link", "add", outer, "type", "veth", "peer", "name", INTERFACE, "netns", space)
        ip("link", "set", outer, "master", self._tag, "up")
        ip("-n", space, "link", "set", "lo", "up")
        ip("-n", space, "address", "add", f"{self.address(party)}/24", "dev", INTERFACE)
        ip("-n", space, "link", "set", INTERFACE, "up")
        # As kernels before 6.5 have it: attempts to connect are repeated after 1, 3, 7, 15 seconds.
        linear = "/proc/sys/net/ipv4/tcp_syn_linear_timeouts"
        ip("netns", "exec", space, "sh", "-c", f"[ ! -e {linear} ] || echo 0 > {linear}")

    def _space(self, party: str) -> str:
        return f"{self._tag}-{party}"

    def address(self, party: str) -> str:
        """Address of a party."""
        return f"{self._net}.{self._parties[party]}"

    def command(self, party: str) -> list[str]:
        """What a command begins with that runs in a party's namespace."""
        return ["ip", "netns", "exec", self._space(party)]

    @contextmanager
    def hole(self, one: str, other: str) -> Iterator[None]:
        """Let nothing through between two parties, in either direction."""
        sides = [(one, other), (other, one)]
        for here, there in sides:
            where = (self.address(there), "dev", INTERFACE)
            ip("-n", self._space(here), "neigh", "replace", *where, "lladdr", NOBODY, "nud", "permanent")
        try:
            yield
        finally:
            for here, there in sides:
                ip("-n", self._space(here), "neigh", "del", self.address(there), "dev", INTERFACE)

    def close(self) -> None:
        """Remove all of it; processes in a namespace keep it alive until they end."""
        for party in self._parties:
            subprocess.run(["ip", "netns", "del", self._space(party)], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self._tag], check=False, capture_output=True)
