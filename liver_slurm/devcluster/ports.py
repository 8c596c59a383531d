"""A block of ports for one cluster.

Blocks are aligned, so two clusters' blocks never overlap in part: whoever holds a block's first ports holds all of it,
srun's range included. They lie below the ephemeral ports: when the kernel has lent slurmctld's port to some outgoing
connection, slurmctld returns 0 and then dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from liver_slurm.base.errors import BadInput, ClusterError

BLOCK = 512
FIRST_BASE = 10240
END = 32768
LAST_BASE = END - BLOCK
FEW = 100
"""Nodes whose ports are in the cluster's first block. Those of more are in blocks of their own behind it, from each
one's first port on, so that another cluster sees them taken."""
_SLURMD = 10
_SRUN = _SLURMD + FEW


@dataclass(frozen=True)
class PortBlock:
    """The ports of one cluster, by what listens on them."""

    base: int
    nodes: int = FEW

    @property
    def slurmctld(self) -> int:
        """slurmctld's port."""
        return self.base

    @property
    def slurmdbd(self) -> int:
        """slurmdbd's port."""
        return self.base + 1

    @property
    def database(self) -> int:
        """MariaDB's port."""
        return self.base + 2

    def slurmd(self, node: int) -> int:
        """Return the port of the slurmd of node ``node``, counted from 0."""
        return self.base + (_SLURMD if self.nodes <= FEW else BLOCK) + node

    @property
    def srun(self) -> tuple[int, int]:
        """First and last port that srun and its steps listen on."""
        return self.base + _SRUN, self.base + BLOCK - 1

    @property
    def fixed(self) -> list[int]:
        """Ports that must be free before the cluster comes up."""
        return [self.slurmctld, self.slurmdbd, self.database, *(self.slurmd(node) for node in range(self.nodes))]

    @property
    def end(self) -> int:
        """The port behind the last one."""
        blocks = 1 if self.nodes <= FEW else 1 + -(-self.nodes // BLOCK)
        return self.base + blocks * BLOCK


def is_free(port: int) -> bool:
    """Return whether nobody listens on ``port`` on any address.

    Raises:
        OSError: for any other reason than that the port is taken.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As Slurm's daemons do: an old connection in TIME_WAIT does not take a port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def choose_block(nodes: int, wanted: int | None = None) -> PortBlock:
    """Return a block whose fixed ports are all free: the wanted one, or the first.

    Call it under :func:`port_lock`, and keep the lock until the daemons listen.

    Raises:
        BadInput: ``wanted`` is no block's first port, or one of its ports is in use.
        ClusterError: no block is free.
    """
    if wanted is not None:
        block = PortBlock(wanted, nodes)
        if not (wanted >= 1024 and block.end <= END and wanted % BLOCK == 0):
            last = END - (block.end - block.base)
            raise BadInput(f"--port {wanted}: must be a multiple of {BLOCK} between 1024 and {last}")
        taken = [port for port in block.fixed if not is_free(port)]
        if taken:
            raise BadInput(f"--port {wanted}: port {taken[0]} is in use; name another block or leave --port out")
        return block
    for base in range(FIRST_BASE, LAST_BASE + 1, BLOCK):
        block = PortBlock(base, nodes)
        if block.end <= END and all(is_free(port) for port in block.fixed):
            return block
    raise ClusterError(
        f"no block of {BLOCK} ports between {FIRST_BASE} and {LAST_BASE + BLOCK - 1} is free: take another cluster down"
    )


@contextmanager
def port_lock() -> Iterator[None]:
    """Keeps every other ``cluster up`` of this machine, any user's, from choosing a block at the same time."""
    # The folder itself is locked, so that no lock file is left behind that other users could not open.
    descriptor = os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
