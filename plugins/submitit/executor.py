"""submitit's executor for Slurm, so that a job is told of a notice instead of being requeued behind its back."""

from __future__ import annotations

import copy
import os
import shlex
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.core.core import PicklingExecutor
from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.slurm.slurm import SlurmExecutor

from liver_slurm.plugins.submitit.job import LiverJob
from liver_slurm.scheduler.slurm.command import option_variables

SUBMIT_TIMEOUT = 60
"""Seconds that sbatch has; submitit itself would wait for ever."""


class LiverExecutor(SlurmExecutor):  # type: ignore[misc]
    """``submitit.AutoExecutor(folder, cluster="liver")``. Parameters are those of submitit's Slurm executor.

    Where they differ: ``signal_delay_s`` has no default (SIGUSR2 ends a function that does not expect it, so it only
    comes to those who ask for it), the job is never requeued, and each task has the CPUs that the job asked for.
    """

    job_class = LiverJob

    def __init__(self, folder: Path | str, max_pickle_size_gb: float = 1.0, python: str | None = None) -> None:
        """``python``: command that starts Python on the nodes, as a shell reads it; default: this interpreter."""
        super().__init__(folder, max_num_timeout=0, max_pickle_size_gb=max_pickle_size_gb, python=python)

    @classmethod
    def affinity(cls) -> int:
        """Never chosen unasked: submitit's own ``slurm`` has 2."""
        return 1 if super().affinity() > 0 else -1

    def _internal_process_submissions(self, delayed_submissions: Sequence[DelayedSubmission]) -> list[Any]:
        """Submit one job for one submission, one job array for several.

        submitit's own array has its Slurm executor and job written into it.
        """
        if len(delayed_submissions) == 1:
            jobs: list[Any] = PicklingExecutor._internal_process_submissions(self, delayed_submissions)
            return jobs
        folder = JobPaths.get_first_id_independent_folder(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        pickles = []
        for submission in delayed_submissions:
            submission.set_timeout(self.parameters.get("time", 5), self.max_num_timeout)
            pickles.append(folder / f"{uuid.uuid4().hex}.pkl")
            submission.dump(pickles[-1])
        array = copy.copy(self)
        array.parameters = {**self.parameters, "map_count": len(pickles)}
        first = array._submit_command(self._submitit_command_str)
        tasks = list(range(first.num_tasks))
        jobs = [LiverJob(self.folder, f"{first.job_id}_{index}", tasks) for index in range(len(pickles))]
        for job, path in zip(jobs, pickles, strict=True):
            job.paths.move_temporary_file(path, "submitted_pickle")
        return jobs

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} -u -m liver_slurm.plugins.submitit {shlex.quote(str(self.folder))}"

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        changed = copy.copy(self)
        changed.parameters = completed(self.parameters)
        text: str = SlurmExecutor._make_submission_file_text(changed, command, uid)
        if "signal_delay_s" in self.parameters or "signal" in changed.parameters["additional_parameters"]:
            return text
        # submitit always asks for SIGUSR2 before the end.
        return "\n".join(line for line in text.split("\n") if not line.startswith("#SBATCH --signal="))

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        # From inside a job as if from outside of it: sbatch would take some of that job's variables for options, and
        # the new job's srun others for its own.
        unset = [option for name in option_variables(os.environ, said=()) for option in ("-u", name)]
        return ["timeout", str(SUBMIT_TIMEOUT), "env", *unset, "sbatch", str(submission_file_path)]


def completed(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return ``parameters`` with what every job of ours has; what was given explicitly comes after it and wins."""
    cpus = parameters.get("cpus_per_task")
    # From Slurm 22.05 on srun does not take the number from the job.
    srun_args = [f"--cpus-per-task={cpus}"] if cpus else []
    return {
        **parameters,
        "srun_args": [*srun_args, *(parameters.get("srun_args") or ())],
        "additional_parameters": {"no-requeue": True, **(parameters.get("additional_parameters") or {})},
    }
