"""Names of all figures that a run can export: a contract with dashboards."""

from __future__ import annotations

from liver_slurm.observability.figures import families


def exported_names() -> set[str]:
    """The names of all samples that there can be."""
    return {family.exported for family in families()}
