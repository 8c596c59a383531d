"""`make soak`: a run on the one-machine cluster, a kill a minute, and preemptions on top; nothing lost, nothing left.

LIVER_SOAK says for how many seconds; without it there is no such test. LIVER_SOAK_TARGETS are chaos's --targets.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import notice_lab
import paced_samples
import psutil
import pytest
from coordinator_lab import until

from liver_slurm import Job, submit
from liver_slurm.app.local_run import run_local
from liver_slurm.config.schema import CheckpointSection, JobConfig
from liver_slurm.rundir.metrics import read_metrics
from liver_slurm.rundir.registry import create_run
from liver_slurm.scheduler.slurm.client import CommandClient

SECONDS = float(os.environ.get("LIVER_SOAK") or 0)
TARGETS = os.environ.get("LIVER_SOAK_TARGETS") or "live,standby,coordinator"
TRACE = Path(__file__).parents[1] / "support" / "preemptions.csv"
STEP, PATIENCE = 0.4, 600.0
COMMITTED = 0.95
"""Share of the steps that were trained which must stay."""
ALIKE, WINDOW = 900, 100
"""Steps whose losses are those of an undisturbed run; and steps whose mean is, from there on. Layouts sum in different
orders, and training makes more of each difference: two undisturbed runs, with two and with four workers, are 1e-7
apart after 900 steps, 1e-6 after 1,100, and up to 6 % in single steps after 2,000; in the mean of 100 steps 0.2 %."""
YOUNG = 40.0
"""Seconds that a process has until it has all that it will have."""
MORE_MEMORY, MORE_HANDLES = 48 << 20, 60
"""Bytes, and threads or descriptors, that a process may have more of than when it was young: a world's connections are
some 25, and there may be two at a time. What leaks with each of an hour's changes of world is more than that."""

pytestmark = [
    pytest.mark.skipif(not SECONDS, reason="`make soak` runs this, for an hour"),
    pytest.mark.slurm,
    pytest.mark.timeout(4 * SECONDS + 3600),
    pytest.mark.cluster(nodes=5, cpus_per_node=1, grace=10),
]


@dataclass
class Life:
    """What a process of the run had when it was young, and last."""

    name: str
    since: float
    young: tuple[int, int, int] = (0, 0, 0)
    last: tuple[int, int, int] = (0, 0, 0)
    """Bytes of resident memory, threads, descriptors."""

    def grown(self) -> str:
        """Return what it has too much more of; empty: nothing, or it did not live long enough."""
        if not any(self.young):
            return ""
        memory, *handles = (now - then for now, then in zip(self.last, self.young, strict=True))
        bad = memory > MORE_MEMORY or max(handles) > MORE_HANDLES
        return f"{self.name}: {memory >> 20} MiB, {handles} threads and descriptors more" if bad else ""


@dataclass
class Watch:
    """The processes of a run, looked at again and again."""

    path: str
    lives: dict[tuple[int, float], Life]

    def processes(self) -> Iterator[psutil.Process]:
        """Yield those that are alive; shells of Slurm's steps have the run in their arguments, too."""
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or ())
            if self.path in line and process.info["status"] != psutil.STATUS_ZOMBIE:
                yield process

    def look(self) -> None:
        """Note what each process has now."""
        for process in self.processes():
            try:
                key = (process.pid, process.create_time())
                life = self.lives.setdefault(key, Life(" ".join(process.cmdline()[-4:]), time.monotonic()))
                life.last = (process.memory_info().rss, process.num_threads(), process.num_fds())
            except psutil.NoSuchProcess:
                continue  # killed just now: that is what the soak is about
            if not any(life.young) and time.monotonic() - life.since > YOUNG:
                life.young = life.last


def segments() -> set[str]:
    """Names of shared memory segments on this machine."""
    return {path.name for path in Path("/dev/shm").iterdir()}


def preemptions() -> Iterator[tuple[float, float]]:
    """Yield (second, seconds) of the trace, again and again."""
    lines = [line for line in TRACE.read_text().splitlines() if not line.startswith("#")]
    hour = 0
    while True:
        yield from ((3600.0 * hour + float(at), float(lasts)) for at, lasts in (line.split(",") for line in lines))
        hour += 1


def wanted_job(folder: Path) -> JobConfig:
    """Two guaranteed workers and two standbys; the learning rate does not depend on the number of steps."""
    config = notice_lab.job(folder, standby={"max_jobs": 2})
    train = replace(config.train, steps=1_000_000, lr_decay_style="constant", global_batch_size=12)
    return replace(
        config,
        job=replace(config.job, staging=True, lost_after=20.0),
        train=train,
        live=replace(config.live, component=(replace(config.live.component[0], nodes=2),)),
        data=replace(config.data, provider="paced_samples:provide_steadily"),
        checkpoint=CheckpointSection(every=50, at_end=False),
    )


def over(job: Job) -> str:
    """Why the run is over; empty: it is not."""
    return next((str(event["reason"]) for event in job.events() if event["event"] == "run_ended"), "")


def disturb(job: Job, watch: Watch) -> list[dict[str, Any]]:
    """Kill and preempt for as long as the soak lasts; returns chaos's journal."""
    command = [sys.executable, "-m", "liver_slurm", "chaos", str(job.run_dir.path), "--rate", "1/min", "--seed", "19"]
    options = ["--faults", "kill", "--targets", TARGETS, "--duration", f"{SECONDS:g}s", "--json"]
    begun, trace = time.monotonic(), preemptions()
    due, lasts = next(trace)
    held: list[tuple[float, str]] = []
    chaos = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    while chaos.poll() is None and not over(job):
        now = time.monotonic() - begun
        watch.look()
        if now >= due:
            always = ["-N1", "--exclusive", "-o", "/dev/null", "--chdir=/", "--wrap", "sleep 1000"]
            held.append((now + lasts, notice_lab.slurm("sbatch", "--parsable", "-pprod", *always)))
            due, lasts = next(trace)
        for end, number in [one for one in held if one[0] <= now]:
            notice_lab.slurm("scancel", number)
            held.remove((end, number))
        time.sleep(1.0)  # between looks
    for _, number in held:
        notice_lab.slurm("scancel", number)
    output, _ = chaos.communicate(timeout=PATIENCE)
    entries: list[dict[str, Any]] = json.loads(output)["entries"]
    return entries


def undisturbed_losses(config: JobConfig, steps: int) -> list[float]:
    """Losses of the same job that nothing happens to."""
    plain = replace(config, train=replace(config.train, steps=steps), checkpoint=CheckpointSection(at_end=False))
    plain = replace(plain, standby=replace(plain.standby, max_jobs=0))
    (Path(config.job.run_root) / paced_samples.SLOW).unlink()
    run_dir = create_run(plain)
    assert run_local(plain, run_dir, 2, 0) == 0
    return [line.loss for line in read_metrics(run_dir.metrics)]


def test_soak(
    tmp_path: Path, client: CommandClient, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
) -> None:
    # LS-1, LS-4, LS-26, LS-27
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(paced_samples.FOLDER))
    config = wanted_job(tmp_path / "runs")
    paced_samples.pace(config.job.run_root, STEP)
    before = segments()
    job = submit(config)
    watch = Watch(str(job.run_dir.path), {})
    until(lambda: over(job) or any(event["event"] == "world_live" for event in job.events()), "training", PATIENCE)
    entries = disturb(job, watch)
    ended = over(job)
    job.cancel()
    eventually(lambda: all(one.is_over for one in client.jobs()), "an empty queue", PATIENCE)
    struck = [entry for entry in entries if entry["outcome"].startswith("struck")]
    steps = [line.step for line in read_metrics(job.run_dir.metrics)]
    planned = [event for event in job.events() if event["event"] == "recovery_planned"]
    lost = sum(event.get("steps_lost", 0) for event in job.events()) + sum(bool(event["lost"]) for event in planned)
    print(f"{len(struck)} killed, {len(steps)} steps, {lost} lost; {len(watch.lives)} processes")
    assert ended == ""
    assert struck
    assert steps == list(range(1, len(steps) + 1)), "each step once"
    assert len(steps) >= COMMITTED * (len(steps) + lost)
    eventually(lambda: not list(watch.processes()), "no process is left", PATIENCE)
    assert [grown for life in watch.lives.values() if (grown := life.grown())] == []
    assert segments() - before == set()
    assert [path.name for path in job.run_dir.checkpoints.iterdir() if not path.name.startswith("step-")] == []
    losses = [line.loss for line in read_metrics(job.run_dir.metrics)]
    expected = undisturbed_losses(config, len(steps))
    assert losses[:ALIKE] == pytest.approx(expected[:ALIKE], rel=1e-6)
    for begin in range(ALIKE, len(losses) - WINDOW, WINDOW):
        ours, theirs = (statistics.mean(each[begin : begin + WINDOW]) for each in (losses, expected))
        assert ours == pytest.approx(theirs, rel=0.01), f"steps {begin} to {begin + WINDOW}"
