"""`make test-scale`: an elastic run on a real slurmctld with 1,000 nodes, beside a production load of a higher tier.

LIVER_SCALE says for how many seconds; without it there is no such test, but those of what it is made of.
LIVER_SCALE_NODES says of how many nodes, and LIVER_SCALE_OUT names a folder that keeps figures and logs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pytest
import scale_lab
import scale_production
import scale_slurmctld
from scale_lab import SITE, ElasticRun, Spans, evaluate, measure
from scale_log import Wait, hostnames, read, wait_of
from scale_measured import MOST_ADDED, Measured
from scale_production import BUSY, Arrival, Production, ProductionJob, delays, draw
from scale_repeat import Repeated
from scale_slurmctld import QUERIES, QueryCount, cycles, in_a_minute
from scale_workers import Crew

from liver_slurm.rundir.registry import create_run

SECONDS = float(os.environ.get("LIVER_SCALE") or 0)
NODES = int(os.environ.get("LIVER_SCALE_NODES") or 1000)
KEPT = os.environ.get("LIVER_SCALE_OUT")
USED, TRAINED, QUERIES_A_MINUTE = 0.9, 0.85, 12
"""Shares of the idle node-hours, of standby jobs and of members of the world; queries to slurmctld in any minute."""

pytestmark = [
    pytest.mark.timeout(2 * SECONDS + 900),
    pytest.mark.cluster(nodes=NODES, cpus_per_node=1, gpus_per_node=0, grace=60, send_user_signal=True, **SITE),
]


@pytest.mark.scale
@pytest.mark.slurm
@pytest.mark.skipif(not SECONDS, reason="`make test-scale` runs this: 1,000 nodes, for a quarter of an hour")
@pytest.mark.usefixtures("cluster")
def test_idle_nodes_are_used_and_production_hardly_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path if KEPT is None else Path(KEPT).absolute()
    root.mkdir(parents=True, exist_ok=True)
    found = measure(root, NODES, SECONDS)
    (root / "scale.json").write_bytes(msgspec.json.format(msgspec.json.encode(found.document())))
    with capsys.disabled():
        print("\n" + "\n".join(found.lines()))
    assert found.queries_in_a_minute <= QUERIES_A_MINUTE
    assert found.used >= USED
    assert found.trained >= TRAINED
    assert found.added(0.99) <= MOST_ADDED


def test_a_load_has_its_share_and_is_repeatable() -> None:
    arrivals = draw(1000, 7200.0, seed=7)
    assert arrivals == draw(1000, 7200.0, seed=7)
    node_seconds = sum(one.nodes * one.seconds for one in arrivals if one.at > 0.0)
    assert node_seconds / 7200.0 == pytest.approx(BUSY * 1000, rel=0.1)
    assert sum(one.nodes for one in arrivals if one.at == 0.0) == pytest.approx(BUSY * 1000, abs=64)


def test_queries_are_counted_by_slurms_own_statistics() -> None:
    text = (
        "\tREQUEST_JOB_INFO                        ( 2003) count:7      ave_time:100    total_time:700\n"
        "\tREQUEST_SUBMIT_BATCH_JOB                ( 4003) count:90     ave_time:100    total_time:900\n"
        "\tREQUEST_NODE_INFO                       ( 2007) count:5      ave_time:100    total_time:500\n"
        "\tREQUEST_JOB_INFO_SINGLE                 ( 2021) count:2      ave_time:100    total_time:200\n"
    )
    assert sorted(int(count) for _, count in QUERIES.findall(text)) == [2, 5, 7]


def test_looks_at_the_queue_are_told_of_both_schedulers() -> None:
    text = (
        "Jobs pending:   12\n\nMain schedule statistics (microseconds):\n\tLast cycle:   30\n\tMax cycle:    250000\n"
        "\tTotal cycles: 9\n\tMean cycle:   31000\n\tLast queue length: 3\n\nBackfilling stats\n\tTotal cycles: 4\n"
        "\tLast cycle: 7\n\tMax cycle:  1200000\n\tMean cycle: 400000\n\tLast depth cycle: 1\n"
    )
    assert cycles(text) == {"Main": (0.031, 0.25), "Backfilling": (0.4, 1.2)}
    assert cycles("Main schedule statistics (microseconds):\n\tMax cycle:    0\n") == {}


def test_a_delay_is_counted_beyond_what_production_has_alone() -> None:
    found = Measured(
        seconds=60.0, nodes=10, starts=4, alone=[0.4, 0.5, 0.6], delays=[0.5, 0.7, 0.9, 2.5], used=0.95, trained=0.9,
        idle=2.5, queries_per_minute=11.0, queries_in_a_minute=12, generations=3,
        waits=(Wait("7", 4, 1.0, 1.0, 0.25, 0.25), Wait("8", 1, 0.2, 0.5, 0.1, 0.1)),
    )  # fmt: skip
    assert found.added(0.99) == pytest.approx(2.0)
    assert found.added(0.5) == pytest.approx(0.4)
    assert "p99 2.00 s" in "\n".join(found.lines())
    assert found.slow == []
    assert replace(found, alone=[0.1]).slow == [Wait("7", 4, 1.0, 1.0, 0.25, 0.25)]


def test_no_minute_hides_behind_the_mean() -> None:
    assert in_a_minute([(0.0, 5), (1.0, 5), (58.0, 16), (61.0, 23), (63.0, 23), (200.0, 40)]) == 18
    assert in_a_minute([(0.0, 5)]) == 0


LOG = """\
[2026-12-01T04:00:00.000] _slurm_rpc_submit_batch_job: JobId=3 InitPrio=4294901750 usec=310
[2026-12-01T04:00:00.100] sched: Allocate JobId=3 NodeList=n[1-4] #CPUs=4 Partition=scavenger
[2026-12-01T04:00:00.200] sched/backfill: _start_job: Started JobId=4 in scavenger on n[5-7,9]
[2026-12-01T04:00:10.000] _slurm_rpc_submit_batch_job: JobId=8 InitPrio=4294901740 usec=310
[2026-12-01T04:00:10.500] debug:  setting 60 sec preemption grace time for JobId=3 to reclaim resources for JobId=8
[2026-12-01T04:00:10.500] debug:  setting 60 sec preemption grace time for JobId=4 to reclaim resources for JobId=8
[2026-12-01T04:00:10.700] _slurm_rpc_update_job: complete JobId=5 uid=0 usec=250000
[2026-12-01T04:00:11.000] _job_complete: JobId=3 WEXITSTATUS 0
[2026-12-01T04:00:11.000] _job_complete: JobId=3 done
[2026-12-01T04:00:11.200] sched/backfill: _start_job: Started JobId=5 in scavenger on n[1-2]
[2026-12-01T04:00:11.250] _slurm_rpc_submit_batch_job: JobId=9 InitPrio=4294901739 usec=310
[2026-12-01T04:00:11.300] sched/backfill: _start_job: Started JobId=9 in prod on n3
[2026-12-01T04:00:11.500] _job_complete: JobId=4 done
[2026-12-01T04:00:11.600] TRACE_JOBS: cleanup_completing: JobId=3
[2026-12-01T04:00:11.750] TRACE_JOBS: cleanup_completing: JobId=4
[2026-12-01T04:00:25.600] debug:  setting 60 sec preemption grace time for JobId=5 to reclaim resources for JobId=8
a line without a time
[2026-12-01T04:00:26.000] _job_complete: JobId=5 done
[2026-12-01T04:00:26.250] sched: Allocate JobId=8 NodeList=n[1-2,4-9] #CPUs=8 Partition=prod
"""


def test_what_a_slow_start_has_waited_for_is_told() -> None:
    log = read(LOG.splitlines())
    wait = wait_of(log, log.job("8"), frozenset({"8", "9"}))
    assert "JobId=8, 8 nodes: 16.25 s" in str(wait)
    assert wait == Wait(
        "8", 8, slurm=pytest.approx(0.5), run=pytest.approx(1.0), free=pytest.approx(0.25),
        start=pytest.approx(14.5), turns=2, others=1, ours=2, ahead=0, updates=1,
    )  # fmt: skip
    assert wait.total == pytest.approx(16.25)
    assert [took for _, took in log.updates] == [0.25]


def test_a_start_for_which_nothing_was_taken_waited_for_slurm() -> None:
    log = read(LOG.replace("for JobId=8", "for JobId=7").splitlines())
    log.job("7").submitted, log.job("7").started = log.job("8").submitted - 1.0, log.job("8").submitted + 1.0
    wait = wait_of(log, log.job("8"), frozenset({"7", "8"}))
    assert (wait.turns, wait.ahead, wait.run, wait.slurm) == (0, 1, 0.0, pytest.approx(16.25))


def test_names_of_hosts_are_expanded() -> None:
    assert list(hostnames("n[1-3,7],m2")) == ["n1", "n2", "n3", "n7", "m2"]


def test_the_run_takes_any_number_of_replicas(tmp_path: Path) -> None:
    config = scale_lab.configure(tmp_path, 100, 4)
    assert (config.standby.max_jobs, config.standby.launch, config.standby.queries_per_minute) == (25, "queue", 12.0)
    assert len(config.elastic.layouts) == 102


def test_a_thin_worker_does_all_that_a_turn_asks_of_it(tmp_path: Path) -> None:
    run_dir = create_run(scale_lab.configure(tmp_path, 100, 4))
    os.mkfifo(run_dir.path / "told")
    worker, _ = Crew(run_dir, guaranteed=2).guaranteed
    worker.generation = 0
    worker.turn(0.0)
    assert worker.step == 1


@pytest.mark.parametrize(("shell_ends", "signals"), [(True, 0), (False, 1)])
def test_a_job_that_has_ended_is_dropped_and_no_other_signalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell_ends: bool, signals: int
) -> None:
    run_dir = create_run(scale_lab.configure(tmp_path, 100, 4))
    os.mkfifo(run_dir.path / "told")
    crew = Crew(run_dir, guaranteed=2)
    told = []
    send = signal.pidfd_send_signal
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *of: (told.append(of), send(*of)))
    with subprocess.Popen(["sleep", "1000"]) as shell, (run_dir.path / "told").open("w", buffering=1) as fifo:
        fifo.write(f"begun 7 {shell.pid} 1 n1\n")
        crew.hear()
        assert [worker.name for worker in crew.jobs["7"].workers] == ["standby-7-0"]
        crew.end_jobs()
        assert list(crew.jobs) == ["7"]
        crew.jobs["7"].workers[0].left = True
        if shell_ends:
            shell.kill()
            shell.wait()
        crew.end_jobs()
        assert (crew.jobs, len(told)) == ({}, signals)
        assert shell.wait(60) == -(signal.SIGKILL if shell_ends else signal.SIGTERM)
        fifo.write(f"begun 8 {shell.pid} 1 n1\n")
        crew.hear()
        assert crew.jobs == {}


def lives(process: psutil.Process) -> bool:
    """Whether it is there, and not only as what whoever has inherited it does not collect."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_standby_job_sleeps_once_and_leaves_nothing(tmp_path: Path, eventually: Callable[..., Any]) -> None:
    os.mkfifo(tmp_path / "told")
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "n1"}
    fifo = os.open(tmp_path / "told", os.O_RDWR)
    script = scale_lab.SUPPORT / "scale_standby.sh"
    with subprocess.Popen(["sh", str(script), str(tmp_path / "told")], env={**os.environ, **job}) as shell:
        children, asleep = psutil.Process(shell.pid).children, []
        try:
            assert os.read(fifo, 1000).decode() == f"begun 7 {shell.pid} 1 n1\n"
            asleep = eventually(children, "it sleeps")
            for _ in range(2):
                shell.send_signal(signal.SIGUSR2)
                assert os.read(fifo, 1000).decode() == f"notice 7 {shell.pid} 1 n1\n"
            assert children() == asleep
            shell.terminate()
            assert shell.wait(60) == 0
            eventually(lambda: not any(map(lives, asleep)), "nothing is left of it")
        finally:
            left = [*asleep, *(children() if shell.poll() is None else ())]
            for process in filter(psutil.Process.is_running, left):
                process.kill()
            shell.kill()
            os.close(fifo)


def started(folder: Path, job_id: str, due: float, at: float | None) -> ProductionJob:
    if at is not None:
        (folder / f"{job_id}.start").write_text(f"{at}\n")
    return ProductionJob(job_id, 1, due, folder)


def test_a_start_that_was_not_seen_is_no_fast_one(tmp_path: Path) -> None:
    jobs = [started(tmp_path, *one) for one in [("1", 10.0, 10.5), ("2", 20.0, None), ("3", 29.9, 50.0)]]
    assert delays(jobs, last=45.0) == pytest.approx([0.5, 15.1, 25.0])
    production = Production(tmp_path / "production", [], 10)
    production.jobs = jobs
    log = read([])
    log.job("1").submitted, log.job("1").started = 10.125, 10.25
    found = evaluate(
        log, production, Spans((0.0, 15.0), (5.0, 30.0), 45.0), nodes=10, looks={}, company="none",
        queries_per_minute=0.0, queries_in_a_minute=0,
    )  # fmt: skip
    assert (found.starts, found.unseen) == (3, 2)
    assert "2 starts were not seen" in "\n".join(found.lines())
    assert found.waits == (Wait("1", 0, slurm=0.125, submit=0.125, launch=0.25),)
    assert found.waits[0].total == found.usual, "both from when it was due to its first line"


def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arrivals: list[Arrival], nodes: int) -> Production:
    """A load, in which each sbatch takes three seconds of a clock that stands still otherwise."""
    clock = SimpleNamespace(now=1000.0)

    def sbatch(*_: Any, **__: Any) -> Any:
        clock.now += 3.0
        return SimpleNamespace(stdout=f"{clock.now}\n")

    monkeypatch.setattr(scale_production, "time", SimpleNamespace(time=lambda: clock.now))
    production = Production(tmp_path / "production", arrivals, nodes)
    monkeypatch.setattr(subprocess, "run", sbatch)
    clock.now = 1002.0
    production.turn()
    return production


def test_a_job_waits_from_when_it_is_due(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = play(monkeypatch, tmp_path, [Arrival(0.5, 1, 1.0), Arrival(1.0, 1, 1.0), Arrival(9.0, 1, 1.0)], 100)
    assert [job.due for job in found.jobs] == [1000.5, 1001.0]
    assert found.due(1001.0, 1002.0) == found.jobs[1:]


def test_production_that_would_wait_for_itself_is_not_due(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = play(monkeypatch, tmp_path, [Arrival(0.5, 8, 1.0), Arrival(1.0, 8, 1.0), Arrival(2.0, 1, 1.0)], 10)
    assert [job.due for job in found.jobs] == [1000.5]
    assert [one.at for one in found._waiting] == pytest.approx([7.0, 8.0])  # it was found to be full at 5 s


def test_what_is_repeated_holds_up_nobody_and_its_error_is_told(eventually: Callable[..., Any]) -> None:
    began, go_on = threading.Event(), threading.Event()

    def action() -> None:
        began.set()
        assert go_on.wait(60)
        raise ValueError("sdiag has failed")

    repeated = Repeated(action, every=0.0)
    assert began.wait(60)
    repeated.check()
    go_on.set()
    with pytest.raises(ValueError, match="sdiag has failed"):
        eventually(repeated.check, "it is told")
    repeated.close()


def test_queries_are_counted_from_before_the_run(
    monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
) -> None:
    counts = iter(range(5, 1000))
    monkeypatch.setattr(scale_slurmctld, "queries", lambda: next(counts))
    count = QueryCount()
    assert count.counted[0][1] == 5
    eventually(lambda: len(count.counted) > 2, "it goes on counting")
    count.close()
    first, *_, last = count.counted
    assert count.per_minute(first[0], last[0]) == pytest.approx(60 * (last[1] - 5) / (last[0] - first[0]))


def test_the_end_of_a_run_leaves_no_process_and_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not heed SIGTERM is killed, and told of."""
    said: list[tuple[str, ...]] = []
    monkeypatch.setattr(scale_lab, "command", lambda *argv: said.append(argv))
    monkeypatch.setattr(scale_lab, "PATIENCE", 1.0)
    run = ElasticRun(tmp_path, 100, 4)
    with (
        subprocess.Popen(["sleep", "1000"]) as workers,
        subprocess.Popen(["sh", "-c", "trap '' TERM; echo; exec sleep 1000"], stdout=subprocess.PIPE) as coordinator,
    ):
        assert coordinator.stdout is not None
        coordinator.stdout.read(1)
        run._processes = [workers, coordinator]
        with pytest.raises(subprocess.TimeoutExpired):
            run.close()
        assert (workers.returncode, coordinator.returncode) == (-signal.SIGTERM, -signal.SIGKILL)
    assert said == [("scancel", f"--name={run.run_dir.path.name}-standby")]


@pytest.mark.parametrize("breaks", ["start", "check", "close"])
def test_whatever_breaks_all_is_ended_and_the_log_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    called: list[str] = []

    def part(what: str, failing: str = "") -> Any:
        def method(name: str) -> Callable[..., Any]:
            def call(*_: Any) -> None:
                called.append(f"{what} {name}")
                if name == failing:
                    raise ValueError(f"{what} breaks")

            return call

        return SimpleNamespace(**{name: method(name) for name in ("start", "check", "close", "begin", "keep_log")})

    production = SimpleNamespace(turn=lambda: None, due=lambda *_: ["a job"])
    monkeypatch.setattr(scale_lab, "Slurmctld", lambda _root: part("slurmctld"))
    monkeypatch.setattr(scale_lab, "Production", lambda *_: production)
    monkeypatch.setattr(scale_lab, "QueryCount", lambda: part("queries", "close"))
    monkeypatch.setattr(scale_lab, "company_of", lambda *_: part("run", breaks))
    with pytest.raises(ValueError, match="breaks"):
        measure(tmp_path, 10, 0.1, alone=0.1, ramp=0.1)
    assert called[-3:] == ["run close", "queries close", "slurmctld keep_log"]


def test_without_a_start_of_production_alone_nothing_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    slurmctld = SimpleNamespace(keep_log=lambda: kept.append("log"))
    monkeypatch.setattr(scale_lab, "Slurmctld", lambda _root: slurmctld)
    monkeypatch.setattr(scale_lab, "Production", lambda *_: SimpleNamespace(turn=lambda: None, due=lambda *_: []))
    with pytest.raises(ValueError, match="no job of production came"):
        measure(tmp_path, 10, 0.1, alone=0.1, ramp=0.1)
    assert kept == ["log"]
