"""``python -m liver_slurm.demo``, which is ``make demo``: heeds Ctrl-C before it imports anything that takes time."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from liver_slurm.base import interrupts
from liver_slurm.base.errors import LiverError


def _demo() -> int:
    parser = argparse.ArgumentParser(prog="liver_slurm.demo", description="An elastic run on a cluster of its own.")
    parser.add_argument("--runs", metavar="FOLDER", type=Path, help="keep the run directories there, to look into")
    kept = parser.parse_args().runs
    from liver_slurm.demo.story import main

    try:
        return main(None if kept is None else kept.absolute())
    except LiverError as error:
        print(f"liver-slurm: error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    interrupts.run_command(_demo)
