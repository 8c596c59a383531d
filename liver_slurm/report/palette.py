"""Colours: those of Okabe and Ito, which people with any colour vision can tell apart, and greys for light and dark.

Figures are drawn with stand-ins for the greys. In a page they become CSS variables, which follow the reader's choice of
light or dark; in a picture they become the light ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from liver_slurm.observability.ledger.causes import Cause

BLUE, SKY, GREEN, YELLOW = "#0072b2", "#56b4e9", "#009e73", "#e8c91c"
ORANGE, VERMILLION, PINK, GREY = "#e69f00", "#d55e00", "#cc79a7", "#9aa3ad"

GROW, SHRINK, RESHAPE = GREEN, VERMILLION, PINK


@dataclass(frozen=True)
class Kind:
    """Causes that have one colour in the picture of workers over time."""

    name: str
    colour: str
    causes: tuple[Cause, ...]


KINDS = (
    Kind("training", BLUE, (Cause.STEP, Cause.DATA, Cause.BETWEEN, Cause.IN_FLIGHT)),
    Kind("reconfiguration", VERMILLION, (Cause.PAUSE, Cause.FIRST_STEP, Cause.IN_VAIN)),
    Kind("joining", SKY, (Cause.JOINING,)),
    Kind("starting", YELLOW, (Cause.START, Cause.FIRST_WORLD, Cause.STANDBY_START)),
    Kind("idle", GREY, (Cause.IDLE,)),
    Kind("checkpoint, validation", PINK, (Cause.CHECKPOINT, Cause.VALIDATION)),
    Kind("lost work, recovery", ORANGE, (Cause.WASTED, Cause.RECOVERY)),
    Kind("queue", "#cfd5db", (Cause.QUEUE, Cause.REQUEUE)),
    Kind("leaving", "#6b5b95", (Cause.LEAVING, Cause.ENDING)),
)
KIND_OF = {cause: kind for kind in KINDS for cause in kind.causes}


@dataclass(frozen=True)
class Theme:
    """Colours of a figure that are others in the dark."""

    ink: str
    muted: str
    grid: str
    paper: str
    area: str
    """Fill of the world's size."""
    line: str
    """Curves."""


LIGHT = Theme("#1a1f24", "#57616b", "#dde2e7", "#ffffff", "#b9d9ec", BLUE)
DARK = Theme("#e8ecf0", "#a3adb7", "#39424b", "#14181c", "#17435d", "#4aa8e8")
STAND_INS = Theme("#010203", "#010204", "#010205", "#010206", "#010207", "#010208")


def with_variables(svg: str) -> str:
    """Put CSS variables in the place of the stand-ins."""
    for name, stand_in in vars(STAND_INS).items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return svg


def css() -> str:
    """Write the variables for both."""

    def block(theme: Theme) -> str:
        return "; ".join(f"--{name}: {value}" for name, value in vars(theme).items())

    return (
        f":root {{ color-scheme: light dark; {block(LIGHT)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {block(DARK)} }} }}"
    )
