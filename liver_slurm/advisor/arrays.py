"""Names of array types, and shapes that the advisor's functions share.

Letters in shapes: n rows of a table, p covariates, L actions, K stages.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[Any]
"""Names of groups: whole numbers or text."""
