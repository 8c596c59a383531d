"""``liver-slurm``, and ``python -m liver_slurm``: heeds Ctrl-C before it imports anything that takes time."""

from __future__ import annotations

from typing import NoReturn

from liver_slurm.base import interrupts


def main() -> NoReturn:
    """Run the command line and exit."""
    interrupts.run_command(_command)


def _command() -> int:
    from liver_slurm.cli.main import main as command

    return command()


if __name__ == "__main__":
    main()
