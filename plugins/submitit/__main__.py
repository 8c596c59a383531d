"""``python -m liver_slurm.plugins.submitit FOLDER``: what the tasks of our executor's jobs run."""

from __future__ import annotations

import os

from submitit.core.plugins import get_job_environments
from submitit.core.submission import submitit_main

from liver_slurm.plugins.submitit.environment import LiverJobEnvironment


def main() -> None:
    """Run submitit's own task in our environment, whether or not entry points are installed where the task runs."""
    name = LiverJobEnvironment.name()
    # submitit's batch script names its own environment, and one that is not installed it would not find.
    os.environ["SUBMITIT_EXECUTOR"] = name
    get_job_environments().setdefault(name, LiverJobEnvironment())
    submitit_main()


if __name__ == "__main__":
    main()
