"""``make bench-gpu``: the benchmarks that need cards, one after the other, into one document and one table.

``python -m liver_slurm.bench.on_cards [--quick] [--folder FOLDER] [PART…]``. Each part is written as soon as it is
measured, beside those that an earlier call has left in the folder, so that a machine may be lent for less than all of
them take.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liver_slurm.base import interrupts
from liver_slurm.base.errors import BadInput, LiverError
from liver_slurm.base.files import replace_file

if TYPE_CHECKING:
    from liver_slurm.bench.train import Case

Part = tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], str]]
"""What measures a part, and what makes its table."""
NAME = "bench-gpu"


def parts(quick: bool, cards: int) -> dict[str, Part]:
    """Return everything that is measured where there are so many cards.

    ``quick``: the smallest cases, on any machine.
    """
    from liver_slurm.bench import machine, reconfigure, train, transfer

    if quick:
        return {
            "train": (partial(train.run, True), train.table),
            "transfer": (partial(transfer.run, True), transfer.table),
            "reconfigure": (partial(reconfigure.run, True), reconfigure.table),
        }
    cases = [case for case in train.cases(False, cards, machine.has_fp8()) if _wanted(case)]
    changes = {
        f"{pair.one}-{pair.other}": (partial(reconfigure.measure, [pair]), reconfigure.table)
        for pair in reconfigure.card_pairs(cards)
    }
    return {
        "train": (partial(train.measure, cases), train.table),
        "transfer": (partial(transfer.run, False), transfer.table),
        **changes,
    }


def _wanted(case: Case) -> bool:
    """Return whether a case is measured: pipelines are left out, as their bubble is known and time is short."""
    return case.layout.pp == 1


def measure(todo: dict[str, Part], file: Path) -> dict[str, Any]:
    """Measure these parts and write each into the file; a part that fails is written down, and the others go on.

    Returns:
        the document, with what the file had before.
    """
    document: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"bench": "gpu", "parts": {}}
    for name, (run, table) in todo.items():
        print(f"=== {name}", file=sys.stderr)
        begun = time.monotonic()
        try:
            found = run()
            found["table"] = table(found)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other parts are worth measuring; it is reported
            found = {"failed": f"{type(error).__name__}: {error}"}
        document["parts"][name] = {**found, "seconds": time.monotonic() - begun}
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(document, indent=1, ensure_ascii=False).encode())
    return document


def text(document: dict[str, Any]) -> str:
    """Return the whole document for people."""
    sections = [
        f"{name}, {part['seconds']:.0f} s\n\n{part.get('table') or 'failed: ' + part['failed']}\n"
        for name, part in document["parts"].items()
    ]
    return "\n".join(sections)


def main(arguments: list[str]) -> int:
    """Measure what the command line names; 1: a part failed.

    Raises:
        BadInput: there is no such part here.
    """
    from liver_slurm.bench import machine

    parser = argparse.ArgumentParser(prog=NAME, description="Measure training, transfers and changes of layout.")
    parser.add_argument("part", metavar="PART", nargs="*", help="default: all")
    parser.add_argument("--quick", action="store_true", help="the smallest case of each part")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="of both files; default: build")
    args = parser.parse_args(arguments)
    there = parts(args.quick, machine.count_gpus())
    if unknown := [name for name in args.part if name not in there]:
        raise BadInput(f"{NAME}: {unknown[0]} is no part here; allowed: {', '.join(there)}")
    document = measure({name: there[name] for name in args.part or there}, args.folder / f"{NAME}.json")
    table = text(document)
    (args.folder / f"{NAME}.txt").write_text(table)
    print(table)
    return 1 if any(map(_failed, document["parts"].values())) else 0


def _failed(part: dict[str, Any]) -> bool:
    return "failed" in part or any("failed" in case for case in part["cases"])


def _command() -> int:
    try:
        return main(sys.argv[1:])
    except LiverError as error:
        print(f"liver-slurm: error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    interrupts.run_command(_command)
