"""Only what the coordinator vouches for is a target."""

from __future__ import annotations

from liver_slurm.chaos.schedule import Target
from liver_slurm.chaos.targets import targets_of
from liver_slurm.observability.status import RunStatus, WorkerStatus
from liver_slurm.rundir.address import Address

HERE = Address(host="n0", port=5000, epoch=3, pid=7)


def worker(name: str, began: int = 100) -> WorkerStatus:
    role = name.split("-")[0]
    return WorkerStatus(worker=name, role=role, host="n1", pid=4711, began=began, job_id="21")


def status(*workers: WorkerStatus, standbys: tuple[WorkerStatus, ...] = (), epoch: int = 3) -> RunStatus:
    return RunStatus(
        state="training",
        epoch=epoch,
        step=1,
        steps=2,
        generation=0,
        layout=None,
        target=None,
        workers=list(workers),
        standbys=list(standbys),
        last_reconfiguration=None,
        reason="",
    )


def test_members_standbys_and_the_coordinator() -> None:
    found, why = targets_of(status(worker("live-0"), worker("standby-1"), standbys=(worker("standby-2"),)), HERE, "20")
    assert why == ""
    assert found == [
        Target("live-0", "live", "n1", 4711, 100, job_id="21"),
        Target("standby-1", "live", "n1", 4711, 100, job_id="21", reclaimable=True),
        Target("standby-2", "standby", "n1", 4711, 100, job_id="21", reclaimable=True),
        Target("coordinator", "coordinator", "n0", 7, None, port=5000, job_id="20"),
    ]


def test_what_is_not_vouched_for_is_left_out() -> None:
    of_files = WorkerStatus(worker="live-1")
    found, why = targets_of(status(worker("live-0", began=0), of_files, epoch=4), HERE)
    assert found == []
    assert why == "not proven to be the run's: live-0, live-1, coordinator"
