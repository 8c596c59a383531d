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
from scale_lab import BUSY, MOST_ADDED, QUERIES, Measured, Wait, draw, in_a_minute, measure, wait_of
from scale_workers import Crew

from liver_slurm.rundir.registry import create_run

SECONDS = float(os.environ.get("LIVER_SCALE") or 0)
NODES = int(os.environ.get("LIVER_SCALE_NODES") or 1000)
KEPT = os.environ.get("LIVER_SCALE_OUT")
USED, QUERIES_A_MINUTE = 0.9, 12
"""Share of the idle node-hours, and queries to slurmctld in any minute."""

pytestmark = [
    pytest.mark.timeout(2 * SECONDS + 900),
    pytest.mark.cluster(nodes=NODES, cpus_per_node=1, gpus_per_node=0, grace=60, send_user_signal=True),
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


def test_a_delay_is_counted_beyond_what_production_has_alone() -> None:
    found = Measured(
        seconds=60.0, nodes=10, starts=4, alone=[0.4, 0.5, 0.6], delays=[0.5, 0.7, 0.9, 2.5], used=0.95, trained=0.9,
        idle=2.5, queries_per_minute=11.0, queries_in_a_minute=12, generations=3,
        waits=(Wait(1.0, 1.0, 0.5), Wait(0.2, 0.5, 0.2)),
    )  # fmt: skip
    assert found.added(0.99) == pytest.approx(2.0)
    assert found.added(0.5) == pytest.approx(0.4)
    assert "p99 2.00 s" in "\n".join(found.lines())
    assert found.slow == []
    assert replace(found, alone=[0.1]).slow == [Wait(1.0, 1.0, 0.5)]


def test_no_minute_hides_behind_the_mean() -> None:
    assert in_a_minute([(0.0, 5), (1.0, 5), (58.0, 16), (61.0, 23), (63.0, 23), (200.0, 40)]) == 18
    assert in_a_minute([(0.0, 5)]) == 0


def test_what_a_slow_start_has_waited_for_is_told() -> None:
    notices, leavings = [90.0, 101.5, 102.0, 120.0], [99.0, 103.0, 104.5, 130.0]
    assert wait_of((100.0, 105.0), notices, leavings) == Wait(slurm=1.5, run=3.0, start=0.5)
    assert wait_of((110.0, 112.0), notices, leavings) == Wait(0.0, 0.0, 2.0), "nobody was taken for it"
    assert wait_of((119.0, 125.0), notices, leavings) == Wait(1.0, 0.0, 5.0), "nobody has left"


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
