"""``liver-slurm data``: make training data from text."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from liver_slurm.cli.common import Subparsers, add_json, new_parser, not_negative, print_json

DESCRIPTION = "Make training data from text: megatron's indexed datasets, PREFIX.bin and PREFIX.idx."
PREPARE = """\
Tokenize text into an indexed dataset. FILES are text files (a document each), .jsonl files (a document a line, its
"text"), and folders (their text and source files, in sorted order; hidden and third-party folders and binary files are
passed over). A job file's data.paths takes the prefix; it takes text, too, and then a run prepares it by itself."""
EXAMPLES = (
    "data prepare corpus/ --output data/corpus",
    "data prepare books.jsonl --output data/books --tokenizer llama/tokenizer.json",
)


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
    tokenizer = load_tokenizer(args.tokenizer)
    made = prepare(paths, Path(args.output).absolute(), tokenizer, args.eod)
    if args.json:
        print_json(dataclasses.asdict(made))
    else:
        print(f"{made.documents} documents, {made.tokens} tokens, vocabulary {made.vocab_size}: {made.prefix}.bin")
        print(f'\nIn a job file:\n\n  [data]\n  paths = ["{made.prefix}"]\n  tokenizer = "{args.tokenizer}"')
        if args.eod is not None:
            print(f"  eod = {args.eod}")
    return 0
