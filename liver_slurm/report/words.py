"""How the report writes figures. Pure."""

from __future__ import annotations

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


def duration(seconds: float) -> str:
    """Write a duration so that it is read at a glance: ``104 ms``, ``3.5 s``, ``3 min 30 s``, ``2 h 05 min``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if round(seconds) < HOUR:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    if round(seconds / MINUTE) * MINUTE < 2 * DAY:
        hours, rest = divmod(round(seconds / MINUTE), 60)
        return f"{hours} h {rest:02d} min" if rest else f"{hours} h"
    days, rest = divmod(round(seconds / HOUR), 24)
    return f"{days} d {rest} h" if rest else f"{days} d"


def percent(ratio: float) -> str:
    """Write a ratio; close to 0 or 1 with as many digits as it takes not to say 0 or 100."""
    value = ratio * 100.0
    for digits in range(1, 15):
        text = f"{value:.{digits}f}"
        if float(text) not in (0.0, 100.0) or value in (0.0, 100.0):
            return f"{text} %"
    return f"{value:.0e} %"


def count(number: int, one: str, several: str = "") -> str:
    """Write a number of things: ``1 change``, ``3 changes``."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def times(number: int) -> str:
    """Write how often: ``once``, ``twice``, ``5 times``."""
    return {1: "once", 2: "twice"}.get(number, f"{number:,} times")


def unit_of(seconds: float) -> tuple[str, float]:
    """Choose the unit of a time axis of this length; returns its name and its seconds."""
    if seconds <= 5 * MINUTE:
        return "seconds", 1.0
    if seconds <= 3 * HOUR:
        return "minutes", MINUTE
    return ("hours", HOUR) if seconds <= 4 * DAY else ("days", DAY)
