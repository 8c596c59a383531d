"""Giving nodes of the guaranteed job back to Slurm, component by component."""

from __future__ import annotations

import threading

from liver_slurm.base.errors import ClusterError
from liver_slurm.scheduler.slurm.client import SlurmClient
from liver_slurm.scheduler.slurm.records import JobInfo

PATIENCE = 60.0
"""Seconds that nodes may take until they are free; a component that is ended may use all of KillWait."""
LOOK = 0.5


class GuaranteedNodes:
    """Implements :class:`liver_slurm.scheduler.ports.NodeReleaser` for one guaranteed job."""

    def __init__(self, client: SlurmClient, job_id: str, look: float = LOOK) -> None:
        """``look``: seconds between looks at a component that loses nodes."""
        self._client, self._job_id, self._look = client, job_id, look
        self._stopped = threading.Event()

    def give_back(self, component: int, keep: int) -> tuple[tuple[str, ...], bool]:
        """Shrink the job to its first nodes: Slurm drops the last ones, and has no way to name others (measured)."""
        before = self._component(component)
        if before is None:
            return (), False
        if keep == 0:
            self._client.cancel([str(before.number)])
        elif len(before.nodes) > keep:  # else a coordinator that died since has had them taken
            self._client.update_job(str(before.number), {"NumNodes": str(keep)})
        for _ in range(int(PATIENCE / self._look)):
            after = self._component(component)
            nodes = after.nodes if after is not None else ()
            if len(nodes) <= keep:
                return tuple(node for node in before.nodes if node not in nodes), self._accounting()
            if self._stopped.wait(self._look):
                raise ClusterError("the coordinator has ended")
        raise ClusterError(f"Slurm was told to take nodes of component {component} back, and has not in {PATIENCE:g} s")

    def stop(self) -> None:
        self._stopped.set()

    def _component(self, number: int) -> JobInfo | None:
        """Return the component as it is now; None if it is over."""
        jobs = self._client.jobs([self._job_id])
        return next((job for job in jobs if job.component == number and not job.is_over), None)

    def _accounting(self) -> bool:
        # Without slurmdbd, 22.05 refuses to shrink a job a second time: "the DB index is being set", for ever.
        return "slurmdbd" in self._client.config().get("AccountingStorageType", "")
