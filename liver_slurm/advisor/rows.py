"""Tables of decisions on disk: JSON lines, a header and then one decision a line. Pure but for the files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from liver_slurm.base.errors import BadInput
from liver_slurm.base.files import replace_file

VERSION = 1
NOT_FOLLOWED = "not followed up"
"""Why nothing is seen of a decision whose policy states no chance: it is of use as covariates only."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line: what all rows have in common."""

    advisor_table: int = VERSION
    features_version: int
    windows_s: tuple[float, ...]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One decision on an offer, and what came of it."""

    decision: str
    run: str
    """Decisions of one run depend on each other; a run that was resumed counts as the one that it goes on with."""
    time: float
    """Seconds since the epoch."""
    policy: str
    partition: str = ""
    action: str
    """``take`` or ``leave``."""
    propensity: float | None
    """Chance that the policy gave the action; None: not known."""
    features: dict[str, float | None]
    gain_s: tuple[float | None, ...]
    """Gained by the end of each window; None: not seen, and then no later one is."""
    reason: str = ""
    """Why the first that is not seen is not; empty: all are."""


@dataclass(frozen=True)
class Rows:
    """A table of decisions."""

    header: Header
    rows: tuple[Row, ...]
    digests: tuple[str, ...] = ()
    """Of the files that it was read from."""
    doubled: int = 0
    """Decisions that were in it more than once."""

    @property
    def followed(self) -> tuple[Row, ...]:
        """Decisions of which something can be known."""
        return tuple(row for row in self.rows if row.reason != NOT_FOLLOWED)


def write_rows(path: Path, header: Header, rows: Iterable[Row]) -> None:
    """Write a table.

    Raises:
        BadInput: it cannot be written.
    """
    lines = [msgspec.json.encode(one) + b"\n" for one in (header, *rows)]
    try:
        replace_file(path, b"".join(lines))
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from error


def read_rows(paths: Sequence[Path]) -> Rows:
    """Read one table of several files; a decision that is in it twice counts once.

    Raises:
        BadInput: a file cannot be read or is no such table, or they do not fit each other.
    """
    found: dict[str, Row] = {}
    headers: list[Header] = []
    digests, count = [], 0
    for path in paths:
        header, rows, digest = _read(path)
        if headers and header != headers[0]:
            here, there = _described(header), _described(headers[0])
            raise BadInput(f"{path}: has {here}, but {paths[0]} has {there}; collect them together")
        headers.append(header)
        digests.append(digest)
        count += len(rows)
        found |= {row.decision: row for row in rows}
    return Rows(headers[0], tuple(found.values()), tuple(digests), count - len(found))


def _read(path: Path) -> tuple[Header, list[Row], str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from error
    first, *lines = content.splitlines() or [b""]
    try:
        header = msgspec.json.decode(first, type=Header)
    except (msgspec.ValidationError, msgspec.DecodeError):
        raise BadInput(f"{path}: is no table of decisions; `liver-slurm advisor collect` writes one") from None
    if header.advisor_table != VERSION:
        raise BadInput(f"{path}: is a table of version {header.advisor_table}, not {VERSION}; collect the runs again")
    rows = []
    for number, line in enumerate(lines, 2):
        try:
            row = msgspec.json.decode(line, type=Row)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise BadInput(f"{path}, line {number}: is no decision: {error}; collect the runs again") from None
        if fault := _fault(row, header):
            raise BadInput(f"{path}, line {number}: decision {row.decision}: {fault}; collect the runs again")
        rows.append(row)
    return header, rows, hashlib.sha256(content).hexdigest()


def _fault(row: Row, header: Header) -> str:
    seen = [gain is not None for gain in row.gain_s]
    if len(seen) != len(header.windows_s):
        return f"has {len(seen)} outcomes for {len(header.windows_s)} windows"
    if sorted(seen, reverse=True) != seen:
        return "a later outcome is seen though an earlier one is not"
    if row.action not in ("take", "leave"):
        return f"its action is {row.action!r}, neither take nor leave"
    if row.propensity is not None and not 0.0 <= row.propensity <= 1.0:
        return f"its propensity is {row.propensity:g}, which is no chance"
    return ""


def _described(header: Header) -> str:
    windows = ", ".join(f"{window:g} s" for window in header.windows_s)
    return f"features of version {header.features_version} and windows of {windows}"
