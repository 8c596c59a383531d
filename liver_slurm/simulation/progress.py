"""Training of one world in closed form: no step of it is simulated by itself. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable

from liver_slurm.simulation.account import Account

SLACK = 1e-6
"""Share of a step by which a time may miss a step's end; times have 16 digits."""


class Progress:
    """How far the live world has come; it stands at first.

    Each checkpoint in the background makes steps longer by ``stall_share``, which counts as time that training stands.
    """

    def __init__(self, account: Account, clock: Callable[[], float], stall_share: float) -> None:
        """``clock``: seconds."""
        self._account, self._clock, self._stall_share = account, clock, stall_share
        self._since = clock()
        self._step = 0
        self._step_s, self._size = 1.0, 0
        self._stands = True
        self._stop_at: int | None = None

    @property
    def step_s(self) -> float:
        """Seconds of a step, checkpoints in the background included."""
        return self._step_s * (1.0 + self._stall_share)

    @property
    def stands(self) -> bool:
        """Whether training stands still now."""
        return self._stands or self._waits()

    def completed(self) -> int:
        """Return the steps completed by now."""
        if self._stands:
            return self._step
        done = self._step + math.floor((self._clock() - self._since) / self.step_s + SLACK)
        return done if self._stop_at is None else min(done, self._stop_at)

    def begun(self) -> int:
        """Return the steps completed when the step under way began: a boundary must lie beyond them."""
        return self.completed() - 1 if self.stands else self.completed()

    def time_of(self, step: int) -> float:
        """Return when ``step`` steps will be completed, or were."""
        return self._since if self._stands else self._since + (step - self._step) * self.step_s

    def since_step(self) -> float:
        """Return the seconds since the last step was completed, or the world entered."""
        return self._clock() - self.time_of(self.completed())

    def stop_at(self, step: int) -> None:
        """Stand still when ``step`` steps are completed; they are not yet."""
        self._settle()
        self._stop_at = step

    def go_on(self) -> None:
        """Train on where training stands, or will stand."""
        self._settle()
        self._stop_at = None
        self._stands = False

    def stand(self) -> None:
        """Stand still from now on, at the end of a step."""
        self._settle()
        self._stands = True

    def breaks(self) -> None:
        """Break the world: the step under way is lost, and training stands."""
        self._settle()
        if not self._stands and not self._waits():
            done = self.completed()
            self._account.lost(max(0.0, self._clock() - self.time_of(done)), self._size)
        self._step, self._since = self.completed(), self._clock()
        self._stands, self._stop_at = True, None

    def enter(self, step: int, step_s: float, size: int) -> None:
        """Begin to train in a new world of ``size`` devices with ``step`` steps completed."""
        self._settle()
        if step < self._step:
            self._account.back_to(step)
        self._step, self._step_s, self._size = step, step_s, size
        self._since, self._stands, self._stop_at = self._clock(), False, None

    def finish(self) -> None:
        """End with the trace; the part of a step that is done counts."""
        self._settle()
        if not self._stands and not self._waits():
            seconds = self._clock() - self._since
            self._note(self._step, self._step + seconds / self.step_s)

    def _waits(self) -> bool:
        return self._stop_at is not None and self.completed() >= self._stop_at

    def _settle(self) -> None:
        """Note the time until now: whole steps, and standing."""
        now = self._clock()
        if self._stands:
            self._account.stood(now - self._since, self._size)
            self._since = now
            return
        done = self.completed()
        end = self.time_of(done)
        self._note(self._step, done)
        self._step, self._since = done, end
        if self._stop_at is not None and done >= self._stop_at:
            self._account.stood(now - end, self._size)
            self._since, self._stands = now, True

    def _note(self, first: float, last: float) -> None:
        self._account.trained(first, last, self._step_s, self._size)
        self._account.stood((last - first) * self._step_s * self._stall_share, self._size)
