"""`make test-scale`: an elastic run on a real slurmctld with 1,000 nodes, beside a production load of a higher tier.

LIVER_SCALE says for how many seconds; without it there is no such test, but those of what it is made of.
LIVER_SCALE_NODES says of how many nodes, and LIVER_SCALE_OUT names a folder that keeps figures and logs.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import scale_lab
from scale_lab import BUSY, MOST_ADDED, SITE, Measured, draw, measure
from scale_log import Wait, hostnames, read, wait_of
from scale_slurmctld import QUERIES, cycles, in_a_minute
from scale_workers import Crew

from liver_slurm.rundir.registry import create_run

SECONDS = float(os.environ.get("LIVER_SCALE") or 0)
NODES = int(os.environ.get("LIVER_SCALE_NODES") or 1000)
KEPT = os.environ.get("LIVER_SCALE_OUT")
USED, QUERIES_A_MINUTE = 0.9, 12
"""Share of the idle node-hours, and queries to slurmctld in any minute."""

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
