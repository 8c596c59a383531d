"""submitit's job environment: what a job knows about itself, and what becomes of its signals."""

from __future__ import annotations

from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.slurm.slurm import SlurmJobEnvironment


class LiverJobEnvironment(SlurmJobEnvironment):  # type: ignore[misc]
    """Slurm's variables, and hands off the signals."""

    def _handle_signals(self, paths: JobPaths, submission: DelayedSubmission) -> None:
        """Install nothing: a notice does what Python or the function itself makes of it, and nothing is requeued.

        submitit calls this right before the function, and would swallow SIGTERM and SIGCONT from then on.
        """
