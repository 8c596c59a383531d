"""What srun starts: ``python -m liver_slurm.worker RUN_DIR --role ROLE [--name NAME | --names PREFIX] [--restart]``.

With ``--restart`` it starts a worker as a child, with ``--decided-codes``: only if that was told to leave is its exit
code 10, whatever the user's code does. With ``--last-word`` the child says why it failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from liver_slurm.base.errors import DECIDED
from liver_slurm.rundir.paths import RunDir
from liver_slurm.worker.bootstrap import main, task_name
from liver_slurm.worker.supervisor import supervise


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m liver_slurm.worker")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--role", choices=("live", "standby"), required=True)
    parser.add_argument("--name", help="unique in the run")
    parser.add_argument("--names", metavar="PREFIX", help="PREFIX-N, with the Slurm task's number; default: the role")
    parser.add_argument("--restart", action="store_true", help="start it again when it has died")
    parser.add_argument("--decided-codes", action="store_true", help="add 10 to the exit code if it was told to leave")
    parser.add_argument("--last-word", type=int, metavar="FD", help="file descriptor to say in why it failed")
    return parser.parse_args()


if __name__ == "__main__":
    options = _arguments()
    name = options.name or task_name(options.role, options.names)
    if options.restart:
        run_dir = RunDir(options.run_dir)
        sys.exit(supervise(run_dir, name, [str(run_dir.path), "--role", options.role]))
    main(options.run_dir, options.role, name, DECIDED if options.decided_codes else 0, options.last_word)
