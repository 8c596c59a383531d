"""``make demo-advisor``: from real runs that explore to a run that follows the advice, on a cluster on this machine.

The cluster is the demo's. Short runs of policy ``explore`` grow into its two scavenger nodes or leave them, by lot,
while jobs of a higher tier take these nodes away at moments drawn by lot. Then the commands that a user would type:
collect, fit, explain; and one run of policy ``advisor`` with what was learned, which says with each decision why.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from liver_slurm.app.api import Job, submit_config
from liver_slurm.base import interrupts
from liver_slurm.base.errors import LiverError
from liver_slurm.base.narrator import Narrator
from liver_slurm.config.load import load_job
from liver_slurm.demo.story import demo_cluster, production
from liver_slurm.rundir.event_log import read_events
from liver_slurm.rundir.events import Offered, PolicyDecided, RunEnded

JOB_FILE = Path(__file__).parents[2] / "configs" / "gpt-tiny.toml"
STEPS = 1_500
EXPLORE, COMMIT_S = 0.4, 5.0
"""Chance to leave what is on offer, and seconds until it may be on offer again: a run has time for several."""
BETWEEN, HELD = (20.0, 60.0), (2.0, 6.0)
"""Seconds from one job of a higher tier to the next, and seconds that each has the nodes."""
LONGEST = 900.0
"""Seconds that a run may take, on a machine that has other things to do."""


def main(runs: int, folder: Path) -> int:
    """Run all of it; returns the exit code.

    Args:
        runs: that explore.
        folder: for run directories, table, model and pictures.
    """
    say = Narrator(time.monotonic())
    with demo_cluster(folder / "cluster", say):
        explored = [
            _run(folder, seed, ["standby.policy=explore", f"standby.explore={EXPLORE}"], say) for seed in range(runs)
        ]
        table, model = folder / "table.jsonl", folder / "advisor.json"
        _command(["collect", *(str(one.run_dir.path) for one in explored), "-o", str(table)], say)
        _command(["fit", str(table), "-o", str(model)], say)
        pictures = ["--html", str(folder / "advice.html"), "--png", str(folder / "advice.png")]
        _command(["explain", str(model), *pictures], say)
        advised = _run(folder, runs, ["standby.policy=advisor", f"standby.advisor={model}"], say)
    for decided in _offers(advised):
        say(f"advised run, step {decided.offer.step if isinstance(decided.offer, Offered) else 0}: {decided.reason}")
    return 0


def _run(folder: Path, seed: int, policy: Sequence[str], say: Callable[[str], None]) -> Job:
    """Train one run to its end, and take its nodes away now and then."""
    overrides = [
        f"job.run_root={folder / 'runs'}",
        f"train.steps={STEPS}",
        "standby.max_jobs=2",
        f"standby.commit={COMMIT_S:g}",
        "checkpoint.every=0",
        *policy,
    ]
    random = Random(f"advised {seed}")
    begun = time.monotonic()
    job = submit_config(load_job(JOB_FILE, overrides))
    try:
        _disturb(job, random, begun + LONGEST)
    except BaseException:
        job.cancel()
        raise
    ended = [one for one in read_events(job.run_dir.events) if isinstance(one, RunEnded)]
    if not ended or ended[-1].outcome != "finished":
        raise LiverError(f"run {job.run_dir.path} did not finish; see {job.run_dir.logs}")
    did = [one.offer.action for one in _offers(job) if isinstance(one.offer, Offered)]
    say(f"{policy[0]}, run {seed}: {STEPS} steps, took {did.count('take')} offers and left {did.count('leave')}")
    return job


def _disturb(job: Job, random: Random, deadline: float) -> None:
    """Ask for the scavenger nodes with jobs of a higher tier until the run is over."""
    ended = job.end_watch()
    following = time.monotonic() + random.uniform(*BETWEEN)
    while not ended():
        now = time.monotonic()
        if now > deadline:
            raise LiverError(f"run {job.run_dir.path} did not end within {LONGEST:.0f} s; see {job.run_dir.logs}")
        if now > following:
            held = random.uniform(*HELD)
            subprocess.run(production(held), check=True, capture_output=True, cwd=job.run_dir.path)
            following = now + held + random.uniform(*BETWEEN)
        time.sleep(0.2)


def _offers(job: Job) -> list[PolicyDecided]:
    events = read_events(job.run_dir.events)
    return [one for one in events if isinstance(one, PolicyDecided) and isinstance(one.offer, Offered)]


def _command(arguments: Sequence[str], say: Callable[[str], None]) -> None:
    """Run ``liver-slurm advisor`` as a user does, and show what it prints."""
    say(f"liver-slurm advisor {' '.join(one if len(one) < 60 else Path(one).name for one in arguments)}")
    done = subprocess.run([sys.executable, "-m", "liver_slurm", "advisor", *arguments], capture_output=True, text=True)
    print(done.stdout, end="")
    if done.returncode != 0:
        raise LiverError(done.stderr.strip().removeprefix("liver-slurm: error: "))


def _parsed() -> int:
    parser = argparse.ArgumentParser(prog="liver_slurm.demo.advised", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="runs that explore (default: 20)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where everything is kept (default: nowhere)")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        if args.keep is not None:
            args.keep.mkdir(parents=True, exist_ok=True)
            return main(args.runs, args.keep.absolute())
        with interrupts.temporary_folder("liver-advised-", keep_failed=True) as folder:
            return main(args.runs, folder)
    except LiverError as error:
        print(f"liver-slurm: error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    interrupts.run_command(_parsed)
