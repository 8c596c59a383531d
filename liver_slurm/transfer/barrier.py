"""A barrier of all workers of a transfer, over connections of its own."""

from __future__ import annotations

from liver_slurm.base.errors import TransferError
from liver_slurm.transfer.connections import Connections, receive_exactly

_TOKEN = b"\1"


class Barrier:
    """In each round a worker hears from another one twice as far away.

    The dissemination barrier of Hensgen, Finkel & Manber (1988). What every peer has done before it comes, is done
    everywhere when all have left.
    """

    def __init__(self, connections: Connections, me: int, peers: int) -> None:
        """Dials whom it will tell; off the critical path.

        Args:
            connections: for this alone; closed by whoever has made them.
            me, peers: this worker's number there, of how many.

        Raises:
            TransferError: one of them is gone.
        """
        self._connections, self._me, self._peers = connections, me, peers
        self._distances = [1 << round_ for round_ in range((peers - 1).bit_length())]
        for distance in self._distances:
            connections.outgoing((me + distance) % peers)

    def wait(self) -> None:
        """Return when every peer has come here.

        Raises:
            TransferError: a peer is gone, or the transfer was given up.
        """
        try:
            for distance in self._distances:
                self._connections.outgoing((self._me + distance) % self._peers).sendall(_TOKEN)
                origin = self._connections.incoming((self._me - distance) % self._peers)
                receive_exactly(origin, memoryview(bytearray(len(_TOKEN))))
        except OSError as error:
            raise TransferError(f"a peer went away while late layers moved: {error}") from error
