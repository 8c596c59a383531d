"""``liver-slurm import``: a model of others as the start of a run."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from liver_slurm.base import interrupts
from liver_slurm.base.errors import BadInput, LiverError
from liver_slurm.cli.common import Subparsers, add_json, new_folder, new_parser, positive, print_json
from liver_slurm.config.problem import shown
from liver_slurm.config.schema import ModelSection

DESCRIPTION = """\
Make a checkpoint of a model that others have trained. A job whose train.start_from names it begins with its weights, in
any layout and precision, with fresh moments."""
HF = """\
Import a folder of a Hugging Face model, as config.json and safetensors: Llama 2 and 3, Mistral, Qwen2, Qwen3, GPT-2,
Mixtral, Qwen2-MoE or Qwen3-MoE.
What cannot be expressed is refused, and so is each key of config.json that nothing is known of."""
MEGATRON = """\
Import a GPT that Megatron-LM has saved with --ckpt-format torch_dist, in whatever layout. Which model it is its
arguments in the checkpoint say, or a job file. These files are pickles, which can be programs: they are read as plain
data, and one that names anything else is refused."""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``import`` to the commands."""
    hf, megatron = "import hf models/llama --to imports/llama", "import megatron checkpoints/gpt --to imports/gpt"
    parser = new_parser(subparsers, "import", DESCRIPTION, (hf, megatron), see_also=("run", "export"))
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    files = {"DIR/": "the checkpoint, config.json, and the tokenizer's files; it must not be there yet"}
    hugging_face = new_parser(kinds, "hf", HF, (hf,), files=files)
    hugging_face.add_argument("model_dir", metavar="MODEL_DIR", help="folder with config.json and *.safetensors")
    says = 'print {"path", "dtype", "parameters", "tensors", "longest_sequence", "files"}'
    _add_target(hugging_face, says)
    files = {"DIR/": "the checkpoint; it must not be there yet"}
    examples = {megatron: "", f"{megatron} --optimizer": "with its moments, to go on with"}
    megatron_lm = new_parser(kinds, "megatron", MEGATRON, examples, files=files)
    what = "what Megatron-LM's --save named, or the folder of an iteration in it"
    megatron_lm.add_argument("checkpoint_dir", metavar="CHECKPOINT_DIR", help=what)
    help_ = "job file whose section [model] says which model it is (default: the arguments in the checkpoint)"
    megatron_lm.add_argument("--job", metavar="JOB.toml", help=help_)
    help_ = "tokens of the model, without padding (default: the job's, or all rows of the embedding)"
    megatron_lm.add_argument("--vocab-size", type=positive, metavar="N", help=help_)
    help_ = "take fp32 weights and moments of Adam too, where Megatron-LM saved them for any layout"
    megatron_lm.add_argument("--optimizer", action="store_true", help=help_)
    _add_target(megatron_lm, 'print {"path", "dtype", "parameters", "tensors", "steps", "model"}')


def _add_target(parser: argparse.ArgumentParser, says: str) -> None:
    parser.add_argument("--to", metavar="DIR", required=True, help="folder to make")
    add_json(parser, says)


def run(args: argparse.Namespace) -> int:
    """Import, and say what a job file needs."""
    to = new_folder("--to", args.to)
    if to.name.startswith("step-"):
        raise BadInput(f"--to {args.to}: step-N is a run's checkpoint; allowed: another name")
    from liver_slurm.rundir.trust import deny_writing_to_others

    deny_writing_to_others()  # a run does not start from what others can write
    with interrupts.orderly():
        try:
            document, text = _import_megatron(args, to) if args.kind == "megatron" else _import_hf(args, to)
        except OSError as error:
            raise LiverError(f"{to} cannot be written: {error.strerror or error}") from None
    if args.json:
        print_json(document)
    else:
        print(text)
    return 0


def _import_hf(args: argparse.Namespace, to: Path) -> tuple[dict[str, object], str]:
    """Import; returns the JSON document, and what people are told."""
    from liver_slurm.engine.hf.importing import import_model

    done = import_model(Path(args.model_dir), to)
    document = {
        "path": str(done.path),
        "dtype": done.dtype,
        "parameters": done.parameters,
        "tensors": done.tensors,
        "longest_sequence": done.window,
        "files": done.files,
    }
    lines = [f"{done.parameters:,} parameters in {done.dtype}: {done.path}"]
    if done.window is not None:
        lines.append(f"its sliding windows change nothing for a train.seq_length of up to {done.window}")
    job = f'[model]\nfrom_hf = "{done.path}"\n\n[train]\nstart_from = "{done.path}"'
    return document, "\n".join([*lines, "", "in a job file:", "", job])


def _import_megatron(args: argparse.Namespace, to: Path) -> tuple[dict[str, object], str]:
    """Import; returns the JSON document, and what people are told."""
    from liver_slurm.config.load import load_job
    from liver_slurm.engine.torch_dist.importing import import_model

    job = load_job(args.job, files=False) if args.job is not None else None
    done = import_model(Path(args.checkpoint_dir), to, job, args.vocab_size, args.optimizer)
    model, usual = asdict(done.model), asdict(ModelSection())
    document = {
        "path": str(done.path),
        "dtype": done.dtype,
        "parameters": done.parameters,
        "tensors": done.tensors,
        "steps": done.steps,
        "model": model,
    }
    moments = "" if done.steps is None else f", and moments after {done.steps} steps"
    lines = [f"{done.parameters:,} parameters in {done.dtype}{moments}: {done.path}", "", "in a job file:", ""]
    if job is None:
        written = [f"{key} = {shown(value)}" for key, value in model.items() if value != usual[key]]
        lines += ["[model]", *written, ""]
    lines += ["[train]", f'start_from = "{done.path}"']
    if done.steps is not None:
        lines.append('start_optimizer = "loaded"')
    return document, "\n".join(lines)
