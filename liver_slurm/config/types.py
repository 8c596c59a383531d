"""Types of job file values: what is allowed, and how text becomes a value. The schema uses them.

Each is ``Annotated[TYPE, Allowed]``; to other programs (msgspec, mypy) it is just ``TYPE``. Nothing here imports
pydantic, as every worker reads the schema.
"""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from liver_slurm.parallel.layout import Layout

MAX_INT = 2**63 - 1
"""Larger numbers fit neither msgpack nor torch."""


@dataclass(frozen=True)
class Allowed:
    """What a value may be, for pydantic and for people."""

    text: str
    parse: Callable[[Any], Any] | None = None
    """Gets what the file holds and returns the value, or raises ValueError, with a reason where the text above does
    not say it all."""
    limits: tuple[tuple[str, float], ...] = ()
    """Limits of a number: pairs of ``gt``, ``ge``, ``lt`` or ``le`` and the limit."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Have pydantic check the type, without taking 1 or "yes" for true, and the limits; ``parse`` goes before."""
        from pydantic_core.core_schema import no_info_before_validator_function

        schema = {**handler(source), **dict(self.limits), "strict": True}
        return schema if self.parse is None else no_info_before_validator_function(self.parse, schema)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Add the text, which :mod:`liver_slurm.config.keys` reads."""
        return {**handler(schema), "allowed": self.text}


_BYTE_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("ib", 1024), ("b", 1000), ("", 1024))
}


def parse_bytes(value: object) -> int:
    """Read bytes from 16777216, "16MiB", "0.5GB" (powers of 1000) or "16M" (of 1024, as Slurm and dd have it).

    Raises:
        ValueError: not a size, or below 1.
    """
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)\s*([a-z]*)", str(value).strip().lower(), re.ASCII)
    if isinstance(value, bool) or match is None or match[2] not in _BYTE_UNITS:
        raise ValueError
    size = int(float(match[1]) * _BYTE_UNITS[match[2]]) if "." in match[1] else int(match[1]) * _BYTE_UNITS[match[2]]
    if not 1 <= size <= MAX_INT:
        raise ValueError
    return size


_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(value: object) -> float:
    """Read seconds from 90, 0.5, "90s", "15m", "500ms", "1h", "2d", "15:00" or "1:30:00".

    Raises:
        ValueError: not a duration, or not above zero.
    """
    text = str(value).strip().lower()
    if isinstance(value, bool):
        raise ValueError
    if isinstance(value, (int, float)):
        seconds = float(value) if abs(value) <= MAX_INT else 0.0
    elif match := re.fullmatch(r"(?:(\d{1,6}):)?(\d{1,6}):([0-5]\d)", text, re.ASCII):
        seconds = float(int(match[1] or 0) * 3600 + int(match[2]) * 60 + int(match[3]))
    elif match := re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?)\s*(ms|s|m|min|h|d|)", text, re.ASCII):
        seconds = float(match[1]) * _SECONDS[match[2]]
    else:
        raise ValueError
    if not 0 < seconds <= MAX_INT:
        raise ValueError
    return seconds


_SLURM_TIME = re.compile(
    r"\d{1,8}|\d{1,8}:[0-5]?\d|\d{1,6}:[0-5]?\d:[0-5]?\d|\d{1,5}-\d{1,2}(:[0-5]?\d){0,2}",
    re.ASCII,
)


def parse_slurm_time(value: object) -> str:
    """Check a finite time limit in Slurm's notation and keep it; a bare number is minutes, as with ``--time``.

    Raises:
        ValueError: not of that form, or zero.
    """
    text = str(value)
    if isinstance(value, bool) or _SLURM_TIME.fullmatch(text) is None or not re.search(r"[1-9]", text):
        raise ValueError
    return text


def _matching(text: str, pattern: str, *, numbers: bool = False) -> Allowed:
    compiled = re.compile(pattern, re.ASCII)
    kinds = (str, int) if numbers else (str,)

    def parse(value: object) -> str:
        if not isinstance(value, kinds) or isinstance(value, bool) or compiled.fullmatch(str(value)) is None:
            raise ValueError
        return str(value)

    return Allowed(text, parse)


def expand_path(text: object) -> str:
    """Make a path absolute, with ``~``, environment variables and ``$PYTHON_STDLIB`` (Python's library) expanded.

    Raises:
        ValueError: no text, or an empty one; it names a variable that is not set; the working directory is gone.
    """
    known = {"PYTHON_STDLIB": sysconfig.get_path("stdlib"), **os.environ}

    def replace(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in known:
            raise ValueError(f"${name} is not set")
        return known[name]

    if not isinstance(text, str) or not text.strip() or not is_text(text):
        raise ValueError
    try:
        return os.path.abspath(os.path.expanduser(re.sub(r"\$(?:(\w+)|\{(\w+)\})", replace, text)))
    except FileNotFoundError:
        raise ValueError("the working directory is gone") from None


def _parse_layout(text: object) -> str:
    try:
        layout = Layout.parse(str(text))
    except ValueError:
        raise ValueError from None
    if layout.size > MAX_INT:
        raise ValueError
    return str(layout)


def is_text(value: str) -> bool:
    """Tell whether a string can be written to a file: no NUL, no half of a surrogate pair (a byte of an argument)."""
    return re.search("[\0\ud800-\udfff]", value) is None


def _parse_text(value: object) -> str:
    if not isinstance(value, str) or not is_text(value):
        raise ValueError
    return value


def _parse_url(value: object) -> str:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(_parse_text(value))
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        raise ValueError from None
    if not known or re.search(r"\s", str(value)):
        raise ValueError
    return str(value)


def _number(text: str, **limits: float) -> Allowed:
    return Allowed(text, limits=tuple(limits.items()))


Flag = Annotated[bool, Allowed("true or false")]
Count = Annotated[int, _number("a whole number >= 1", ge=1, le=MAX_INT)]
Natural = Annotated[int, _number("a whole number >= 0", ge=0, le=MAX_INT)]
OneOrNone = Annotated[int, _number("a whole number 0 or 1", ge=0, le=1)]
Port = Annotated[int, _number("a whole number from 0 to 65535", ge=0, le=65535)]
Positive = Annotated[float, _number("a number > 0", gt=0)]
NonNegative = Annotated[float, _number("a number >= 0", ge=0)]
Share = Annotated[float, _number("a number > 0 and <= 1", gt=0, le=1)]
Decay = Annotated[float, _number("a number >= 0 and < 1", ge=0, lt=1)]
SIZE = Allowed('a size >= 1 such as 16777216, "16MiB" or "0.5GB"', parse_bytes)
Bytes = Annotated[int, SIZE]
"""A size in bytes; a job file may write it as 16777216, "16MiB" or "0.5GB"."""
Seconds = Annotated[float, Allowed('a duration > 0 such as 90, "90s", "15m" or "1:30:00"', parse_duration)]
"""A duration in seconds; a job file may write it as 90, "90s", "15m" or "1:30:00"."""
SlurmTime = Annotated[str, Allowed('a Slurm time such as "30" (minutes), "4:00:00" or "1-12"', parse_slurm_time)]
SlurmMemory = Annotated[
    str, _matching('memory a node as Slurm has it, such as "4000M" or "16G"', r"\d+[KMGT]?", numbers=True)
]
SlurmSignal = Annotated[
    str, _matching('a signal and lead time such as "USR2@60"', r"([BR]{1,2}:)?(SIG)?([A-Z][A-Z0-9]*|[1-9]\d?)(@\d+)?")
]
RunName = Annotated[
    str, _matching("up to 100 letters, digits, '.', '_' and '-', a letter first", r"[A-Za-z_][\w.-]{0,99}")
]
_DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
FunctionName = Annotated[str, _matching('a function as "package.module:function"', f"{_DOTTED}:{_DOTTED}")]
LayoutText = Annotated[str, Allowed('a layout such as "tp2pp1dp2"', _parse_layout)]
PathText = Annotated[str, Allowed("a path", expand_path)]
TokenizerText = Annotated[
    str,
    Allowed('"byte", or the path of a tokenizer.json', lambda text: text if text == "byte" else expand_path(text)),
]
Text = Annotated[str, Allowed("text", _parse_text)]
WebUrl = Annotated[str, Allowed("a URL that begins with http:// or https://", _parse_url)]
