"""Moved to :mod:`liver_slurm.policy.cost_model`; kept for one release, for policies of other packages."""

from __future__ import annotations

import warnings

from liver_slurm.policy.cost_model import *  # noqa: F403

warnings.warn(f"{__name__} has moved to liver_slurm.policy.cost_model", DeprecationWarning, stacklevel=2)
