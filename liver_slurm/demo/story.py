"""``make demo``: an elastic training job on a real Slurm cluster on this machine, and an undisturbed run beside it.

The cluster has five nodes of one CPU: the coordinator and two guaranteed workers take three, the run grows into the
other two, a job of a higher tier takes them away, and when that is over the run grows again. Then it is asked to
shrink.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from liver_slurm.app.api import Job, submit_config
from liver_slurm.app.local_run import run_local
from liver_slurm.base import interrupts
from liver_slurm.base.errors import LiverError
from liver_slurm.base.narrator import Narrator
from liver_slurm.cli.common import RECONFIGURATION_HEADERS, print_table, reconfiguration_rows, seconds_text
from liver_slurm.config.load import load_job
from liver_slurm.devcluster.lifecycle import down, up
from liver_slurm.devcluster.spec import ClusterSpec
from liver_slurm.observability.summary import reconfiguration_table, summarize
from liver_slurm.rundir.event_log import read_documents, read_events
from liver_slurm.rundir.events import Notice, ReconfigurationCommitted, WorldLive, event_name
from liver_slurm.rundir.metrics import read_metrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run
from liver_slurm.scheduler.slurm.command import run_once

STEPS = 500
PROD_SECONDS = 4
PATIENCE, LONGEST = 120.0, 600.0
"""Seconds that each stage may take, and the way to the last step, on a machine that has other things to do."""
TOLERANCE = 1e-6
"""Relative difference of losses that other orders of summation may give in fp32."""
Kind = TypeVar("Kind", bound="WorldLive | Notice | ReconfigurationCommitted")
LAYOUTS = ["tp1pp1dp2", "tp1pp1dp3", "tp2pp1dp2"]


def main(runs: Path | None = None) -> int:
    """Run the demo; returns the exit code.

    Args:
        runs: folder in which the run directories stay; None: they go with everything else that the demo makes.
    """
    job_file = Path(__file__).parents[2] / "configs" / "gpt-tiny.toml"
    # If the demo fails the folder stays, as the logs that the message names lie in it.
    with interrupts.temporary_folder("liver-demo-", keep_failed=True) as folder:
        begun = time.monotonic()
        say = Narrator(begun)
        overrides = [
            f"job.run_root={runs or folder / 'runs'}",
            f"train.steps={STEPS}",
            "standby.max_jobs=2",
            f"elastic.layouts={LAYOUTS}",
            "checkpoint.every=0",
        ]
        with demo_cluster(folder / "cluster", say):
            job = submit_config(load_job(job_file, overrides))
            say(f"liver-slurm submit configs/gpt-tiny.toml: job {job.job_id}")
            try:
                _story(job, say)
            except Exception:
                job.cancel()
                raise
        say("the undisturbed run: the same job on two workers, as plain processes")
        undisturbed = create_run(load_job(job_file, [*overrides, "standby.max_jobs=0"], workers=2))
        code = run_local(load_job(job_file, [*overrides, "standby.max_jobs=0"], workers=2), undisturbed, 2, 0)
        if code != 0:
            raise LiverError(f"the undisturbed run ended with exit code {code}")
        code = _verdict(job, list(_losses(undisturbed.metrics)), say)
        _report(job, undisturbed, say)
        return code


@contextmanager
def demo_cluster(directory: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Bring up a cluster for the block, with SLURM_CONF pointing at it."""
    say("cluster up: 5 nodes, partitions live, prod and scavenger")
    cluster = up(ClusterSpec(directory=directory, nodes=5, cpus_per_node=1, gpus_per_node=0, grace=15))
    os.environ["SLURM_CONF"] = str(cluster.slurm_conf)
    try:
        yield
    finally:
        if not interrupts.interrupted():  # else it is killed, with everything that the demo has started
            down(directory)
            say("cluster down")


PRODUCTION = ("--output=/dev/null", "--partition=prod", "--nodes=2", "--exclusive")


def production(seconds: float) -> list[str]:
    """Return the command that submits a production job, which wants both scavenger nodes."""
    return ["sbatch", "--parsable", *PRODUCTION, "--wrap", f"sleep {seconds:.1f}"]


def _story(job: Job, say: Callable[[str], None]) -> None:
    """Grow, be preempted, grow again, shrink as requested, finish."""
    _await(job, say, WorldLive, 1)
    _await_layout(job, say, "tp2pp1dp2", 1)
    wanted = subprocess.run(
        production(PROD_SECONDS),
        check=True,
        capture_output=True,
        text=True,
        cwd=job.run_dir.path,
    ).stdout.strip()
    say(f"sbatch -p prod -N2: job {wanted}, of a higher tier, wants the two scavenger nodes")
    _await(job, say, Notice, 1)
    _await_layout(job, say, "tp1pp1dp2", 2)
    _until(lambda: _state(wanted) == "RUNNING", job, f"prod job {wanted} did not start")
    say(f"prod job {wanted} runs on the nodes that were given back; training goes on")
    _await_layout(job, say, "tp2pp1dp2", 2)
    # What is left is short, also on two cores, which four workers would share.
    job.resize(workers=2)
    say("liver-slurm resize --workers 2")
    _await_layout(job, say, "tp1pp1dp2", 3)
    _until(job.end_watch(), job, "the run did not finish", LONGEST)
    state = job.status()["state"]
    if state != "finished":
        raise LiverError(f"the run ended as {state}; see {job.run_dir.logs}")
    say("the run has finished")


def _state(job_id: str) -> str:
    return run_once(["squeue", "-h", "-j", job_id, "-o", "%T"], timeout=10).strip()


def _await(job: Job, say: Callable[[str], None], kind: type[WorldLive | Notice], count: int) -> None:
    _until(lambda: len(_of_kind(job, kind)) >= count, job, f"no {event_name(kind)} event")
    say(_told(_of_kind(job, kind)[count - 1]))


def _await_layout(job: Job, say: Callable[[str], None], layout: str, count: int) -> None:
    def changes() -> list[ReconfigurationCommitted]:
        return [event for event in _of_kind(job, ReconfigurationCommitted) if event.to == layout]

    wanted = count if layout != "tp1pp1dp2" else count - 1
    _until(lambda: len(changes()) >= wanted, job, f"the run did not get to {layout}")
    say(_told(changes()[wanted - 1]))


def _of_kind(job: Job, kind: type[Kind]) -> list[Kind]:
    return [event for event in read_events(job.run_dir.events) if isinstance(event, kind)]


def _told(event: WorldLive | Notice | ReconfigurationCommitted) -> str:
    if isinstance(event, WorldLive):
        return f"world {event.generation} is live: {event.layout}, {len(event.members)} workers"
    if isinstance(event, Notice):
        got = "got " if event.kind == "signal" else "is told: "
        return f"notice: {event.worker} {got}{event.reason}"
    return (
        f"{event.source} → {event.to} at step {event.cutover_step}, training waited {seconds_text(event.exposed_s)}, "
        f"{event.digests_checked} digests equal: {event.reason}"
    )


def _until(holds: Callable[[], bool], job: Job, failure: str, patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    ended = job.end_watch()
    while not holds():
        if ended() and not holds():
            raise LiverError(f"{failure} before the run ended; see {job.run_dir.logs}")
        if time.monotonic() > deadline:
            raise LiverError(f"{failure} within {patience:.0f} s; see {job.run_dir.logs}")
        time.sleep(0.1)


def _report(job: Job, undisturbed: RunDir, say: Callable[[str], None]) -> None:
    """Write the report where it outlives the demo's folder."""
    from liver_slurm.report.write import read_report, write_html

    path = Path(tempfile.gettempdir()) / f"{job.run_dir.path.name}.html"
    write_html(read_report(job.run_dir, undisturbed), path)
    say(f"the report of this run, to open in a browser: {path}")


def _losses(metrics: Path) -> list[tuple[int, float]]:
    return [(line.step, line.loss) for line in read_metrics(metrics)]


def _verdict(job: Job, expected: Sequence[tuple[int, float]], say: Callable[[str], None]) -> int:
    summary = summarize(read_documents(job.run_dir.events))
    print_table(reconfiguration_rows(reconfiguration_table(summary.reconfigurations)), RECONFIGURATION_HEADERS)
    found = _losses(job.run_dir.metrics)
    if [step for step, _ in found] != [step for step, _ in expected]:
        say(f"NOT EQUAL: {len(found)} steps against {len(expected)} of the undisturbed run")
        return 1
    worst = max(abs(loss - other) / other for (_, loss), (_, other) in zip(found, expected, strict=True))
    equal = worst <= TOLERANCE
    say(
        f"losses of all {len(found)} steps {'equal' if equal else 'DO NOT EQUAL'} those of the undisturbed run: "
        f"largest relative difference {worst:.1e} (allowed: {TOLERANCE:.0e})"
    )
    return 0 if equal else 1
