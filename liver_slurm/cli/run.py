"""``liver-slurm run``: a run as plain processes of this machine, without Slurm."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from liver_slurm.base import interrupts
from liver_slurm.base.errors import BadInput, ExitCode, LiverError
from liver_slurm.cli.common import (
    JOB_FILES,
    RECONFIGURATION_HEADERS,
    RUN_FILES,
    Subparsers,
    add_job_file,
    add_json,
    job_file,
    new_parser,
    print_json,
    print_table,
    reconfiguration_rows,
)
from liver_slurm.config.layouts import feasible_layouts, live_workers
from liver_slurm.config.load import load_job, read_job
from liver_slurm.config.schema import JobConfig
from liver_slurm.observability.run_view import RunFiles
from liver_slurm.observability.summary import reconfiguration_table
from liver_slurm.parallel.layout import Layout
from liver_slurm.policy import engine
from liver_slurm.rundir.copies import not_copied
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run, find_run, record_run, resume_step
from liver_slurm.transfer import requirements

DESCRIPTION = """\
Run a job file without Slurm: the same coordinator and workers as plain processes of this machine. For a laptop, for
tests, and for one machine with GPUs (gpus_per_task = 1: each worker gets one)."""
EXAMPLES = (
    "run configs/gpt-tiny.toml",
    "run configs/gpt-tiny.toml --workers 2 --standbys 2 --resize 50:tp2pp1dp2 --resize 100:tp1pp1dp2",
)
MOST = 4096
"""More processes than one machine has any use for."""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``run`` to the commands."""
    parser = new_parser(
        subparsers,
        "run",
        DESCRIPTION,
        EXAMPLES,
        files={**JOB_FILES, **RUN_FILES},
        see_also=("submit", "status"),
    )
    add_job_file(parser, resumable=True)
    help_ = "guaranteed workers (default: those of the job's [[live.component]])"
    parser.add_argument("--workers", type=int, metavar="N", help=help_)
    parser.add_argument("--standbys", type=int, default=0, metavar="M", help="standby workers (default: 0)")
    parser.add_argument(
        "--resize",
        action="append",
        default=[],
        metavar="STEP:LAYOUT",
        help="change to a layout at exactly this step, as often as wanted, also at one step: --resize 50:tp2pp1dp2",
    )
    add_json(parser, 'print {"run_dir", "state", "steps", "final_loss", "reconfigurations"} at the end')


def run(args: argparse.Namespace) -> int:
    """Train until the run ends; the exit code says how it ended."""
    if not 0 <= args.standbys <= MOST:
        raise BadInput(f"--standbys: {args.standbys} is not allowed; allowed: 0 to {MOST}")
    resizes = sorted((parse_resize(text) for text in args.resize), key=lambda resize: resize[0])  # stable
    file = job_file(args)
    workers = args.workers
    if workers is None:
        workers = live_workers(load_job(file, args.overrides, files=False).live)
    if not 1 <= workers <= MOST:
        raise BadInput(f"--workers: {workers} is not allowed; allowed: 1 to {MOST}")
    config = load_job(file, args.overrides, workers=workers, standbys=args.standbys)
    check_workers(config, resizes, workers)
    engine.named(config.standby.policy)
    requirements.check(config.stream)
    resume = find_run(args.resume) if args.resume is not None else None
    start = resume_step(resume) if resume is not None else 0
    check_resizes(config, resizes, workers + args.standbys, start)
    from liver_slurm.app.local_run import run_local
    from liver_slurm.cli.progress import ProgressView

    with interrupts.orderly():
        run_dir = create_run(config, resume)
        config = read_job(run_dir.job_file)  # it says which samples the steps before have taken
        record_run(run_dir)
        print(f"run directory {run_dir.path}", file=sys.stderr)
        try:
            with ProgressView(run_dir, run_dir.path.name):
                code = run_local(config, run_dir, workers, args.standbys, resizes, resume.path if resume else None)
        except KeyboardInterrupt:
            _report(run_dir, args.json, ExitCode.CANCELLED)
            raise
    _report(run_dir, args.json, code)
    # The coordinator has further codes of its own, such as for a run that was cancelled.
    return code if code in (ExitCode.DONE, ExitCode.BAD_INPUT) else ExitCode.FAILED


def check_workers(config: JobConfig, resizes: Sequence[tuple[int, Layout]], workers: int) -> None:
    """Refuse workers that no layout could ever use.

    Raises:
        BadInput: there are some.
    """
    layouts = [*feasible_layouts(config, workers), *(layout for _, layout in resizes)]
    most = max((layout.size for layout in layouts), default=workers)
    if workers > most:
        raise BadInput(
            f"--workers: {workers} are more than any layout of this job uses; allowed: 1 to {most}, or larger "
            "elastic.layouts, elastic.max_workers or train.global_batch_size"
        )


def parse_resize(text: str) -> tuple[int, Layout]:
    """Read the step and the layout of ``50:tp2pp1dp2``.

    Raises:
        BadInput: not of that form.
    """
    step, colon, layout = text.partition(":")
    if not colon or not step.isdecimal():
        raise BadInput(f"--resize: {text!r} is not allowed; allowed: STEP:LAYOUT, such as 50:tp2pp1dp2")
    try:
        return int(step), Layout.parse(layout)
    except ValueError as error:
        raise BadInput(f"--resize: {error}") from None


def check_resizes(config: JobConfig, resizes: Sequence[tuple[int, Layout]], workers: int, start: int = 0) -> None:
    """Refuse resizes that the run could never carry out.

    Args:
        start: steps that are completed when the run starts.

    Raises:
        BadInput: a line for each of them.
    """
    problems = []
    for step, layout in resizes:
        if step >= config.train.steps:
            problems.append(f"--resize {step}:{layout}: the run has {config.train.steps} steps; allowed: a step before")
        if step <= start:
            problems.append(f"--resize {step}:{layout}: the run starts after step {start}; allowed: a step > {start}")
        if layout.size > workers:
            problems.append(
                f"--resize {step}:{layout}: needs {layout.size} workers; --workers and --standbys give {workers}"
            )
        if reason := engine.why_impossible(layout, config):
            problems.append(f"--resize {step}:{layout}: {reason}")
    if problems:
        raise BadInput("\n".join(problems))


def result_document(files: RunFiles) -> dict[str, Any]:
    """Make the document that ``run --json`` prints."""
    status = files.status()
    return {
        "run_dir": status.run_dir,
        "state": status.state,
        "steps": status.step,
        "final_loss": status.loss,
        "reconfigurations": reconfiguration_table(files.summary.reconfigurations),
        "reason": status.reason,
    }


def _report(run_dir: RunDir, as_json: bool, code: int) -> None:
    files = RunFiles(run_dir)
    files.refresh()
    if code in (ExitCode.FAILED, ExitCode.BAD_INPUT) and not files.over:
        error = BadInput if code == ExitCode.BAD_INPUT else LiverError
        raise error(f"the coordinator ended and said nothing of the run's end; see {run_dir.logs / 'coordinator.log'}")
    result = result_document(files)
    missing = not_copied(files.config, run_dir)
    if as_json:
        print_json(result)
        if missing:
            print(missing, file=sys.stderr)
        return
    loss = "no loss yet" if result["final_loss"] is None else f"loss {result['final_loss']:.4f}"
    print(
        f"{result['state']} after {result['steps']} steps, {loss}"
        + (f": {result['reason']}" if result["reason"] else "")
    )
    if result["reconfigurations"]:
        print_table(reconfiguration_rows(result["reconfigurations"]), RECONFIGURATION_HEADERS)
    if missing:
        print(missing)
