"""What a command that takes minutes says of itself on the way."""

from __future__ import annotations

import time


class Narrator:
    """Says what happens, with the seconds since the beginning."""

    def __init__(self, begun: float) -> None:
        """``begun``: as of ``time.monotonic()``."""
        self._begun = begun

    def __call__(self, text: str) -> None:
        """Say it."""
        print(f"{time.monotonic() - self._begun:6.1f} s  {text}", flush=True)
