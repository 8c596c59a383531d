"""Where the device-seconds of a simulated run went. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass
class _Stretch:
    """Steps of one world, one after the other."""

    first: float
    """Steps that were completed before them."""
    last: float
    step_s: float
    size: int
    """Devices of the world."""

    @property
    def seconds(self) -> float:
        return (self.last - self.first) * self.step_s


@dataclass
class Account:
    """Time of one run's worlds, as it goes by; what the run was offered and had in no world is the rest."""

    paused_s: float = 0.0
    """Time in which training stood still."""
    lost_s: float = 0.0
    """Time in steps that do not count: they were not completed, or were trained again."""
    paused_device_s: float = 0.0
    lost_device_s: float = 0.0
    _stretches: list[_Stretch] = field(default_factory=list)

    def trained(self, first: float, last: float, step_s: float, size: int) -> None:
        """Note that a world of ``size`` devices has gone from ``first`` completed steps to ``last``."""
        if last <= first:
            return
        latest = self._stretches[-1] if self._stretches else None
        if latest is not None and (latest.last, latest.step_s, latest.size) == (first, step_s, size):
            latest.last = last
        else:
            self._stretches.append(_Stretch(first, last, step_s, size))

    def stood(self, seconds: float, size: int) -> None:
        """Note that a world has stood still."""
        self.paused_s += seconds
        self.paused_device_s += seconds * size

    def lost(self, seconds: float, size: int) -> None:
        """Note that a world was in a step that was not completed."""
        self.lost_s += seconds
        self.lost_device_s += seconds * size

    def back_to(self, step: float) -> None:
        """Note that the run goes back to ``step``: what was trained after it is lost."""
        while self._stretches and self._stretches[-1].last > step:
            latest = self._stretches[-1]
            kept = max(latest.first, step)
            self.lost((latest.last - kept) * latest.step_s, latest.size)
            latest.last = kept
            if latest.last <= latest.first:
                self._stretches.pop()

    def times(self, devices: int) -> Account:
        """Return the account of a run in which each device stands for so many."""
        stretches = [replace(one, size=one.size * devices) for one in self._stretches]
        paused, lost = self.paused_device_s * devices, self.lost_device_s * devices
        return Account(self.paused_s, self.lost_s, paused, lost, stretches)

    @property
    def steps(self) -> float:
        """Steps that count; at the end of a trace the one under way counts with the part that is done."""
        return sum(one.last - one.first for one in self._stretches)

    @property
    def productive_s(self) -> float:
        """Time in steps that count."""
        return sum(one.seconds for one in self._stretches)

    @property
    def productive_device_s(self) -> float:
        """Device-seconds in steps that count."""
        return sum(one.seconds * one.size for one in self._stretches)

    @property
    def wall_s(self) -> float:
        """All time that is accounted for."""
        return self.productive_s + self.paused_s + self.lost_s

    @property
    def device_s(self) -> float:
        """All device-seconds in worlds."""
        return self.productive_device_s + self.paused_device_s + self.lost_device_s
