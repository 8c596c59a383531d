"""What every back end of the Slurm client keeps to, on a real cluster."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.base.clock import SystemClock
from liver_slurm.base.errors import BadInput, ClusterError
from liver_slurm.base.query_budget import QueryBudget
from liver_slurm.config.load import load_job
from liver_slurm.config.schema import StandbySection
from liver_slurm.coordinator.core.io import CapacitySeen
from liver_slurm.coordinator.runtime.scheduler_calls import Scheduler, SchedulerCalls
from liver_slurm.devcluster import processes
from liver_slurm.devcluster.lifecycle import Cluster, find_programs
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.ports import CapacitySnapshot
from liver_slurm.scheduler.slurm.client import SlurmClient
from liver_slurm.scheduler.slurm.command import NotAnswering
from liver_slurm.scheduler.slurm.connect import CHOICE, connect
from liver_slurm.scheduler.slurm.records import JobInfo
from liver_slurm.scheduler.slurm.standby import SlurmStandbys, standby_job_name
from liver_slurm.worker.bootstrap import standby_main

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.cluster(nodes=3, cpus_per_node=2, gpus_per_node=1, grace=20),
]

Eventually = Callable[..., Any]
QUEUED = 200
JOB = Path(__file__).parents[2] / "configs" / "gpt-tiny.toml"

HET = """#!/bin/bash
#SBATCH --job-name=two-parts --partition=live --nodes=1 --ntasks=1 --time=10 --output=/dev/null
#SBATCH hetjob
#SBATCH --partition=prod --nodes=1 --ntasks=1 --time=20
srun --het-group=0,1 sleep 300
"""
HEARS = """#!/bin/bash
#SBATCH --partition=live --ntasks=1 --time=10 --output=/dev/null
trap 'echo $? >> batch' USR1
srun bash -c 'trap "touch step-1" USR1; trap "touch step-2" USR2; touch ready; while :; do sleep 0.1; done' &
while :; do wait -n || sleep 0.1; done
"""


@pytest.fixture(scope="module")
def budget() -> QueryBudget:
    return QueryBudget(per_minute=100_000)


@pytest.fixture(scope="module", params=["commands", "pyslurm"])
def client(request: pytest.FixtureRequest, cluster: Cluster, budget: QueryBudget) -> Iterator[SlurmClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CHOICE, request.param)
        try:
            yield connect(budget=budget)
        except BadInput as error:
            pytest.skip(str(error))


@pytest.fixture
def submit(client: SlurmClient, tmp_path: Path, eventually: Eventually) -> Iterator[Callable[..., str]]:
    """``submit(text, *arguments)``: id of a job that runs ``text``; the queue is empty after the test."""
    jobs: list[str] = []

    def do(text: str = "#!/bin/bash\nexec sleep 300\n", *arguments: str) -> str:
        script = tmp_path / f"job-{len(jobs)}.sh"
        script.write_text(text)
        jobs.append(client.submit(write_options(script, arguments)))
        return jobs[-1]

    yield do
    client.cancel(jobs)
    eventually(lambda: not [job for job in client.jobs() if not job.is_over], "an empty queue", 60)


def write_options(script: Path, options: tuple[str, ...]) -> Path:
    """``options`` as the script's own, since what follows a script on sbatch's command line is the script's."""
    first, rest = script.read_text().split("\n", 1)
    lines = [f"#SBATCH {option}" for option in (*options, "--chdir=" + str(script.parent), "--output=/dev/null")]
    script.write_text("\n".join([first, *lines, rest]))
    return script


def slurm(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


def one(client: SlurmClient, job: str) -> JobInfo:
    (info,) = client.jobs([job])
    return info


def running(client: SlurmClient, eventually: Eventually, job: str) -> list[JobInfo]:
    def check() -> list[JobInfo]:
        infos = client.jobs([job])
        return infos if {info.state for info in infos} == {"RUNNING"} else []

    return list(eventually(check, f"job {job} runs", 60))


def test_the_cluster(client: SlurmClient, cluster: Cluster) -> None:
    assert ".".join(str(part) for part in client.version()[:2]) == ".".join(
        str(int(part)) for part in cluster.version.split(".")[:2]
    )
    assert client.config()["KillWait"].startswith("5 ")
    partitions = {partition.name: partition for partition in client.partitions()}
    scavenger = partitions["scavenger"]
    assert (scavenger.preempt_mode, scavenger.grace, scavenger.total_nodes) == ("CANCEL", 20, 3)
    assert partitions["live"].is_default
    assert partitions["live"].priority_tier > partitions["prod"].priority_tier > scavenger.priority_tier
    assert client.hostnames(scavenger.nodes) == ("n1", "n2", "n3")


def test_nodes(client: SlurmClient, eventually: Eventually) -> None:
    nodes = {node.name: node for node in client.nodes()}
    assert sorted(nodes) == ["n1", "n2", "n3"]
    assert nodes["n1"].partitions == {"live", "prod", "scavenger"}
    assert (nodes["n1"].state, nodes["n1"].cpus, nodes["n1"].cpus_idle) == ("idle", 2, 2)
    assert (nodes["n1"].gpus, nodes["n1"].gpus_idle, nodes["n1"].reason) == (1, 1, "")
    assert [node.name for node in client.nodes("scavenger")] == ["n1", "n2", "n3"]
    assert client.nodes("no-such-partition") == []
    slurm("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=a disk: bad, really")
    try:
        drained = next(node for node in client.nodes() if node.name == "n2")
        assert {"idle", "drain"} <= drained.flags or drained.flags == {"drained"}
        assert drained.reason == "a disk: bad, really"
        assert drained.cpus_idle == 0
    finally:
        slurm("scontrol", "update", "NodeName=n2", "State=RESUME")
    eventually(lambda: {node.state for node in client.nodes()} == {"idle"}, "all nodes idle", 30)


def test_reservations(client: SlurmClient) -> None:
    assert client.reservations() == []
    start = int(time.time()) + 3600
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(start))
    slurm(
        "scontrol", "create", "reservation", "ReservationName=service", f"StartTime={when}", "Duration=60",
        "Nodes=n[1-2]", "Flags=MAINT,IGNORE_JOBS", "Users=root",
    )  # fmt: skip
    try:
        (found,) = client.reservations()
    finally:
        slurm("scontrol", "delete", "ReservationName=service")
    assert (found.name, found.nodes) == ("service", ("n1", "n2"))
    assert (found.start_time, found.end_time) == (start, start + 3600)
    assert {"MAINT", "IGNORE_JOBS"} <= found.flags


def test_a_job_with_two_components(client: SlurmClient, submit: Callable[..., str], eventually: Eventually) -> None:
    before = time.time() - 1
    job = submit(HET)
    first, second = sorted(running(client, eventually, job), key=lambda info: info.component)
    assert (first.job_id, first.leader, first.number) == (f"{job}+0", job, int(job))
    assert (second.job_id, second.leader, second.component) == (f"{job}+1", job, 1)
    assert second.number != first.number
    assert (first.partition, second.partition) == ("live", "prod")
    assert (first.time_limit, second.time_limit) == (600.0, 1200.0)
    assert first.name == "two-parts"
    assert first.end_time is not None
    assert before <= first.end_time - 600 <= time.time() + 1
    assert (first.preempt_time, first.restarts) == (None, 0)

    steps = {step.step_id: step for step in eventually(lambda: both_steps(client, job), "steps of both components", 30)}
    assert steps[f"{job}.batch"].nodes == first.nodes
    assert steps[f"{job}.0"].nodes == first.nodes
    assert (steps[f"{second.number}.0"].nodes, steps[f"{second.number}.0"].tasks) == (second.nodes, 1)

    client.cancel([str(second.number)])
    ended = eventually(lambda: [info for info in client.jobs([job]) if info.is_over], "the component's end", 60)
    assert [info.number for info in ended] == [second.number]
    assert next(info for info in client.jobs([job]) if info.component == 0).state == "RUNNING"


def both_steps(client: SlurmClient, job: str) -> list[Any]:
    steps = client.steps(job)
    return steps if len(steps) >= 3 else []


def test_signals(client: SlurmClient, submit: Callable[..., str], tmp_path: Path, eventually: Eventually) -> None:
    job = submit(HEARS)
    eventually(lambda: (tmp_path / "ready").exists(), "the step has set its traps", 60)
    client.signal(job, "USR1")
    eventually(lambda: (tmp_path / "step-1").exists(), "the step's signal", 30)
    assert not (tmp_path / "batch").exists()
    client.signal(job, "USR1", to="batch")
    eventually(lambda: (tmp_path / "batch").exists(), "the batch shell's signal", 30)
    # USR2 ends what has no trap for it: srun, and the batch shell.
    client.signal(job, "USR2", to="all")
    eventually(lambda: one(client, job).state != "RUNNING", "the job's end", 60)


def test_changes(client: SlurmClient, submit: Callable[..., str], eventually: Eventually) -> None:
    job = submit("#!/bin/bash\nsleep 300\n", "--partition=live", "--time=10")
    running(client, eventually, job)
    client.update_job(job, {"TimeLimit": "5", "Comment": "step 7 of 10"})
    info = one(client, job)
    assert (info.time_limit, info.comment) == (300.0, "step 7 of 10")
    slurm("scontrol", "suspend", job)
    assert one(client, job).state == "SUSPENDED"
    slurm("scontrol", "resume", job)
    assert one(client, job).state != "SUSPENDED"
    later = submit("#!/bin/bash\nsleep 300\n", "--partition=live", f"--dependency=afterok:{job}", "--time=10")
    waiting = one(client, later)
    assert (waiting.state, waiting.nodes) == ("PENDING", ())
    assert waiting.reason == "Dependency"
    client.cancel([job, later])
    eventually(lambda: all(info.is_over for info in client.jobs([job, later])), "their end", 60)
    client.cancel([job, later])


def test_preempt_time(client: SlurmClient, submit: Callable[..., str], eventually: Eventually) -> None:
    job = submit("#!/bin/bash\nsrun bash -c 'trap : TERM; while :; do sleep 0.1; done'\n", "-pscavenger", "-N1", "-t10")
    running(client, eventually, job)
    before = time.time() - 1
    submit("#!/bin/bash\nsleep 300\n", "--partition=prod", "--nodes=3", "--exclusive", "--time=10")
    taken = eventually(lambda: [info for info in client.jobs([job]) if info.preempt_time], "PreemptTime", 60)[0]
    assert not taken.ends
    assert taken.state in ("RUNNING", "SIGNALING")
    assert taken.end_time is not None
    assert before <= taken.preempt_time <= time.time() + 1
    assert taken.end_time >= taken.preempt_time + 19


def test_what_slurm_does_not_know(client: SlurmClient, submit: Callable[..., str]) -> None:
    assert client.jobs(["987654"]) == []
    assert client.steps("987654") == []
    client.cancel(["987654"])
    job = submit()
    assert [info.job_id for info in client.jobs(["987654", job])] == [job]
    with pytest.raises(ClusterError):
        client.signal("987654", "USR1")
    with pytest.raises(ClusterError):
        client.update_job("987654", {"TimeLimit": "5"})


def counted() -> int:
    """Requests for information that slurmctld has answered, to anybody, less sdiag's own."""
    found = re.findall(r"(REQUEST_\w*INFO\w*) .*count:(\d+)", slurm("sdiag"))
    return sum(int(count) for name, count in found if name != "REQUEST_STATS_INFO")


def test_the_budget_counts_what_slurmctld_counts(client: SlurmClient, budget: QueryBudget) -> None:
    asked, before = budget.last_minute(), counted()
    client.jobs(), client.jobs(["987654"]), client.jobs(names=("x",))
    client.nodes(), client.nodes("live"), client.partitions(), client.reservations(), client.config()
    assert counted() - before <= budget.last_minute() - asked <= 16


class Held:
    """The standby source of a run, watched as the coordinator does."""

    def __init__(self, folder: Path, client: SlurmClient, budget: QueryBudget | None = None) -> None:
        self.run_dir = RunDir(folder)
        self.config = load_job(JOB, [f"standby.max_jobs={QUEUED}"])
        self.source = SlurmStandbys(self.config, self.run_dir, client, standby_main)
        self.calls = SchedulerCalls(Scheduler(self.source), SystemClock(), 0.1, budget)

    def seen(self) -> CapacitySnapshot | None:
        """The newest look, if there was one since."""
        looks = [given.capacity for given in self.calls.poll(time.time()) if isinstance(given, CapacitySeen)]
        return looks[-1] if looks else None


@pytest.mark.slow
def test_hundreds_of_jobs_cost_no_more_than_one(cluster: Cluster, tmp_path: Path, eventually: Eventually) -> None:
    """200 standby jobs in a queue that does not move; slurmctld's own count says what they cost."""
    client = connect()
    prod = ["sbatch", "--parsable", "-pprod", "-N3", "--exclusive", "-t10", "-o/dev/null", "--wrap=sleep 300"]
    blocker = slurm(*prod).strip()
    budget = QueryBudget(per_minute=60)
    held = Held(tmp_path, connect(budget=budget, may_wait=False), budget)
    name, comment = standby_job_name(held.run_dir), str(tmp_path)
    sbatch = f"sbatch -pscavenger -N1 -t10 -o/dev/null -J '{name}' --comment='{comment}' --wrap='sleep 300' > /dev/null"
    try:
        slurm("bash", "-ec", f"for _ in $(seq {QUEUED}); do {sbatch}; done")
        assert len(client.jobs(names=(name,))) == QUEUED
        before, start = counted(), time.monotonic()
        looks: list[CapacitySnapshot] = []
        while len(looks) < 4:
            look = eventually(held.seen, "a look at the capacity", 60)
            looks.append(look)
            assert (look.blind, len(look.jobs)) == (None, QUEUED)
        took, cost = time.monotonic() - start, counted() - before
        # The last look is paid for by the gap after it.
        assert cost <= took * budget.per_minute / 60 + 8, (cost, took)
        assert cost <= budget.last_minute()
        assert looks[-1].queries == budget.last_minute()
        # At most one query in five seconds, as it comes.
        assert StandbySection().queries_per_minute <= 12
    finally:
        held.calls.close(run_over=False)
        slurm("scancel", blocker)
        slurm("scancel", "--name", name)
        eventually(lambda: not [job for job in client.jobs() if not job.is_over], "an empty queue", 60)


def test_slurmctld_away(cluster: Cluster, tmp_path: Path, eventually: Eventually) -> None:
    """The client says so, the watch is blind and keeps what it knew, and both are back when slurmctld is."""
    client = connect(timeout=2)  # a command by itself waits ten seconds for slurmctld
    held = Held(tmp_path, client)
    eventually(held.seen, "a look at the capacity", 30)
    daemons = processes.cluster_processes(cluster.slurm_conf)
    pids = processes.names(daemons)["slurmctld"]
    assert processes.end([daemon for daemon in daemons if daemon.pid in pids], 20) == []
    try:
        with pytest.raises(NotAnswering) as caught:
            client.jobs()
        assert "\n" not in str(caught.value)
        eventually(lambda: (look := held.seen()) is not None and look.blind, "the watch is blind", 90)
    finally:
        subprocess.run([find_programs(False)["slurmctld"]], check=True, timeout=60)
    eventually(lambda: (look := held.seen()) is not None and look.blind is None, "the watch is back", 120)
    assert client.jobs() is not None
    held.calls.close(run_over=False)
