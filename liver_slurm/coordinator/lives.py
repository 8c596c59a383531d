"""Moved to :mod:`liver_slurm.policy.survival`; kept for one release, for policies of other packages."""

from __future__ import annotations

import warnings

from liver_slurm.policy.survival import *  # noqa: F403

warnings.warn(f"{__name__} has moved to liver_slurm.policy.survival", DeprecationWarning, stacklevel=2)
