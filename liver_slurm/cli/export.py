"""``liver-slurm export``: a run for other programs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from liver_slurm.base import interrupts
from liver_slurm.cli.common import Subparsers, add_job, add_json, new_parser, print_json

if TYPE_CHECKING:
    from liver_slurm.app.trackers import Tracker
    from liver_slurm.rundir.paths import RunDir

DESCRIPTION = """\
Hand a run's steps and changes on to TensorBoard or to Weights & Biases. They are read from the run's files: training
knows nothing of it, and it works for runs that are over as for those that go on."""
TENSORBOARD = """\
Write event files of TensorBoard: loss, gradient norm, learning rate, speed and world of each step at the time when it
was trained, and what reconfigurations cost. Needs the extra [tensorboard]."""
WANDB = """\
Log a run to Weights & Biases: the figures of each step and the job file's keys, but for those of [notify]. Each export
is a run of its own there. Needs the extra [wandb]."""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``export`` to the commands."""
    parser = new_parser(
        subparsers,
        "export",
        DESCRIPTION,
        ("export tensorboard 1234", "export wandb 1234 --offline"),
        see_also=("events", "top"),
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    examples = {"export tensorboard 1234 --follow": "and in another terminal: tensorboard --logdir RUN/tensorboard"}
    files = {"RUN/tensorboard/": "where the event files go; a further export replaces them"}
    board = new_parser(kinds, "tensorboard", TENSORBOARD, examples, files=files)
    board.add_argument("--to", metavar="DIR", help="another folder, empty or new")
    examples = {"export wandb 1234 --project llm": "", "export wandb 1234 --offline": "wandb sync sends it later"}
    wandb = new_parser(kinds, "wandb", WANDB, examples, files={"RUN/wandb/": "wandb's own files"})
    wandb.add_argument("--project", metavar="NAME", default="liver-slurm", help="project there (default: liver-slurm)")
    wandb.add_argument("--entity", metavar="NAME", help="user or team there")
    wandb.add_argument("--offline", action="store_true", help="write files only, which `wandb sync` sends")
    for one in (board, wandb):
        add_job(one)
        one.add_argument("--follow", action="store_true", help="go on until the run is over")
        add_json(one, 'print {"run_dir", "where", "steps", "changes"} at the end')


def run(args: argparse.Namespace) -> int:
    """Hand the run on."""
    from liver_slurm.app.api import find
    from liver_slurm.app.trackers import feed

    job = find(args.job)
    with interrupts.orderly():
        tracker = _tracker(args, job.run_dir)
        found = feed(job.run_dir, tracker, job.end_watch() if args.follow else lambda: True)
    if args.json:
        run_dir = str(job.run_dir.path)
        print_json({"run_dir": run_dir, "where": tracker.where, "steps": found.steps, "changes": found.changes})
    else:
        print(f"{found.steps} steps and {found.changes} changes: {tracker.where}")
    return 0


def _tracker(args: argparse.Namespace, run_dir: RunDir) -> Tracker:
    from liver_slurm.app.trackers import TensorBoard, WeightsAndBiases, tensorboard_folder

    if args.kind == "tensorboard":
        return TensorBoard(tensorboard_folder(run_dir, args.to))
    return WeightsAndBiases(run_dir, args.project, args.entity, args.offline)
