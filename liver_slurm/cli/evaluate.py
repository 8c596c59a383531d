"""``liver-slurm evaluate``: the validation loss of checkpoints."""

from __future__ import annotations

import argparse
from dataclasses import replace

from liver_slurm.base.errors import BadInput
from liver_slurm.cli.common import Subparsers, add_json, add_overrides, complete, new_parser, print_json, print_table

DESCRIPTION = """\
Take the loss of validation data of a run's newest checkpoint, or of all that it keeps, or of one. It needs no Slurm: a
process a rank on this machine, in any layout that the model can have. The samples are those of the run's validations,
so the losses are as well; the run may go on meanwhile."""
EXAMPLES = {
    "evaluate 1234": "the newest checkpoint of a run",
    "evaluate runs/gpt-1/checkpoints/step-00000500": "one of them",
    "evaluate 1234 --all --layout tp2pp1dp1": "all of them, on two processes",
    "evaluate 1234 --set 'validation.paths=[\"other.txt\"]' --set validation.samples=1000": "with other data",
}


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``evaluate`` to the commands."""
    parser = new_parser(
        subparsers,
        "evaluate",
        DESCRIPTION,
        EXAMPLES,
        files={"RUN/checkpoints/": "what is evaluated; nothing in RUN is changed"},
        see_also=("checkpoint", "run"),
    )
    complete(
        parser.add_argument(
            "run_or_checkpoint",
            metavar="RUN|CHECKPOINT",
            help="Slurm job id, run name, run directory, or the folder of a checkpoint",
        ),
        "runs",
    )
    parser.add_argument("--all", action="store_true", help="every checkpoint of the run that is whole")
    parser.add_argument("--ema", action="store_true", help="of the moving average of the weights, see train.ema_decay")
    parser.add_argument("--layout", default="tp1pp1dp1", help="a process a rank (default: tp1pp1dp1)")
    add_overrides(parser)
    add_json(parser, 'print [{"step", "loss", "perplexity", "tokens", "samples", "seconds", "checkpoint"}, …]')


def run(args: argparse.Namespace) -> int:
    """Evaluate, and print a line for each checkpoint."""
    from liver_slurm.app.evaluation import evaluate, find_checkpoints
    from liver_slurm.config import own_loop
    from liver_slurm.config.load import load_job
    from liver_slurm.parallel.layout import Layout
    from liver_slurm.policy import engine

    run_dir, checkpoints = find_checkpoints(args.run_or_checkpoint, args.all, "evaluate")
    config, layout = load_job(run_dir.job_file, args.overrides), Layout.parse(args.layout)
    own_loop.refuse(config, "evaluate")
    # The run's own list says what it changes to; any other layout of the model will do here.
    anything = replace(config, elastic=replace(config.elastic, layouts="auto", max_workers=None))
    if reason := engine.why_impossible(layout, anything):
        raise BadInput(f"--layout {layout}: {reason}")
    found = evaluate(config, checkpoints, layout, args.ema)
    if args.json:
        names = ("step", "loss", "perplexity", "tokens", "samples", "seconds")
        documents = [{name: getattr(one, name) for name in names} for one in found]
        print_json([one | {"checkpoint": str(path)} for one, path in zip(documents, checkpoints, strict=True)])
    else:
        print_table(
            [
                [one.step, f"{one.loss:.6f}", f"{one.perplexity:.4f}", f"{one.tokens:,}", f"{one.seconds:.1f} s"]
                for one in found
            ],
            ["step", "loss", "perplexity", "tokens", "took"],
        )
    return 0
