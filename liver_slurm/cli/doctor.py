"""``liver-slurm doctor``: check what a run needs of this machine and this cluster."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from liver_slurm.base.errors import BadInput
from liver_slurm.cli.common import ENDED, JOB_FILES, Subparsers, add_job_file, add_json, new_parser, print_json

if TYPE_CHECKING:
    from liver_slurm.doctor.facts import Finding

DESCRIPTION = """\
Check whether this machine and this cluster have what a run needs: Slurm and its preemption settings, partitions,
clocks, the folder of runs, ports between nodes, network interface, GPUs, versions of packages, munge. Each line is ok,
warn or fail, and says what to do.

It looks at one node of each partition that the job uses, through a job of one task that lasts seconds, with the job's
own Python and setup lines. A full cluster is not waited for longer than --wait. Without Slurm the rest is checked."""
EXAMPLES = {
    "doctor": "what the site file says",
    "doctor job.toml": "what this job needs",
    "doctor job.toml --no-jobs": "only this machine and Slurm's settings",
}


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``doctor`` to the commands."""
    parser = new_parser(
        subparsers,
        "doctor",
        DESCRIPTION,
        EXAMPLES,
        exit_codes=f"0 nothing failed, 1 something failed, 2 bad input, {ENDED}",
        files=JOB_FILES,
        see_also=("submit", "cluster"),
    )
    add_job_file(parser, default="the site file alone")
    parser.add_argument(
        "--wait", type=float, default=15.0, metavar="SECONDS", help="for a free node of each partition (default: 15)"
    )
    parser.add_argument("--no-jobs", action="store_true", help="submit nothing: look at no node")
    add_json(parser, 'print {"ok", "findings": [{"check", "status", "text", "advice"}]}')


def run(args: argparse.Namespace) -> int:
    """Check and print the findings; the exit code is 1 if something failed."""
    from liver_slurm.config.load import load_job, load_site
    from liver_slurm.doctor import diagnose

    if args.wait <= 0:
        raise BadInput(f"--wait: {args.wait:g} is not allowed; allowed: seconds > 0")
    if args.overrides and args.job_file is None:
        raise BadInput("--set changes a job file; name one")
    config = load_site() if args.job_file is None else load_job(args.job_file, args.overrides)
    findings = diagnose(config, None if args.no_jobs else args.wait)
    failed = any(finding.status == "fail" for finding in findings)
    if args.json:
        print_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings)
    return int(failed)


def _print(findings: Sequence[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        print(f"{finding.status:<4}  {finding.check:<{width}}  {finding.text}")
        if finding.advice:
            print(f"{'':<{width + 8}}→ {finding.advice}")
    counts = {status: sum(finding.status == status for finding in findings) for status in ("ok", "warn", "fail")}
    print(f"\n{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed")
