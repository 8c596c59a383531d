"""``liver-slurm import``: a model of others as the start of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from liver_slurm.base import interrupts
from liver_slurm.base.errors import BadInput, LiverError
from liver_slurm.cli.common import Subparsers, add_json, new_folder, new_parser, print_json

DESCRIPTION = """\
Make a checkpoint of a model that others have trained. A job whose train.start_from names it begins with its weights, in
any layout and precision, with fresh moments."""
HF = """\
Import a folder of a Hugging Face model, as config.json and safetensors: Llama 2 and 3, Mistral, Qwen2, Qwen3, GPT-2,
Mixtral, Qwen2-MoE or Qwen3-MoE.
What cannot be expressed is refused, and so is each key of config.json that nothing is known of."""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``import`` to the commands."""
    example = "import hf models/llama --to imports/llama"
    parser = new_parser(subparsers, "import", DESCRIPTION, (example,), see_also=("run", "export"))
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    files = {"DIR/": "the checkpoint, config.json, and the tokenizer's files; it must not be there yet"}
    hugging_face = new_parser(kinds, "hf", HF, (example,), files=files)
    hugging_face.add_argument("model_dir", metavar="MODEL_DIR", help="folder with config.json and *.safetensors")
    hugging_face.add_argument("--to", metavar="DIR", required=True, help="folder to make")
    add_json(hugging_face, 'print {"path", "dtype", "parameters", "tensors", "longest_sequence", "files"}')


def run(args: argparse.Namespace) -> int:
    """Import, and say what a job file needs."""
    to, folder = new_folder("--to", args.to), Path(args.model_dir)
    if to.name.startswith("step-"):
        raise BadInput(f"--to {args.to}: step-N is a run's checkpoint; allowed: another name")
    from liver_slurm.engine.hf.importing import import_model
    from liver_slurm.rundir.trust import deny_writing_to_others

    deny_writing_to_others()  # a run does not start from what others can write
    with interrupts.orderly():
        try:
            done = import_model(folder, to)
        except OSError as error:
            raise LiverError(f"{to} cannot be written: {error.strerror or error}") from None
    if args.json:
        print_json(
            {
                "path": str(done.path),
                "dtype": done.dtype,
                "parameters": done.parameters,
                "tensors": done.tensors,
                "longest_sequence": done.window,
                "files": done.files,
            }
        )
        return 0
    print(f"{done.parameters:,} parameters in {done.dtype}: {done.path}")
    if done.window is not None:
        print(f"its sliding windows change nothing for a train.seq_length of up to {done.window}")
    print(f'\nin a job file:\n\n[model]\nfrom_hf = "{done.path}"\n\n[train]\nstart_from = "{done.path}"')
    return 0
