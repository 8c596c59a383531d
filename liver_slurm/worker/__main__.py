"""``python -m liver_slurm.worker RUN_DIR --role live|standby [--name NAME | --names PREFIX]``: what srun starts."""

from __future__ import annotations

import argparse
from pathlib import Path

from liver_slurm.worker.bootstrap import main, task_name


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m liver_slurm.worker")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--role", choices=("live", "standby"), required=True)
    parser.add_argument("--name", help="unique in the run")
    parser.add_argument("--names", metavar="PREFIX", help="PREFIX-N, with the Slurm task's number; default: the role")
    return parser.parse_args()


if __name__ == "__main__":
    options = _arguments()
    main(options.run_dir, options.role, options.name or task_name(options.role, options.names))
