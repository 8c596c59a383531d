"""Own functions through ``submitit.AutoExecutor(cluster="liver")``, on a cluster that requeues what it preempts."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import submitit
from submitit.core.utils import FailedJobError, UncompletedJobError

from liver_slurm.plugins.submitit.job import POLL, LiverInfoWatcher, LiverJob
from liver_slurm.scheduler.slurm.client import CommandClient

pytestmark = [
    pytest.mark.slurm,
    # No accounting, so no sacct.
    pytest.mark.cluster(nodes=2, cpus_per_node=2, gpus_per_node=0, grace=20, preempt_mode="requeue"),
]
Eventually = Callable[..., Any]


@pytest.fixture
def executor(client: CommandClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(LiverJob, "_results_timeout_s", 1)  # for a result that is not coming; this disk is fast
    # One watcher serves a process; another module's cluster in this one had jobs of the same numbers.
    monkeypatch.setattr(LiverJob, "watcher", LiverInfoWatcher(delay_s=POLL))
    made = submitit.AutoExecutor(tmp_path / "jobs", cluster="liver")
    made.update_parameters(name="own", timeout_min=3, cpus_per_task=1, liver_partition="scavenger")
    return made


def slow(folder: str, catch: str = "") -> Any:
    """A function that notes that it runs, and then waits for the signal ``catch``; sent by value, as a notebook's."""

    class Slow:
        def __call__(self) -> str:
            import os
            import signal
            import threading
            from pathlib import Path

            told = threading.Event()
            if catch:
                signal.signal(getattr(signal, catch), lambda *_: told.set())
            job = os.environ["SLURM_JOB_ID"]
            with (Path(folder) / job).open("a") as note:
                note.write(f"start {os.sched_getaffinity(0)}\n")
            told.wait()
            return f"{catch} came"

        def checkpoint(self) -> Any:
            raise AssertionError("nobody asked for a checkpoint")

    return Slow()


def starts(folder: Path, job: Any) -> int:
    note = folder / job.job_id
    return len(note.read_text().splitlines()) if note.exists() else 0


def is_over(client: CommandClient, job: Any) -> bool:
    return all(info.is_over for info in client.jobs([job.job_id]))


def test_result_output_and_exception(executor: Any) -> None:
    def own(divisor: int) -> tuple[float, str]:
        import sys

        print("to stdout")
        print("to stderr", file=sys.stderr)
        return 6 / divisor, submitit.JobEnvironment().cluster

    good, bad = executor.submit(own, 2), executor.submit(own, 0)
    assert good.result() == (3.0, "liver")
    assert "to stdout" in good.stdout()
    assert "to stderr" in good.stderr()
    assert good.exception() is None
    with pytest.raises(FailedJobError, match="ZeroDivisionError"):
        bad.result()
    script = good.paths.submission_file.read_text()
    assert "#SBATCH --signal" not in script, "SIGUSR2 would end a function that does not expect it"
    assert "#SBATCH --no-requeue\n" in script


def test_tasks_of_one_job(executor: Any) -> None:
    def rank() -> tuple[int, int]:
        import os

        return submitit.JobEnvironment().global_rank, int(os.environ["SLURM_CPUS_PER_TASK"])

    executor.update_parameters(nodes=2, tasks_per_node=1, cpus_per_task=2)
    assert executor.submit(rank).results() == [(0, 2), (1, 2)]


def test_map_array(client: CommandClient, executor: Any, eventually: Eventually) -> None:
    executor.update_parameters(liver_array_parallelism=1)
    jobs = executor.map_array(lambda a, b: a * b, [1, 2, 3], [10, 20, 30])
    main = {job.job_id.partition("_")[0] for job in jobs}
    assert len(main) == 1, "one job array"
    assert [job.job_id.partition("_")[2] for job in jobs] == ["0", "1", "2"]
    assert [job.result() for job in jobs] == [10, 40, 90]
    eventually(lambda: [job.watcher.get_state(job.job_id, "force") for job in jobs] == ["COMPLETED"] * 3, "states")


def test_a_preempted_function_hears_of_it_and_is_not_requeued(
    client: CommandClient, executor: Any, tmp_path: Path, eventually: Eventually
) -> None:
    executor.update_parameters(nodes=2)
    job = executor.submit(slow(str(tmp_path), "SIGTERM"))
    eventually(lambda: starts(tmp_path, job) == 2, "both tasks run")
    prod = ["sbatch", "--parsable", "--output=/dev/null", "-pprod", "-N2", "--exclusive", "--wrap=true"]
    wanted = subprocess.run(prod, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
    assert job.results() == ["SIGTERM came"] * 2
    eventually(lambda: is_over(client, job), "it is over")
    eventually(lambda: client.jobs([wanted])[0].is_over, "the prod job had the nodes")
    (info,) = client.jobs([job.job_id])
    assert info.restarts == 0
    assert starts(tmp_path, job) == 2


def test_usr2_is_the_functions_own(
    client: CommandClient, executor: Any, tmp_path: Path, eventually: Eventually
) -> None:
    catches = executor.submit(slow(str(tmp_path), "SIGUSR2"))
    does_not = executor.submit(slow(str(tmp_path)))
    jobs = [catches, does_not]
    eventually(lambda: [starts(tmp_path, job) for job in jobs] == [1, 1], "both run")
    for job in jobs:
        subprocess.run(["scancel", "--signal=USR2", job.job_id], check=True, timeout=30)
    assert catches.result() == "SIGUSR2 came"
    eventually(lambda: is_over(client, does_not), "USR2 ends what does not expect it")
    error = does_not.exception()
    assert isinstance(error, UncompletedJobError)
    assert "checkpoint" not in str(error)
    assert {info.restarts for info in client.jobs([job.job_id for job in jobs])} == {0}
    assert [starts(tmp_path, job) for job in jobs] == [1, 1]


def test_cancel(client: CommandClient, executor: Any, tmp_path: Path, eventually: Eventually) -> None:
    executor.update_parameters(nodes=2, cpus_per_task=2)
    running = executor.submit(slow(str(tmp_path)))
    first, second = executor.map_array(lambda _: None, [0, 1])  # no room for them
    eventually(lambda: starts(tmp_path, running) == 2, "both tasks run")
    assert running.watcher.get_state(running.job_id, "force") == "RUNNING"
    assert first.watcher.get_state(first.job_id, "force") == "PENDING"
    first.cancel()
    eventually(lambda: first.done(force_check=True), "the pending task is over")
    assert not second.done(force_check=True)
    calls = running.watcher.num_calls
    running.cancel()
    running.cancel()  # as good as once
    eventually(lambda: running.done(force_check=True), "it is over")
    assert running.watcher.get_state(running.job_id, "force") == "CANCELLED"
    assert second.results() == [None, None]
    assert running.watcher.num_calls > calls
    with pytest.raises(UncompletedJobError, match="CANCELLED"):
        running.results()


def test_parameters_are_submitits(executor: Any) -> None:
    with pytest.raises(NameError, match="Unknown argument 'partitoin' for executor 'liver'"):
        executor.update_parameters(liver_partitoin="scavenger")
    executor.update_parameters(liver_partition="nosuch")
    with pytest.raises(RuntimeError, match="invalid partition"):
        executor.submit(print)
