"""``bench advisor``: the advisor's estimators and rules on designs whose truth is known. Needs the extra ``advisor``.

Missing outcomes: long-term effects where decisions drop out, by the estimators of arXiv 2504.19527 and others, with
right and with wrong models; with ``--covariates FILE`` also on those of a file in the manner of IHDP, which is not
shipped. Elsewhere: values and rules for a domain of which only covariates are known, by those of arXiv 2501.08067. Toy
partition: its goodput if a learned rule decides every offer, with and without the gate.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from liver_slurm.base.errors import BadInput
from liver_slurm.bench import part_tables


def run(quick: bool, covariates: str = "") -> dict[str, Any]:
    """Compare on all designs; ``quick``: fewer repetitions of each.

    Raises:
        BadInput: scikit-learn is not installed, or the file of covariates is not one.
    """
    missing = [name for name in ("sklearn", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(f"bench advisor: {', '.join(missing)} not installed; pip install 'liver-slurm[advisor]'")
    from liver_slurm.bench import advisor_missing, advisor_shift

    repetitions = 5 if quick else 50
    cases = advisor_missing.simulated(repetitions, networks=0 if quick else 8)
    if covariates:
        cases += advisor_missing.on_covariates(Path(covariates), repetitions)
    cases += advisor_shift.rewards(repetitions)
    cases += advisor_shift.rules(repetitions if quick else 40)
    cases += advisor_shift.partitions(2 if quick else 20)
    return {"bench": "advisor", "repetitions": repetitions, "cases": cases}


def table(document: dict[str, Any]) -> str:
    """Show a table of each part."""
    return part_tables(document["cases"])
