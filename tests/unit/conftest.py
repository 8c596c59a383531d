"""Properties are checked, not timed: these tests share their cores with clusters."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
