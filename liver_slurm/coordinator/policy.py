"""Moved to :mod:`liver_slurm.policy.engine`; kept for one release, for policies of other packages."""

from __future__ import annotations

import warnings

from liver_slurm.policy.api import *  # noqa: F403
from liver_slurm.policy.engine import *  # noqa: F403

warnings.warn(f"{__name__} has moved to liver_slurm.policy.api", DeprecationWarning, stacklevel=2)
