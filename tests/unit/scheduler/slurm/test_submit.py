"""Whether a cluster can ever run a job, and what is said if not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.config.schema import ComponentSection, JobConfig, LiveSection, StandbySection
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.slurm.command import NotAnswering
from liver_slurm.scheduler.slurm.records import JobInfo, NodeInfo
from liver_slurm.scheduler.slurm.submit import Submission, SubmissionUnknown, check_submittable


@pytest.fixture
def cluster_of_two(slurm: Any, make_node: Callable[..., NodeInfo]) -> Any:
    nodes = [make_node("n1", state="allocated", cpus_idle=0), make_node("n2", features=frozenset({"h100"}))]
    slurm.add_partition("live", nodes, is_default=True, max_time=7200.0)
    slurm.add_partition("small", nodes, max_nodes=1)
    slurm.add_partition("closed", nodes, is_up=False)
    return slurm


def live(**options: Any) -> JobConfig:
    component = ComponentSection(**options.pop("component", {}))
    return JobConfig(live=LiveSection(**{"partition": "live", "time": "1:00:00", "component": (component,), **options}))


@pytest.mark.parametrize(
    "config",
    [
        live(),
        live(partition=None),
        live(component={"nodes": 2, "tasks_per_node": 2, "cpus_per_task": 2, "gpus_per_task": 1}),
        live(component={"constraint": "h100"}),
        live(component={"mem": "7G"}),
        live(time="2:00:00"),
    ],
)
def test_can_run_even_if_busy_now(cluster_of_two: Any, config: JobConfig) -> None:
    assert check_submittable(config, cluster_of_two) == []


@pytest.mark.parametrize(
    ("config", "problems"),
    [
        (live(partition="liev"), ['live.partition: no partition "liev" on this cluster; the nearest is live']),
        (
            live(partition="gpu"),
            ['live.partition: no partition "gpu" on this cluster; there are closed, live, small'],
        ),
        (live(partition="closed"), ['live.partition: partition "closed" is not up']),
        (live(time="2:00:01"), ['live.time: "2:00:01" is over the limit of partition live, 2 hours']),
        (live(time="UNLIMITED"), ['live.time: "UNLIMITED" is over the limit of partition live, 2 hours']),
        (
            live(component={"nodes": 3}),
            ["live.component[0]: wants 3 nodes with 1 CPU; partition live has 2 of them among its 2"],
        ),
        (
            live(component={"nodes": 2, "constraint": "h100"}),
            ["live.component[0]: wants 2 nodes with 1 CPU, features h100; partition live has 1 of them among its 2"],
        ),
        (
            live(component={"nodes": 2, "exclude": "n1"}),
            ["live.component[0]: wants 2 nodes with 1 CPU, none of n1; partition live has 1 of them among its 2"],
        ),
        (
            live(component={"mem": "64G"}),
            ["live.component[0]: wants 1 node with 1 CPU, 65536 MiB; partition live has 0 of them among its 2"],
        ),
        (
            live(component={"mem": "much"}),
            ["live.component[0].mem: 'much' is not an amount of memory as Slurm writes it, e.g. 4000M or 16G"],
        ),
        (
            live(partition="small", component={"nodes": 2}),
            ["live.component[0]: wants 2 nodes; partition small gives a job 1 at most"],
        ),
    ],
)
def test_can_never_run(cluster_of_two: Any, config: JobConfig, problems: list[str]) -> None:
    assert check_submittable(config, cluster_of_two) == problems


def test_without_a_default_partition_slurm_has_the_last_word(slurm: Any, make_node: Callable[..., NodeInfo]) -> None:
    slurm.add_partition("p", [make_node("n1")])
    assert check_submittable(JobConfig(), slurm) == [], "a site's filter may choose one"


def test_a_site_may_choose_another_partition_than_the_default(
    slurm: Any, make_node: Callable[..., NodeInfo], caplog: pytest.LogCaptureFixture
) -> None:
    slurm.add_partition("cpu", [make_node("n1")], is_default=True)
    slurm.add_partition("gpu", [make_node("n2", features=frozenset({"h100"}))])
    assert check_submittable(live(partition=None, component={"constraint": "h100"}), slurm) == []
    (said,) = caplog.messages
    assert "partition cpu has 0 of them among its 1; unless the site chooses another partition" in said
    (problem,) = check_submittable(live(partition=None, component={"constraint": "b200"}), slurm)
    assert "partition cpu has 0 of them" in problem


def test_one_of_several_partitions_is_enough(cluster_of_two: Any) -> None:
    assert check_submittable(live(partition="nosuch,live"), cluster_of_two) == []
    neither = check_submittable(live(partition="nosuch,neither"), cluster_of_two)
    assert any('no partition "neither"' in problem for problem in neither)


def test_the_site_says_whether_a_lost_node_lets_a_job_come_first(cluster_of_two: Any, tmp_path: Path) -> None:
    assert not Submission.for_cluster(live(), cluster_of_two).expedite
    cluster_of_two.settings["SlurmctldParameters"] = "idle_on_node_suspend,enable_expedited_requeue"
    submission = Submission.for_cluster(live(), cluster_of_two)
    assert "--requeue=expedite" in submission.script(RunDir(tmp_path))


def test_standbys_count_only_if_there_may_be_any(cluster_of_two: Any) -> None:
    def config(max_jobs: int) -> JobConfig:
        return JobConfig(
            live=LiveSection(partition="live", time="1:00:00"),
            standby=StandbySection(partitions=("live",), max_jobs=max_jobs, nodes_per_job=3, time="3:00:00"),
        )

    assert check_submittable(config(0), cluster_of_two) == []
    assert check_submittable(config(1), cluster_of_two) == [
        'standby.time: "3:00:00" is over the limit of partition live, 2 hours',
        "standby: wants 3 nodes with 1 CPU; partition live has 2 of them among its 2",
    ]


def test_submit(cluster_of_two: Any, tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert Submission.for_cluster(live(), cluster_of_two).submit(run_dir, ["--x"]) == "77"
    assert cluster_of_two.submitted == [(run_dir.batch_script, ("--x",))]
    assert "#SBATCH hetjob" in run_dir.batch_script.read_text()


@pytest.fixture
def lost_answer(cluster_of_two: Any, make_job: Callable[..., JobInfo], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A slurmctld that takes a job and does not say so: called with what sbatch ends with."""

    def arrange(run_dir: RunDir, error: BaseException, *, taken: bool = True, answers: bool = True) -> None:
        def submit(script: Path, arguments: Sequence[str] = ()) -> str:
            if taken:
                cluster_of_two.infos.append(make_job("77+0", "PENDING", name="liver", comment=str(run_dir.path)))
            cluster_of_two.infos.append(make_job("78+0", "PENDING", name="liver", comment="/another"))
            cluster_of_two.away = not answers
            raise error

        monkeypatch.setattr(cluster_of_two, "submit", submit)

    return arrange


def test_a_job_whose_number_was_lost_is_found(cluster_of_two: Any, tmp_path: Path, lost_answer: Any) -> None:
    lost_answer(RunDir(tmp_path), NotAnswering("sbatch did not answer"))
    assert Submission.for_cluster(live(), cluster_of_two).submit(RunDir(tmp_path)) == "77"
    assert cluster_of_two.cancelled == []


def test_a_job_that_was_not_taken_is_refused(cluster_of_two: Any, tmp_path: Path, lost_answer: Any) -> None:
    lost_answer(RunDir(tmp_path), NotAnswering("sbatch did not answer"), taken=False)
    with pytest.raises(NotAnswering):
        Submission.for_cluster(live(), cluster_of_two).submit(RunDir(tmp_path))


def test_an_interrupted_submission_leaves_no_job(cluster_of_two: Any, tmp_path: Path, lost_answer: Any) -> None:
    lost_answer(RunDir(tmp_path), KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        Submission.for_cluster(live(), cluster_of_two).submit(RunDir(tmp_path))
    assert cluster_of_two.cancelled == ["77"]


def test_what_cannot_be_seen_is_said(cluster_of_two: Any, tmp_path: Path, lost_answer: Any) -> None:
    lost_answer(RunDir(tmp_path), NotAnswering("no answer"), answers=False)
    with pytest.raises(SubmissionUnknown, match=r"no answer; whether .* is unknown: .*squeue --name=liver .*scancel"):
        Submission.for_cluster(live(), cluster_of_two).submit(RunDir(tmp_path))


def test_nothing_is_submitted_that_can_never_run(cluster_of_two: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no partition"):
        Submission.for_cluster(live(partition="x"), cluster_of_two).submit(RunDir(tmp_path))
    assert cluster_of_two.submitted == []
    assert list(tmp_path.iterdir()) == []


def test_the_cluster_is_asked_once_a_submit(
    cluster_of_two: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for name in ("partitions", "nodes"):
        answer = getattr(cluster_of_two, name)
        monkeypatch.setattr(
            cluster_of_two, name, lambda *of, answer=answer, name=name: (asked.append(name), answer(*of))[1]
        )
    Submission.for_cluster(live(), cluster_of_two).submit(RunDir(tmp_path))
    assert asked == ["partitions", "nodes"]
