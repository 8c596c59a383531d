"""A run that trains."""

from __future__ import annotations

import pytest
from coordinator_states import Run


@pytest.fixture
def run() -> Run:
    """Two guaranteed workers train in world 0."""
    one = Run()
    one.train("live-0", "live-1")
    return one
