"""Parsing of what Slurm's commands print."""

from __future__ import annotations

import pytest

from liver_slurm.scheduler.slurm import parsing
from liver_slurm.scheduler.slurm.parsing import SEPARATOR, parse_duration, parse_memory


def table(*rows: tuple[str, ...]) -> str:
    return "".join("".join(f"{value:20}{SEPARATOR}" for value in row) + "\n" for row in rows)


def expand(expression: str) -> tuple[str, ...]:
    return {"n[2-3]": ("n2", "n3")}.get(expression, (expression,))


JOB = (
    "21+1",
    "RUNNING",
    "live",
    "n[2-3]",
    "1795498910",
    "2",
    "None",
    "1-00:00:00",
    "1795498920",
    "my, job",
    "a|b ",
    "low",
    "22",
)


def test_job() -> None:
    (job,) = parsing.parse_jobs(table(JOB), expand)
    assert (job.job_id, job.leader, job.component) == ("21+1", "21", 1)
    assert job.nodes == ("n2", "n3")
    assert (job.preempt_time, job.end_time, job.time_limit) == (1795498910.0, 1795498920.0, 86400.0)
    assert (job.restarts, job.reason) == (2, "")
    assert (job.name, job.comment, job.qos) == ("my, job", "a|b", "low")
    assert job.number == 22
    assert not job.is_over


def test_pending_job() -> None:
    row = ("7", "PENDING", "scavenger", "", "N/A", "0", "Resources", "UNLIMITED", "N/A", "x", "(null)", "(null)")
    (job,) = parsing.parse_jobs(table((*row, "7")), expand)
    assert (job.nodes, job.preempt_time, job.end_time, job.time_limit) == ((), None, None, None)
    assert (job.reason, job.comment) == ("Resources", "")
    assert (job.leader, job.component) == ("7", 0)
    assert job.number == 7


@pytest.mark.parametrize("state", ["COMPLETED", "PREEMPTED", "CANCELLED", "TIMEOUT", "NODE_FAIL"])
def test_over(state: str) -> None:
    (job,) = parsing.parse_jobs(table((JOB[0], state, *JOB[2:])), expand)
    assert job.is_over


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING"])
def test_not_over(state: str) -> None:
    (job,) = parsing.parse_jobs(table((JOB[0], state, *JOB[2:])), expand)
    assert not job.is_over


def test_lines_of_another_kind_are_left_out() -> None:
    assert len(parsing.parse_jobs("slurm_load_jobs warning\n\n" + table(JOB), expand)) == 1


def test_reservations() -> None:
    one = (
        "ReservationName=service StartTime=1795500000 EndTime=1795503600 Duration=01:00:00 Nodes=n[2-3] NodeCnt=2 "
        "Features=(null) PartitionName=(null) Flags=MAINT,IGNORE_JOBS,SPEC_NODES TRES=cpu=8 Users=root State=INACTIVE"
    )
    (found,) = parsing.parse_reservations(f"{one}\n\n", expand)
    assert (found.name, found.start_time, found.end_time) == ("service", 1795500000.0, 1795503600.0)
    assert found.nodes == ("n2", "n3")
    assert found.flags == {"MAINT", "IGNORE_JOBS", "SPEC_NODES"}
    assert parsing.parse_reservations("No reservations in the system\n", expand) == []


def test_config() -> None:
    text = (
        "Configuration data as of 1795500000\nKillWait                = 30 sec\nPreemptType             = preempt/qos\n"
    )
    assert parsing.parse_config(text) == {"KillWait": "30 sec", "PreemptType": "preempt/qos"}


def test_qos_grace() -> None:
    assert parsing.parse_qos_grace("normal|00:00:00\nlow|00:01:30\n") == {"normal": 0.0, "low": 90.0}


def test_node() -> None:
    row = ("n1", "mixed*", "1/3/0/4", "gpu:fake:2(S:0),nic:1", "gpu:fake:1(IDX:0)", "24105", "1000", "h100,ib")
    rows = [(*row, "none", "live*"), (*row, "none", "prod")]
    (node,) = parsing.parse_nodes(table(*rows))
    assert (node.name, node.state, node.cpus_idle, node.cpus) == ("n1", "mixed+not_responding", 3, 4)
    assert (node.flags, node.partitions, node.reason) == ({"mixed", "not_responding"}, {"live", "prod"}, "")
    assert (node.gpus, node.gpus_idle, node.memory, node.memory_idle) == (2, 1, 24105, 23105)
    assert node.features == {"h100", "ib"}


@pytest.mark.parametrize(("count", "cut"), [(14, False), (120, True)])
def test_nodes_with_many_features(count: int, cut: bool) -> None:
    """As of sites that describe a node's parts in them; the wanted one comes last."""
    names = [f"CPU_PROPERTY_NUMBER_{number:03}" for number in range(count)] + ["GPU_SKU_H100"]
    shown = ",".join(names)[: parsing.WIDER["Features"]]
    assert len(shown) > parsing.WIDTH
    row = ("n1", "idle", "0/4/0/4", "(null)", "gpu:0", "1", "0", shown, "none", "live*")
    (node,) = parsing.parse_nodes(table(row))
    assert node.has_more == cut
    assert node.features <= set(names), "no half of a name"
    assert ("GPU_SKU_H100" in node.features) != cut


def test_node_without_anything() -> None:
    row = ("n1", "idle+drain", "0/0/4/4", "(null)", "gpu:0", "1", "0", "(null)", "a disk: bad, really", "live*")
    (node,) = parsing.parse_nodes(table(row))
    assert node.reason == "a disk: bad, really"
    assert (node.state, node.gpus, node.gpus_idle, node.features) == ("idle+drain", 0, 0, frozenset())


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("IDLE", "idle"),
        ("idle#", "idle"),
        ("down*", "down+not_responding"),
        ("IDLE+NOT_RESPONDING", "idle+not_responding"),
        ("idle+not_responding*", "idle+not_responding"),
    ],
)
def test_node_state(text: str, state: str) -> None:
    assert parsing.node_state(text) == state


def test_steps() -> None:
    text = (
        "StepId=1.batch UserId=0 StartTime=1795533337 TimeLimit=UNLIMITED State=RUNNING Partition=live NodeList=n3 "
        "Nodes=1 CPUs=0 Tasks=1 Name=batch Network=(null) SrunHost:Pid=(null):0\n"
        "StepId=1.0 UserId=0 StartTime=1795533338 TimeLimit=UNLIMITED State=RUNNING Partition=live NodeList=n[2-3] "
        "Nodes=2 CPUs=1 Tasks=4 Name=sleep Network=(null) SrunHost:Pid=vm:17794\n\nNo job steps in the system\n"
    )
    batch, step = parsing.parse_steps(text, expand)
    assert (batch.step_id, batch.name, batch.nodes) == ("1.batch", "batch", ("n3",))
    assert (step.step_id, step.state, step.nodes, step.tasks) == ("1.0", "RUNNING", ("n2", "n3"), 4)
    assert step.start_time == 1795533338.0


def test_partitions() -> None:
    text = (
        "PartitionName=scavenger AllowGroups=ALL Default=NO GraceTime=10 MaxNodes=UNLIMITED MaxTime=1-00:00:00 "
        "Nodes=n[1-6] PriorityTier=1 PreemptMode=CANCEL State=UP TotalCPUs=24 TotalNodes=6\n"
        "PartitionName=live Default=YES GraceTime=0 MaxNodes=2 MaxTime=UNLIMITED Nodes=(null) PriorityTier=100 "
        "PreemptMode=OFF State=DOWN TotalNodes=0 SomethingNew=x\n"
    )
    scavenger, live = parsing.parse_partitions(text)
    assert (scavenger.name, scavenger.is_default, scavenger.is_up, scavenger.grace) == ("scavenger", False, True, 10)
    assert (scavenger.max_time, scavenger.max_nodes, scavenger.total_nodes) == (86400.0, None, 6)
    assert (live.is_default, live.is_up, live.max_time, live.max_nodes, live.nodes) == (True, False, None, 2, "")


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("(null)", 0),
        ("gpu:4", 4),
        ("gpu:a100:8(S:0-1)", 8),
        ("gpu:a100:2(IDX:0-1),gpu:h100:1(IDX:5,7),nic:4", 3),
        ("gpu:fake:0(IDX:N/A)", 0),
        ("shard:gpu:4", 0),
        ("gpu:3090:4(S:0-1)", 4),
        ("gpu:1080:2(IDX:0,1)", 2),
        ("gpu:(null):2(IDX:0-1)", 2),
        ("gpu:(null):0(IDX:N/A)", 0),
        ("gpu:a100_1g.5gb:7(S:0)", 7),
        ("gpu:a100:no_consume:4", 4),
        ("gpu:no_consume:4", 4),
        ("shard:16,gpu:l40s:2(S:0-1)", 2),
        ("gpu:l40s:2(S:0-1),shard:l40s:16(S:0-1)", 2),
        ("gpu:a100:2(S:0),gpu:a100:2(S:1)", 4),
        ("gpu:a100:1K", 1024),
        ("tmp:844G,gpu:2", 2),
    ],
)
def test_count_gpus(gres: str, count: int) -> None:
    assert parsing.count_gpus(gres) == count


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("24:00:00", 86400),
        ("2-12", 216000),
        ("1-01:30", 91800),
        ("1-00:00:05", 86405),
        ("UNLIMITED", None),
        ("infinite", None),
    ],
)
def test_duration(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["4h", "1:2:3:4", "-5", "soon"])
def test_not_a_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a time as Slurm writes it"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "mebibytes"), [("4000", 4000), ("4000M", 4000), ("16G", 16384), ("2048K", 2), ("1T", 1 << 20)]
)
def test_memory(text: str, mebibytes: int) -> None:
    assert parse_memory(text) == mebibytes


def test_not_memory() -> None:
    with pytest.raises(ValueError, match="not an amount of memory"):
        parse_memory("lots")


def test_a_node_list_that_was_cut_off_is_asked_for() -> None:
    width = parsing.WIDER["NodeList"]
    full = "gpu[" + ",".join(f"{number:04}" for number in range(1, 800, 3)) + "]"
    rows = {"JobArrayID": "7", "State": "RUNNING", "NodeList": full[:width], "JobID": "7", "TimeLimit": "60"}
    whole = {**rows, "JobArrayID": "8", "JobID": "8", "NodeList": "n[1-3]"}
    lines = [
        "".join(f"{row.get(field, '')}{parsing.SEPARATOR}" for field in parsing.JOB_FIELDS) for row in (rows, whole)
    ]
    output = "\n".join(lines) + "\n"
    assert parsing.cut_node_lists(output) == [("7", full[:width])]
    shown = parsing.parse_node_list(f"JobId=6 NodeList=x\nJobId=7 JobState=RUNNING NodeList={full} NumNodes=267\n", "7")
    first, second = parsing.parse_jobs(parsing.with_node_lists(output, {"7": shown}), lambda text: (text,))
    assert (first.nodes, second.nodes) == ((full,), ("n[1-3]",))
