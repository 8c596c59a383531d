"""From facts to findings: what is judged as what, without Slurm or a node."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from liver_slurm.config.schema import (
    ComponentSection,
    JobConfig,
    JobSection,
    LiveSection,
    StandbySection,
    StreamSection,
    TrainSection,
)
from liver_slurm.doctor.cluster_checks import cluster_findings
from liver_slurm.doctor.facts import (
    Card,
    DirectoryReport,
    Facts,
    Finding,
    Look,
    Report,
    SlurmFacts,
    TorchReport,
    wanted_partitions,
)
from liver_slurm.doctor.machine_checks import machine_findings
from liver_slurm.scheduler.slurm.records import NodeInfo, PartitionInfo

VERSIONS = {"torch": "2.11.0", "megatron-core": "0.16.1", "submitit": "1.5.4"}


def partition(name: str, tier: int, mode: str, grace: int = 0, default: bool = False) -> PartitionInfo:
    return PartitionInfo(name, default, True, "n[1-2]", 2, None, None, tier, mode, grace)


def node(name: str, state: str = "idle", gpus: int = 0) -> NodeInfo:
    return NodeInfo(name, state, 8, 8, gpus, gpus, 1000, 1000, frozenset())


def report(host: str, **changes: Any) -> Report:
    directory = DirectoryReport("/shared/runs", True, 1 << 40, "nfs4", "token", "refused")
    given = Report(host, "3.11.7", VERSIONS, {"eth0": "10.0.0.1"}, directory, None, "", None)
    return replace(given, **changes)


def look(host: str, name: str = "live", **changes: Any) -> Look:
    seen = Look(
        name, 0, host, report(host, reached=["other", "this machine"]), clock_ahead=0.01, clock_uncertainty=0.02
    )
    return replace(seen, **changes)


SLURM = SlurmFacts(
    version=(24, 11, 5),
    client="Slurm's commands",
    config={"PreemptType": "preempt/partition_prio", "PreemptMode": "CANCEL", "KillWait": "30 sec"},
    partitions=[partition("live", 100, "OFF", default=True), partition("scavenger", 1, "CANCEL", 60)],
    nodes={"live": [node("n1")], "scavenger": [node("n2"), node("n3", "allocated")]},
    problems=(),
)
CONFIG = JobConfig(
    job=JobSection(run_root="/shared/runs"),
    live=LiveSection(partition="live"),
    standby=StandbySection(partitions=("scavenger",), max_jobs=2),
)
FACTS = Facts(
    config=CONFIG,
    here=report("login"),
    requirements={"torch": ">=2.11", "megatron-core": "<0.17,>=0.16", "submitit": ">=1.5.2"},
    slurm=SLURM,
    munge_error="",
    token="token",
    looks=(look("n1"), look("n2", "scavenger")),
)


def findings(facts: Facts) -> list[Finding]:
    return [*cluster_findings(facts), *machine_findings(facts)]


def bad(facts: Facts) -> list[tuple[str, str]]:
    return [(one.check, one.status) for one in findings(facts) if one.status != "ok"]


def test_all_is_well() -> None:
    found = findings(FACTS)
    assert bad(FACTS) == []
    checks = ("slurm", "client", "partitions", "preemption", "grace", "signal", "nodes", "clocks", "directory", "ports")
    assert {*checks, "locks", "umask", "interface", "gpus", "packages", "munge"} == {one.check for one in found}
    assert all(not one.advice for one in found)


def with_slurm(**changes: Any) -> Facts:
    return replace(FACTS, slurm=replace(SLURM, **changes))


def with_config(**changes: Any) -> Facts:
    return with_slurm(config={**SLURM.config, **changes})


def with_standby(**changes: Any) -> Facts:
    return replace(FACTS, config=replace(CONFIG, standby=replace(CONFIG.standby, **changes)))


def with_partitions(*partitions: PartitionInfo) -> Facts:
    return with_slurm(partitions=partitions)


def with_look(**changes: Any) -> Facts:
    return replace(FACTS, looks=(look("n1", **changes),))


LIVE, SCAVENGER = SLURM.partitions
GPU = replace(CONFIG, live=replace(CONFIG.live, component=(ComponentSection(gpus_per_task=1),)))
FP8 = replace(GPU, train=TrainSection(fp8=True))
H100, A100 = Card("NVIDIA H100", (9, 0)), Card("NVIDIA A100", (8, 0))
TORCH = TorchReport(cuda="12.8", cards=(H100,))
OLDER = TorchReport(cuda="12.8", cards=(H100, A100))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (with_slurm(version=(20, 11, 0)), [("slurm", "fail")]),
        (with_slurm(version=(23, 11, 1)), [("slurm", "warn")]),
        (replace(FACTS, pyslurm="25.11.2"), [("client", "warn")]),
        (replace(FACTS, pyslurm="24.11.0"), []),
        (with_slurm(problems=["live.partition: no partition"]), [("partitions", "fail")]),
        (with_slurm(nodes={"live": [node("n1", "down")], "scavenger": [node("n2")]}), [("partitions", "warn")]),
        (with_partitions(replace(LIVE, is_up=False), SCAVENGER), [("partitions", "fail")]),
        (with_config(PreemptType="preempt/none"), [("preemption", "warn")]),
        (with_config(PreemptType="preempt/qos"), [("preemption", "warn")]),
        (with_partitions(LIVE, replace(SCAVENGER, preempt_mode="OFF")), [("preemption", "warn")]),
        (with_partitions(LIVE, replace(SCAVENGER, preempt_mode="SUSPEND,GANG")), [("preemption", "warn")]),
        (with_partitions(LIVE, replace(SCAVENGER, priority_tier=100)), [("preemption", "warn")]),
        (with_partitions(LIVE, SCAVENGER, partition("top", 200, "OFF")), []),
        (
            with_partitions(replace(LIVE, preempt_mode="REQUEUE"), SCAVENGER, partition("top", 200, "OFF")),
            [("preemption", "warn")],
        ),
        (with_partitions(LIVE, replace(SCAVENGER, grace=3)), [("grace", "warn")]),
        (with_partitions(LIVE, replace(SCAVENGER, grace=0)), []),
        (with_standby(grace=120.0), [("grace", "warn")]),
        (with_standby(grace=60.0), []),
        (with_standby(partitions=()), []),
        (with_look(clock_ahead=-3.0), [("clocks", "warn")]),
        (with_look(clock_ahead=3.0, clock_uncertainty=2.5), []),
        (with_look(clock_ahead=400.0), [("clocks", "fail")]),
        (with_look(report=None, reason="no free node within 5 s", busy=True), None),
        (with_look(report=None, reason="No module named liver_slurm"), None),
        (replace(FACTS, token=None), [("directory", "fail")]),
        (
            with_look(report=report("n1", directory=replace(FACTS.here.directory, lock="granted"))),
            [("locks", "fail")],
        ),
        (
            replace(FACTS, here=report("login", directory=replace(FACTS.here.directory, lock="No locks available"))),
            [("locks", "fail")],
        ),
        (
            replace(FACTS, here=report("login", directory=replace(FACTS.here.directory, umask=0o002))),
            [("umask", "warn")],
        ),
        (
            with_look(report=report("n1", directory=replace(FACTS.here.directory, token=None))),
            [("directory", "fail")],
        ),
        (
            with_look(report=report("n1", directory=replace(FACTS.here.directory, writable=False))),
            [("directory", "fail")],
        ),
        (
            replace(FACTS, here=report("login", directory=replace(FACTS.here.directory, free=1 << 30))),
            [("directory", "warn")],
        ),
        (with_look(report=report("n1", unreached={"n2": "refused"})), [("ports", "fail")]),
        (with_look(report=report("n1", unreached={"this machine": "refused"})), []),
        (with_look(unreached_from_here="timed out"), [("ports", "warn")]),
        (with_look(report=report("n1", interfaces={"eth0": "10.0.0.1", "ib0": "10.1.0.1"})), [("interface", "warn")]),
        (replace(FACTS, config=replace(CONFIG, stream=StreamSection(interface="eth0"))), []),
        (
            replace(with_look(), config=replace(CONFIG, stream=StreamSection(interface="ib0"))),
            [("interface", "fail")],
        ),
        (replace(with_look(gpus_asked=1), config=GPU), [("gpus", "fail")]),
        (replace(with_look(gpus_asked=1, report=report("n1", gpus=8, torch=TORCH)), config=GPU), []),
        (
            replace(with_look(gpus_asked=1, report=report("n1", gpus=8, torch=TorchReport())), config=GPU),
            [("gpus", "fail")],
        ),
        (
            replace(with_look(gpus_asked=1, report=report("n1", gpus=0, gpu_error="driver", torch=TORCH)), config=GPU),
            [("gpus", "fail")],
        ),
        (replace(with_look(gpus_asked=1, report=report("n1", gpus=8, torch=TORCH)), config=FP8), []),
        (replace(with_look(gpus_asked=1, report=report("n1", gpus=8, torch=OLDER)), config=GPU), []),
        (replace(with_look(gpus_asked=1, report=report("n1", gpus=8, torch=OLDER)), config=FP8), [("gpus", "fail")]),
        (replace(FACTS, config=GPU), [("gpus", "warn")]),
        (with_look(report=report("n1", versions={**VERSIONS, "torch": "2.12.0"})), [("packages", "fail")]),
        (with_look(report=report("n1", python="3.12.1")), [("packages", "fail")]),
        (replace(FACTS, looks=(), not_looked="--no-jobs was given"), None),
        (replace(FACTS, munge_error="no socket"), [("munge", "warn")]),
    ],
)
def test_what_is_wrong_is_said_with_advice(facts: Facts, expected: list[tuple[str, str]] | None) -> None:
    if expected is not None:
        assert bad(facts) == expected
    assert all(one.advice for one in findings(facts) if one.status != "ok")


def test_where_slurm_cannot_be_asked_nothing_is_said_of_gpus_that_nobody_saw() -> None:
    silent = replace(FACTS, config=GPU, slurm=None, slurm_error="timed out", looks=())
    [found] = [one for one in findings(silent) if one.check == "gpus"]
    assert (found.status, found.text.partition(":")[0]) == ("warn", "not looked")


def test_a_busy_partition_is_no_failure_and_a_broken_job_is() -> None:
    busy = with_look(report=None, reason="no free node within 5 s", busy=True)
    assert ("nodes", "fail") not in bad(busy)
    assert "live: not looked: no free node within 5 s" in [one.text for one in findings(busy)]
    broken = with_look(report=None, reason="No module named liver_slurm")
    assert ("nodes", "fail") in bad(broken)


def test_no_slurm_is_no_failure_but_one_that_does_not_answer_is() -> None:
    alone = replace(
        FACTS, slurm=None, slurm_error="no sinfo on this machine", slurm_missing=True, looks=(), munge_error="x"
    )
    alone = replace(alone, not_looked="Slurm does not answer")
    assert bad(alone) == [("slurm", "warn")]
    assert bad(replace(alone, slurm_missing=False)) == [("slurm", "fail"), ("munge", "fail")]


def test_a_node_whose_card_has_no_fp8_is_named() -> None:
    node = replace(with_look(gpus_asked=1, report=report("n1", gpus=8, torch=OLDER)), config=FP8)
    said = [one.text for one in findings(node) if one.check == "gpus"]
    assert said == ["n1 has NVIDIA A100, of compute capability 8.0, and train.fp8 is true"]


def test_cards_here_need_fp8_only_where_workers_would_run_here() -> None:
    login = replace(FACTS, here=report("login", gpus=1, torch=TorchReport(cards=(A100,))), config=FP8, looks=())
    assert ("gpus", "fail") not in bad(login)
    alone = replace(login, slurm=None, slurm_error="no sinfo on this machine", slurm_missing=True)
    assert ("gpus", "fail") in bad(alone)


def test_wrong_versions_here() -> None:
    here = report("login", python="3.9.2", versions={"torch": "2.5.1", "megatron-core": None, "submitit": "1.5.4"})
    found = [one.text for one in findings(replace(FACTS, here=here, looks=())) if one.status == "fail"]
    assert found == [
        "Python 3.9.2 on login",
        "torch 2.5.1 on login; >=2.11 is needed",
        "megatron-core is not installed on login",
    ]


@pytest.mark.parametrize(
    ("version", "key", "value"),
    [
        ((22, 5, 8), "SlurmctldParameters", "idle_on_node_suspend,preempt_send_user_signal"),
        ((24, 11, 5), "PreemptParameters", "send_user_signal,youngest_first"),
    ],
)
def test_the_user_signal_is_looked_for_in_the_form_of_the_version(
    version: tuple[int, int, int], key: str, value: str
) -> None:
    facts = with_slurm(version=version, config={**SLURM.config, key: value})
    assert any(one.check == "signal" and "its own --signal" in one.text for one in findings(facts))
    other = with_slurm(version=version)
    assert any(one.check == "signal" and "SIGTERM" in one.text for one in findings(other))


def test_partitions_of_a_job() -> None:
    assert wanted_partitions(CONFIG.live, CONFIG.standby) == {"live": 0, "scavenger": 0}
    assert wanted_partitions(LiveSection(), CONFIG.standby, SLURM.partitions) == {"live": 0, "scavenger": 0}
    assert wanted_partitions(GPU.live, GPU.standby) == {"live": 1, "scavenger": 0}
