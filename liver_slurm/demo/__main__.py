"""``python -m liver_slurm.demo``, which is ``make demo``: heeds Ctrl-C before it imports anything that takes time."""

from __future__ import annotations

import sys

from liver_slurm.base import interrupts
from liver_slurm.base.errors import LiverError


def _demo() -> int:
    from liver_slurm.demo.story import main

    try:
        return main()
    except LiverError as error:
        print(f"liver-slurm: error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    interrupts.run_command(_demo)
