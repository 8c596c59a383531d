"""``liver-slurm check``: check a job file as ``submit`` does, without a cluster."""

from __future__ import annotations

import argparse

from liver_slurm.cli.common import JOB_FILES, Subparsers, add_job_file, add_json, counted, new_parser, print_json

DESCRIPTION = """\
Check a job file without a cluster: all that submit checks before it asks Slurm, the policy, data, tokenizer, functions
of your own and the checkpoint to start from among it. Every problem is reported at once; nothing is made or submitted.
Whether this cluster can run it, doctor says."""
EXAMPLES = {"check job.toml": "", "check job.toml --set train.steps=500": ""}


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``check`` to the commands."""
    parser = new_parser(
        subparsers, "check", DESCRIPTION, EXAMPLES, files=JOB_FILES, see_also=("submit", "doctor", "plan", "config")
    )
    add_job_file(parser)
    fields = '{"name", "steps", "workers", "standby_workers", "memory_of_a_rank": {layout: bytes}}'
    add_json(parser, f"print {fields}, and nothing if there is a problem")


def run(args: argparse.Namespace) -> int:
    """Check, and print one line if nothing is wrong."""
    from liver_slurm.app.api import check_config
    from liver_slurm.config.layouts import feasible_layouts, live_workers
    from liver_slurm.config.load import load_job
    from liver_slurm.config.memory import rank_memory
    from liver_slurm.config.units import most_workers
    from liver_slurm.parallel.layout import Layout

    config = load_job(args.job_file, args.overrides)
    check_config(config)
    own, more = live_workers(config.live), most_workers(config.standby)
    initial = config.elastic.initial
    begun = [Layout.parse(initial)] if initial is not None else feasible_layouts(config, own)[:1]
    if not any(component.gpus_per_task for component in config.live.component):
        begun = []  # hosts' memory is Slurm's business
    memory = {str(layout): needed for layout in begun if (needed := rank_memory(config, layout)) is not None}
    if args.json:
        print_json(
            {
                "name": config.job.name,
                "steps": config.train.steps,
                "workers": own,
                "standby_workers": more,
                "memory_of_a_rank": {layout: needed.total for layout, needed in memory.items()},
            }
        )
        return 0
    print(
        f"ok: {config.job.name}, {counted(own, 'guaranteed worker')} and up to {more} more, {config.train.steps} steps"
    )
    for layout, needed in memory.items():
        print(f"a rank of {layout} needs about {needed}")
    return 0
