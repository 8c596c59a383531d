"""Checks of this machine and this cluster before a run: facts are gathered, and pure checks judge them.

``probe`` looks at one machine, here or on a node; ``gather`` collects what Slurm says and what probes saw into
:class:`~liver_slurm.doctor.facts.Facts`; ``cluster_checks`` and ``machine_checks`` turn those into findings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from liver_slurm.config.schema import JobConfig
    from liver_slurm.doctor.facts import Finding


def diagnose(config: JobConfig, wait: float | None) -> list[Finding]:
    """Gather the facts and judge them.

    Args:
        wait: seconds to wait for a free node of each partition; None: submit no jobs.
    """
    from liver_slurm.doctor.cluster_checks import cluster_findings
    from liver_slurm.doctor.gather import gather
    from liver_slurm.doctor.machine_checks import machine_findings

    facts = gather(config, wait)
    return [*cluster_findings(facts), *machine_findings(facts)]
