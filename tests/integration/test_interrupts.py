"""Ctrl-C and SIGTERM end every long command, at any moment of its life: soon, in one line, and nothing is left."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interrupting import Command, Outcome, interrupt, slowness, usual_seconds

from liver_slurm.app.api import find
from liver_slurm.config.load import load_job
from liver_slurm.rundir.event_log import read_documents
from liver_slurm.rundir.registry import create_run
from liver_slurm.scheduler.slurm.client import CommandClient

ROOT = Path(__file__).parents[2]
JOB = str(ROOT / "configs" / "gpt-tiny.toml")
TEXT = str(ROOT / "README.md")
SECONDS = 5.0
"""In which an interrupted command ends, on a machine that is as quick as :func:`slowness` counts."""
MOMENTS = int(os.environ.get("LIVER_INTERRUPTS", "100"))
SEED = os.environ.get("LIVER_INTERRUPTS_SEED", "")
"""Of the moments; another one has others."""
ENDLESS = ("--set", "train.steps=100000", "--set", "checkpoint.every=0", "--set", f'data.paths=["{TEXT}"]')
PROGRESS = r"run directory .*|[a-z ]+, step \d+ of .*|\d\d:\d\d:\d\d .*"
BENCH = r"\d+/\d+ .*"


def runs_in(folder: Path) -> list[str]:
    """Where the job's run directories are made."""
    return ["--set", f"job.run_root={folder}/runs"]


def quiet_run(folder: Path) -> str:
    """A run directory of which nobody knows whether it is over: whoever follows it goes on."""
    run_dir = create_run(load_job(JOB, [f"job.run_root={folder}/runs"]))
    run_dir.events.write_text('{"time": 1.0, "event": "world_live", "generation": 0}\n' * 20)
    (run_dir.logs / "coordinator.log").write_text("a line\n" * 20)
    return str(run_dir.path)


def texts(folder: Path) -> str:
    """A file that takes seconds to tokenize."""
    text = folder / "corpus.txt"
    text.write_text("To be tokenized, again and again. " * 2_000_000)
    return str(text)


COMMANDS = (
    Command("bench transfer", lambda _: ["liver_slurm", "bench", "transfer", "--quick"], says=r"    .*"),
    Command(
        "run",
        lambda folder: ["liver_slurm", "run", JOB, "--workers", "2", "--standbys", "1", *ENDLESS, *runs_in(folder)],
        says=PROGRESS,
    ),
    Command("bench plan", lambda _: ["liver_slurm", "bench", "plan", "--quick"]),
    Command("bench reconfigure", lambda _: ["liver_slurm", "bench", "reconfigure", "--quick"], says=BENCH, longest=30),
    Command("bench recovery", lambda _: ["liver_slurm", "bench", "recovery", "--quick"], says=BENCH, longest=30),
    Command("bench overhead", lambda _: ["liver_slurm", "bench", "overhead", "--quick"], says=BENCH, longest=30),
    Command(
        "data prepare",
        lambda folder: ["liver_slurm", "data", "prepare", texts(folder), "--output", str(folder / "made")],
    ),
    Command("bench policies", lambda _: ["liver_slurm", "bench", "policies", "--quick"], says=BENCH),
    Command("bench advisor", lambda _: ["liver_slurm", "bench", "advisor", "--quick"]),
    Command(
        "simulate",
        lambda _: ["liver_slurm", "simulate", JOB, "--trace", str(ROOT / "examples" / "traces" / "day.csv")],
    ),
    Command("doctor", lambda _: ["liver_slurm", "doctor", JOB, "--no-jobs"], environment={"SLURM_CONF": "/nowhere"}),
    Command("events", lambda folder: ["liver_slurm", "events", quiet_run(folder), "--follow"], longest=2),
    Command("logs", lambda folder: ["liver_slurm", "logs", quiet_run(folder), "--follow"], longest=2),
    Command("plan", lambda _: ["liver_slurm", "plan", JOB, "--from", "tp2pp1dp1", "--to", "tp1pp2dp1"]),
)
NAMES = [command.name for command in COMMANDS]
needs_slurm = pytest.mark.skipif(shutil.which("srun") is None, reason="no Slurm on this machine")
SLURM_COMMANDS = (
    Command("cluster up", lambda folder: ["liver_slurm", "cluster", "up", "--dir", str(folder / "cluster")]),
    Command("demo", lambda _: ["liver_slurm.demo"], longest=60),
)
JOB_COMMANDS = (
    Command(
        "submit --wait",
        lambda folder: ["liver_slurm", "submit", JOB, "--wait", *ENDLESS, *runs_in(folder)],
        says=PROGRESS,
        adds=r": job \d+ runs on; .*",
        hands_on=True,
    ),
    Command(
        "doctor with jobs",
        lambda folder: ["liver_slurm", "doctor", JOB, "--set", f"job.run_root={folder}"],
    ),
)


@pytest.mark.parametrize("name", NAMES[:2])
def test_some_moments(name: str, tmp_path: Path) -> None:
    command = COMMANDS[NAMES.index(name)]
    for number, at in enumerate((0.2, 1.5, 8.0)):
        outcome = interrupt(command, tmp_path / str(number), at)
        assert not outcome.problems(command, signal.SIGINT, SECONDS * slowness())


def test_a_run_says_who_cancelled_it(tmp_path: Path) -> None:
    command = COMMANDS[NAMES.index("run")]

    def trains(_: object) -> bool:
        return any((tmp_path / "run" / "runs").glob("*/metrics.jsonl"))

    outcome = interrupt(command, tmp_path / "run", trains, signal.SIGTERM, again=0.1)
    assert not outcome.problems(command, signal.SIGTERM, SECONDS * slowness())
    (events,) = (tmp_path / "run" / "runs").glob("*/events.jsonl")
    (ended,) = [event for event in read_documents(events) if event["event"] == "run_ended"]
    assert (ended["outcome"], ended["reason"]) == ("cancelled", "cancelled by SIGTERM")
    assert "cancelled by SIGTERM" in (tmp_path / "run" / "stdout").read_text()


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", NAMES)
def test_any_moment(name: str, tmp_path: Path) -> None:
    at_random_moments(COMMANDS[NAMES.index(name)], tmp_path)


@needs_slurm
@pytest.mark.long
@pytest.mark.slurm
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("command", SLURM_COMMANDS, ids=lambda command: command.name)
def test_any_moment_of_a_cluster(command: Command) -> None:
    def nothing_is_left(folder: Path, outcome: Outcome) -> list[str]:
        left = folder / "cluster"
        return [] if outcome.finished or outcome.code == 0 or not left.exists() else [f"left: {left}"]

    with tempfile.TemporaryDirectory(prefix="liver-") as short:  # sockets live in it, and their paths are short
        at_random_moments(command, Path(short), nothing_is_left)


@pytest.mark.long
@pytest.mark.slurm
@pytest.mark.cluster(nodes=3, cpus_per_node=2, gpus_per_node=0)
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("command", JOB_COMMANDS, ids=lambda command: command.name)
def test_any_moment_of_a_job(
    command: Command, tmp_path: Path, client: CommandClient, eventually: Callable[..., Any]
) -> None:
    def only_what_it_says(folder: Path, outcome: Outcome) -> list[str]:
        """A run that goes on is named by the line, and there is no job of another."""
        said = re.findall(r"job (\d+) runs on", outcome.err)
        runs = [find(path).job_id for path in (folder / "runs").glob("*")]
        found = empty_queue()
        return [] if runs == said and (runs or not found) else [f"jobs {found}, said {said}, runs of {runs}"]

    def empty_queue() -> list[str]:
        found = [job.job_id for job in client.jobs() if not job.is_over and not job.ends]
        client.cancel(found)
        eventually(lambda: all(job.is_over for job in client.jobs()), "an empty queue", 300)
        return found

    usual = usual_life(command, tmp_path, empty_queue)
    at_random_moments(command, tmp_path, only_what_it_says, usual)


def usual_life(command: Command, folder: Path, clear: Callable[[], object] = lambda: None) -> float:
    """Seconds of its life in which a command is interrupted; ``clear`` ends what it leaves on purpose."""
    work = folder / f"u{os.getpid()}"
    seconds = usual_seconds(command, work)
    clear()
    shutil.rmtree(work)
    return seconds


def at_random_moments(
    command: Command,
    folder: Path,
    check: Callable[[Path, Outcome], list[str]] = lambda _folder, _outcome: [],
    usual: float | None = None,
) -> None:
    """Interrupt the command :data:`MOMENTS` times, and print what was seen."""
    chance = random.Random(command.name + SEED)
    work = folder / f"i{os.getpid()}"
    usual = usual_life(command, folder) if usual is None else usual
    outcomes: list[Outcome] = []
    failures: list[str] = []
    for number in range(MOMENTS):
        sent = signal.SIGTERM if number % 4 == 3 else signal.SIGINT
        outcome = interrupt(
            command,
            work,
            chance.uniform(0.0, usual),
            sent,
            group=number % 3 != 2,
            again=chance.uniform(0.0, 1.5) if number % 5 == 4 else None,
        )
        problems = outcome.problems(command, sent, SECONDS * slowness()) + check(work, outcome)
        said = [f"{command.name} {sent.name} at {outcome.at:.3f} s: {problem}" for problem in problems]
        failures += said
        print(*said, sep="\n", end="\n" * bool(said), flush=True)
        outcomes.append(outcome)
        shutil.rmtree(work)
    print(summary(command, usual, outcomes, failures), flush=True)
    assert not failures, "\n".join(failures)


def summary(command: Command, usual: float, outcomes: list[Outcome], failures: list[str]) -> str:
    """One line of figures."""
    seconds = sorted(one.seconds for one in outcomes if not one.finished)
    return (
        f"{command.name}: {len(outcomes)} interrupts in {usual:.1f} s of life, {len(outcomes) - len(seconds)} of them "
        f"after its end, {sum(not one.armed and not one.finished for one in outcomes)} before our code; seconds to the "
        f"end: median {seconds[len(seconds) // 2]:.2f}, most {seconds[-1]:.2f}; {len(failures)} failures"
    )
