"""The real coordinator with standby jobs in which a shell stands for the workers: ``scale_coordinator.py RUN_DIR``.

The workers of these jobs are in :mod:`scale_workers`, all in one process: a thousand real ones would not fit here.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from liver_slurm.base.errors import ClusterError
from liver_slurm.coordinator import __main__ as coordinator
from liver_slurm.scheduler.slurm import standby
from liver_slurm.scheduler.slurm.submitit_launcher import LaunchRequest

SCRIPT = Path(__file__).with_name("scale_standby.sh")


def launch_shells(request: LaunchRequest) -> list[str]:
    """Submit standby jobs as the request says; only what they run is another thing."""
    told = request.parameters
    command = [
        "sbatch", "--parsable", f"--job-name={told['job_name']}", f"--comment={told['comment']}",
        f"--partition={told['partition']}", f"--time={told['additional_parameters']['time']}",
        f"--nodes={told['nodes']}", f"--ntasks-per-node={told['ntasks_per_node']}", "--no-requeue",
        # The batch shell alone is told of a preemption, where the cluster sends the job's own signal.
        "--signal=B:USR2@60", "--output=/dev/null", str(SCRIPT), f"{request.argument}/told",
    ]  # fmt: skip
    if begin := told["additional_parameters"].get("begin"):
        command.insert(1, f"--begin={begin}")
    found = []
    for _ in range(request.count):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        if done.returncode != 0:
            raise ClusterError(done.stderr.strip())
        found.append(done.stdout.strip())
    return found


if __name__ == "__main__":
    standby.launch = launch_shells  # type: ignore[assignment]
    sys.exit(coordinator.main(sys.argv[1:]))
