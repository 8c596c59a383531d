"""``liver-slurm data``: make training data from text."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from pathlib import Path

from liver_slurm.base.errors import BadInput
from liver_slurm.cli.common import Subparsers, add_json, counted, new_parser, not_negative, print_json

DESCRIPTION = "Make training data from text: megatron's indexed datasets, PREFIX.bin and PREFIX.idx."
PREPARE = """\
Tokenize text into an indexed dataset. FILES are text files (a document each), .jsonl files (a document a line, its
"text"), and folders (their text and source files, in sorted order; hidden and third-party folders and binary files are
passed over). A job file's data.paths takes the prefix; it takes text, too, and then a run prepares it by itself."""
EXAMPLES = (
    "data prepare corpus/ --output data/corpus",
    "data prepare books.jsonl --output data/books --tokenizer llama/tokenizer.json",
)
_ARGUMENTS = {"paths": "FILES", "tokenizer": "--tokenizer"}


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add ``data`` and its verb to the commands."""
    parser = new_parser(subparsers, "data", DESCRIPTION, EXAMPLES)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    prepare = new_parser(verbs, "prepare", PREPARE, EXAMPLES)
    prepare.add_argument("files", nargs="+", metavar="FILES", help="text files, .jsonl files, folders")
    prepare.add_argument("--output", required=True, metavar="PREFIX", help="PREFIX.bin and PREFIX.idx are written")
    prepare.add_argument(
        "--tokenizer", default="byte", metavar="T", help="byte, or a Hugging Face tokenizer.json (default: byte)"
    )
    prepare.add_argument(
        "--eod", type=not_negative, metavar="ID", help="token that ends a document (default: the tokenizer's)"
    )
    add_json(prepare, 'print {"prefix", "documents", "tokens", "vocab_size"}')


def run(args: argparse.Namespace) -> int:
    """Tokenize the files into an indexed dataset."""
    from liver_slurm.engine.data.prepare import prepare
    from liver_slurm.engine.data.tokenizers import load_tokenizer

    paths = [Path(text).absolute() for text in args.files]
    prefix = _new_prefix(args.output)
    try:
        tokenizer = load_tokenizer(args.tokenizer)
        if args.eod is not None and args.eod >= tokenizer.vocab_size:
            raise BadInput(f"--eod: {args.eod} is no token; allowed: 0 to {tokenizer.vocab_size - 1}")
        made = prepare(paths, prefix, tokenizer, args.eod)
    except BadInput as error:  # the keys are those of a job file, in which a run finds the same
        raise BadInput(
            re.sub(r"^data\.(paths|tokenizer): ", lambda key: f"{_ARGUMENTS[key[1]]}: ", str(error))
        ) from None
    if args.json:
        print_json(dataclasses.asdict(made))
    else:
        what = f"{counted(made.documents, 'document')}, {made.tokens} tokens, vocabulary {made.vocab_size}"
        print(f"{what}: {made.prefix}.bin")
        print(f'\nIn a job file:\n\n  [data]\n  paths = ["{made.prefix}"]\n  tokenizer = "{args.tokenizer}"')
        if args.eod is not None:
            print(f"  eod = {args.eod}")
    return 0


def _new_prefix(text: str) -> Path:
    """Return the prefix to write, of which no file must be there yet.

    Raises:
        BadInput: one is, or the text is no prefix.
    """
    path = Path(text).absolute()
    there = [file for suffix in (".bin", ".idx") if os.path.lexists(file := f"{path}{suffix}")]
    if there:
        raise BadInput(f"--output {text}: {there[0]} is there already; allowed: a prefix of which nothing is")
    if not path.name or not text.strip() or text.endswith("/"):
        raise BadInput(f"--output {text!r}: not a prefix; allowed: a path such as data/corpus")
    return path
