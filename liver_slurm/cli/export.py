"""``liver-slurm export``: a run for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liver_slurm.base import interrupts
from liver_slurm.base.errors import BadInput, LiverError
from liver_slurm.cli.common import Subparsers, add_job, add_json, complete, new_parser, print_json

if TYPE_CHECKING:
    from liver_slurm.app.trackers import Tracker
    from liver_slurm.config.schema import JobConfig
    from liver_slurm.rundir.paths import RunDir

DESCRIPTION = """\
Hand a run's steps and changes on to TensorBoard or to Weights & Biases, or its model to Hugging Face's libraries or to
Megatron-LM. They are read from the run's files: training knows nothing of it, and it works for runs that are over as
for those that go on."""
TENSORBOARD = """\
Write event files of TensorBoard: loss, gradient norm, learning rate, speed and world of each step at the time when it
was trained, and what reconfigurations cost. Needs the extra [tensorboard]."""
WANDB = """\
Log a run to Weights & Biases: the figures of each step and the job file's keys, but for those of [notify]. Each export
is a run of its own there. Needs the extra [wandb]."""
HF = """\
Write the weights of a run's newest checkpoint, or of one, as a folder that transformers and others load: safetensors,
config.json, and the tokenizer. Weights are taken from the fp32 masters, whatever layout wrote them."""


MEGATRON = """\
Write a run's newest checkpoint, or one, as Megatron-LM itself saves it with --ckpt-format torch_dist, for any layout
there. Weights alone are a release, with which Megatron-LM begins at iteration 0; with --optimizer it goes on. It prints
which options Megatron-LM needs."""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``export`` to the commands."""
    parser = new_parser(
        subparsers,
        "export",
        DESCRIPTION,
        (
            "export tensorboard 1234",
            "export wandb 1234 --offline",
            "export hf 1234 --to models/mine",
            "export megatron 1234 --to checkpoints/mine",
        ),
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
    _add_hf(kinds)
    _add_megatron(kinds)


def _add_hf(kinds: Subparsers[argparse.ArgumentParser]) -> None:
    examples = {
        "export hf 1234 --to models/mine": "the newest checkpoint of a run",
        "export hf runs/gpt-1/checkpoints/step-00000500 --to models/mine --dtype bf16": "one of them",
    }
    parser = new_parser(kinds, "hf", HF, examples, files={"DIR/": "where the model goes; it must not be there yet"})
    _add_checkpoint(parser)
    like = "folder of the same model whose config.json and tokenizer are taken (default: the job's model.from_hf)"
    parser.add_argument("--like", metavar="MODEL_DIR", help=like)
    add_json(parser, 'print {"path", "checkpoint", "dtype", "parameters", "tensors", "files"}')


def _add_megatron(kinds: Subparsers[argparse.ArgumentParser]) -> None:
    examples = {
        "export megatron 1234 --to checkpoints/mine": "weights of the newest checkpoint of a run",
        "export megatron 1234 --to checkpoints/mine --optimizer": "and what Adam keeps, to go on with",
    }
    parser = new_parser(
        kinds, "megatron", MEGATRON, examples, files={"DIR/": "for --load there; it must not be there yet"}
    )
    _add_checkpoint(parser)
    help_ = "fp32 weights and moments of Adam too; for models without experts"
    parser.add_argument("--optimizer", action="store_true", help=help_)
    add_json(parser, 'print {"path", "checkpoint", "dtype", "parameters", "tensors", "iteration", "options"}')


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add what is exported, and as what."""
    what = "Slurm job id, run name, run directory, or the folder of a checkpoint"
    complete(parser.add_argument("run_or_checkpoint", metavar="RUN|CHECKPOINT", help=what), "runs")
    parser.add_argument("--to", metavar="DIR", required=True, help="folder to make")
    help_ = "precision of the weights (default: the job's train.precision)"
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help=help_)
    help_ = "the moving average of the weights in their place, see train.ema_decay"
    parser.add_argument("--ema", action="store_true", help=help_)


def run(args: argparse.Namespace) -> int:
    """Hand the run on."""
    if args.kind in ("hf", "megatron"):
        return _export_model(args)
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


def _export_model(args: argparse.Namespace) -> int:
    from liver_slurm.app.evaluation import find_checkpoints
    from liver_slurm.cli.common import new_folder
    from liver_slurm.config import own_loop
    from liver_slurm.config.load import read_job

    to = new_folder("--to", args.to)
    run_dir, (checkpoint,) = find_checkpoints(args.run_or_checkpoint, every=False, purpose="export")
    config = read_job(run_dir.job_file)
    own_loop.refuse(config, f"export {args.kind}")
    with interrupts.orderly():
        try:
            export = _export_hf if args.kind == "hf" else _export_megatron
            document, more = export(args, checkpoint, config, to)
        except OSError as error:
            raise LiverError(f"{to} cannot be written: {error.strerror or error}") from None
    if args.json:
        print_json(document)
    else:
        print(f"{document['parameters']:,} parameters in {document['dtype']} of {checkpoint}: {to}{more}")
    return 0


def _document(done: Any, checkpoint: Path, dtype: str) -> dict[str, object]:
    """Return what the JSON document says of any model that was exported."""
    counts = {"parameters": done.parameters, "tensors": done.tensors}
    return {"path": str(done.path), "checkpoint": str(checkpoint), "dtype": dtype, **counts}


def _export_hf(
    args: argparse.Namespace, checkpoint: Path, config: JobConfig, to: Path
) -> tuple[dict[str, object], str]:
    """Write the folder; returns the JSON document, and what else people are told."""
    from liver_slurm.engine.hf.exporting import export_model

    like = _like(args.like, config.model.from_hf)
    dtype = args.dtype or config.train.precision
    done = export_model(checkpoint, config, to, like, dtype, averages=args.ema)
    return _document(done, checkpoint, dtype) | {"files": [*done.weight_files, *done.files]}, ""


def _export_megatron(
    args: argparse.Namespace, checkpoint: Path, config: JobConfig, to: Path
) -> tuple[dict[str, object], str]:
    """Write the folder; returns the JSON document, and what else people are told."""
    from liver_slurm.config.megatron_args import options_to_add
    from liver_slurm.engine.torch_dist.exporting import export_model

    if args.ema and args.optimizer:
        raise BadInput("--ema has no place beside --optimizer: moments are those of the weights; allowed: one of them")
    dtype = args.dtype or config.train.precision
    done = export_model(checkpoint, config, to, dtype, averages=args.ema, optimizer=args.optimizer)
    options = f"--load {done.path} --use-checkpoint-args --ckpt-format torch_dist {options_to_add(done.args)}"
    document = _document(done, checkpoint, dtype) | {"iteration": done.iteration, "options": options}
    return document, f"\n\nfor Megatron-LM:\n\n{options}"


def _like(given: str | None, imported: str | None) -> Path | None:
    """Return the folder whose config.json is taken."""
    if given is not None:
        if not Path(given).is_dir():
            raise BadInput(f"--like {given}: no such folder")
        return Path(given)
    return Path(imported) if imported is not None and Path(imported).is_dir() else None
