"""Writing a report's files."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from liver_slurm.advisor.model import Model
from liver_slurm.base.errors import BadInput
from liver_slurm.base.files import replace_file
from liver_slurm.observability.ledger.document import make_ledger
from liver_slurm.observability.ledger.facts import read_facts
from liver_slurm.observability.ledger.step_table import read_steps
from liver_slurm.report.model import Report, make_report
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.validation import read_validations

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_WIDTH = 1160
"""Of the PNG, in points of its own: twice as many pixels."""


def read_report(run_dir: RunDir, undisturbed: RunDir | None = None, now: float | None = None) -> Report:
    """Make the report of a run from its files.

    Args:
        undisturbed: run of the same job that was never resized, whose loss is drawn beside this one's.
        now: seconds since the epoch; None: the system's clock.

    Raises:
        BadInput: it is no run directory.
    """
    ledger = make_ledger(read_facts(run_dir, time.time() if now is None else now))
    expected = read_steps(undisturbed.metrics) if undisturbed is not None else None
    return make_report(ledger, expected, list(read_validations(run_dir.validations)))


def write_html(report: Report, path: Path) -> None:
    """Write the page; raises BadInput where it cannot be written, as all of these do."""
    from liver_slurm.report.page import render

    _write(path, render(report).encode())


def write_png(report: Report, path: Path) -> None:
    """Write the first figure as a picture."""
    from liver_slurm.report.canvas import Style
    from liver_slurm.report.figures import picture
    from liver_slurm.report.palette import LIGHT

    write_picture(picture(report, Style(PICTURE_WIDTH, LIGHT)), path)


def write_advice_html(model: Model, told: Iterable[str], path: Path) -> None:
    """Write the page of an advisor's model; ``told``: what is to be said of it, line by line."""
    from liver_slurm.report.advice_page import render

    _write(path, render(model, told).encode())


def write_advice_png(model: Model, path: Path) -> None:
    """Write the figures of an advisor's model as a picture."""
    from liver_slurm.report.advice_figures import picture
    from liver_slurm.report.canvas import Style
    from liver_slurm.report.palette import LIGHT

    write_picture(picture(model, Style(PICTURE_WIDTH, LIGHT)), path)


def write_page(text: str, path: Path) -> None:
    """Write a page that is made elsewhere."""
    _write(path, text.encode())


def write_picture(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG with two pixels for each of its units."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=2 * figure.dpi, metadata={"Software": None})
    _write(path, stream.getvalue())


def write_trace(report: Report, path: Path) -> None:
    """Write the trace for Perfetto."""
    from liver_slurm.report.trace import make_trace

    _write(path, msgspec.json.encode(make_trace(report)))


def _write(path: Path, content: bytes) -> None:
    try:
        replace_file(path, content)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}; name another file") from None
