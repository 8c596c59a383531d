"""Turning pyslurm's objects into records. The objects have the attributes and values of pyslurm 25.11.2's sources."""

from __future__ import annotations

import enum
import os
from types import SimpleNamespace
from typing import Any

import pytest

from liver_slurm.base.errors import ClusterError
from liver_slurm.base.query_budget import QueryBudget
from liver_slurm.scheduler.slurm import pyslurm_client
from liver_slurm.scheduler.slurm.command import NotAnswering
from liver_slurm.scheduler.slurm.pyslurm_client import PyslurmClient


def expand(expression: str) -> tuple[str, ...]:
    return {"n[2-3]": ("n2", "n3"), "n[2-3,5]": ("n2", "n3", "n5")}.get(expression, (expression,))


def job(**changes: Any) -> SimpleNamespace:
    values: dict[str, Any] = {
        "id": 21,
        "heterogeneous_id": None,
        "heterogeneous_offset": None,
        "array_id": None,
        "array_task_id": None,
        "array_tasks_waiting": None,
        "user_id": os.getuid(),
        "state": "RUNNING",
        "partition": "live",
        "allocated_nodes": "n[2-3]",
        "preempt_time": None,
        "requeue_count": 0,
        "state_reason": "None",
        "time_limit": 90,
        "end_time": 1795498920,
        "name": "x",
        "comment": None,
        "qos": None,
    }
    return SimpleNamespace(**{**values, **changes})


def node(**changes: Any) -> SimpleNamespace:
    values: dict[str, Any] = {
        "name": "n1",
        "state": "MIXED",
        "idle_cpus": 3,
        "total_cpus": 4,
        "configured_gres": {"gpu:fake": 2},
        "allocated_gres": {"gpu": 1, "gpu:fake": 1},
        "real_memory": 24105,
        "allocated_memory": 1000,
        "available_features": ["h100", "ib"],
        "reason": None,
        "partitions": ["live", "prod"],
    }
    return SimpleNamespace(**{**values, **changes})


class Flags(enum.Flag):
    MAINTENANCE = 1
    IGNORE_RUNNING_JOBS = 2
    OVERLAP = 4


def test_job() -> None:
    info = pyslurm_client.job_info(job(preempt_time=1795498910), expand)
    assert (info.job_id, info.number, info.state, info.nodes) == ("21", 21, "RUNNING", ("n2", "n3"))
    assert (info.preempt_time, info.end_time, info.time_limit) == (1795498910.0, 1795498920.0, 5400.0)
    assert (info.reason, info.comment, info.qos) == ("", "", "")


def test_pending_job() -> None:
    info = pyslurm_client.job_info(
        job(
            state="PENDING",
            allocated_nodes=None,
            time_limit=None,
            end_time=None,
            state_reason="Dependency",
        ),
        expand,
    )
    assert (info.nodes, info.time_limit, info.end_time) == ((), None, None)
    assert info.reason == "Dependency"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"heterogeneous_id": 21}, "21+0"),
        ({"id": 22, "heterogeneous_id": 21, "heterogeneous_offset": 1}, "21+1"),
        ({"array_id": 21}, "21_0"),
        ({"id": 24, "array_id": 21, "array_task_id": 3}, "21_3"),
        ({"array_id": 21, "array_tasks_waiting": "4-7"}, "21_[4-7]"),
    ],
)
def test_job_name(changes: dict[str, Any], name: str) -> None:
    assert pyslurm_client.job_name(job(**changes)) == name


def test_step() -> None:
    step = SimpleNamespace(
        job_id=21,
        id="batch",
        name="batch",
        state="RUNNING",
        allocated_nodes=["n[2-3", "5]"],
        ntasks=4,
        start_time=1795498901,
    )
    info = pyslurm_client.step_info(step, expand)
    assert (info.step_id, info.nodes, info.tasks) == ("21.batch", ("n2", "n3", "n5"), 4)


def test_partition() -> None:
    values = {"name": "scavenger", "is_default": False, "state": "UP", "nodes": "n[1-6]", "total_nodes": 6}
    limits = {"max_time": 60, "max_nodes": "UNLIMITED", "priority_tier": 1, "preempt_mode": "CANCEL"}
    info = pyslurm_client.partition_info(SimpleNamespace(**values, **limits, preemption_grace_time=10))
    assert (info.max_time, info.max_nodes, info.grace, info.is_up) == (3600.0, None, 10, True)
    limits = {"max_time": "UNLIMITED", "max_nodes": 2, "priority_tier": None, "preempt_mode": "OFF"}
    info = pyslurm_client.partition_info(SimpleNamespace(**values, **limits, preemption_grace_time=None))
    assert (info.max_time, info.max_nodes, info.grace, info.priority_tier) == (None, 2, 0, 0)


def test_node() -> None:
    info = pyslurm_client.node_info(node())
    assert (info.state, info.cpus_idle, info.cpus, info.gpus, info.gpus_idle) == ("mixed", 3, 4, 2, 1)
    assert (info.memory, info.memory_idle, info.features) == (24105, 23105, {"h100", "ib"})
    info = pyslurm_client.node_info(node(state="IDLE+DRAIN", reason="a disk"))
    assert (info.cpus_idle, info.flags, info.reason) == (0, {"idle", "drain"}, "a disk")


def test_reservation() -> None:
    one = SimpleNamespace(
        name="service",
        start_time=1795500000,
        end_time=1795503600,
        nodes="n[2-3]",
        flags=Flags.MAINTENANCE | Flags.IGNORE_RUNNING_JOBS,
    )
    info = pyslurm_client.reservation_info(one, expand)
    assert (info.nodes, info.flags) == (("n2", "n3"), {"MAINT", "IGNORE_JOBS"})
    assert (info.start_time, info.end_time) == (1795500000.0, 1795503600.0)


class RPCError(Exception):
    """As pyslurm.core.error has it."""

    def __init__(self, msg: str) -> None:
        super().__init__(msg)
        self.msg, self.errno = msg, 1


class Library(SimpleNamespace):
    """pyslurm, as far as the client uses it."""

    def __init__(self, **loaded: Any) -> None:
        super().__init__(RPCError=RPCError, Jobs=SimpleNamespace(), Nodes=SimpleNamespace(), **loaded)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library()
    monkeypatch.setattr(pyslurm_client, "load_library", lambda conf: found)
    return found


class Commands:
    """What the client gives on."""

    def hostnames(self, expression: str) -> tuple[str, ...]:
        return expand(expression)

    def nodes(self, partition: str | None) -> list[str]:
        return [f"by sinfo in {partition}"]


def test_one_question_for_all_jobs(library: Library) -> None:
    budget = QueryBudget(12)
    loaded = {n: job(id=n, heterogeneous_id=21, heterogeneous_offset=n - 21 or None) for n in (21, 22)}
    loaded |= {n: job(id=n, name="y", user_id=n) for n in (30, os.getuid())}
    library.Jobs.load = lambda: loaded
    client = PyslurmClient(Commands(), None, budget)  # type: ignore[arg-type]
    assert [info.job_id for info in client.jobs(["21", "99"])] == ["21+0", "21+1"]
    assert [info.job_id for info in client.jobs(["22"])] == ["21+1"]
    assert [info.number for info in client.jobs(names=("z", "y"))] == [os.getuid()]
    assert [info.number for info in client.jobs(["30", str(os.getuid())], own=True)] == [os.getuid()]
    assert budget.last_minute() == 4


def test_errors_are_ours(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    client = PyslurmClient(Commands(), None)  # type: ignore[arg-type]

    def fail(message: str) -> Any:
        raise RPCError(message)

    library.Jobs.load = lambda: fail("Access/permission denied")
    with pytest.raises(ClusterError, match="pyslurm: Access/permission denied"):
        client.jobs()
    library.Jobs.load = lambda: fail("Unable to contact slurm controller (connect failure)")
    with pytest.raises(NotAnswering):
        client.jobs()


@pytest.mark.parametrize(("tres", "by_sinfo"), [(["cpu", "mem"], True), (["cpu", "gres/gpu"], False)])
def test_gpus_that_the_cluster_does_not_account_for(library: Library, tres: list[str], by_sinfo: bool) -> None:
    library.Nodes.load = lambda: {"n1": node(), "n2": node(name="n2", partitions=[])}
    library.slurmctld = SimpleNamespace(
        Config=SimpleNamespace(load=lambda: SimpleNamespace(accounting_storage_tres=tres))
    )
    found: list[Any] = PyslurmClient(Commands(), None).nodes("live")  # type: ignore[arg-type]
    assert (found == ["by sinfo in live"]) is by_sinfo
    assert by_sinfo or [info.name for info in found] == ["n1"]


def test_whether_the_cluster_accounts_for_gpus_is_asked_once(library: Library) -> None:
    budget = QueryBudget(100)
    library.Nodes.load = lambda: {"n1": node()}
    library.slurmctld = SimpleNamespace(
        Config=SimpleNamespace(load=lambda: SimpleNamespace(accounting_storage_tres=["cpu"]))
    )
    client = PyslurmClient(Commands(), None, budget)  # type: ignore[arg-type]
    client.nodes()
    assert budget.last_minute() == 3
    library.Nodes.load = library.slurmctld.Config.load = lambda: pytest.fail("asked in vain")
    assert client.nodes("live") == ["by sinfo in live"]
    assert budget.last_minute() == 3  # sinfo's own are counted by the commands
