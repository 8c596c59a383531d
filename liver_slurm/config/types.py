"""Types of job file values: what is allowed, how text becomes a value. The schema names them, the decoder reads them.

Each is ``Annotated[TYPE, Rule]``; to other programs (msgspec, mypy) it is just ``TYPE``.
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
class Rule:
    """What a value must be besides its type.

    ``parse`` gets the value and returns the one to keep, or raises ValueError. With ``raw`` it gets what the file
    holds, before the type is looked at: "16MiB" for a number of bytes.
    """

    allowed: str
    parse: Callable[[Any], Any]
    raw: bool = False


def _limits(allowed: str, holds: Callable[[Any], bool]) -> Rule:
    def parse(value: Any) -> Any:
        if not holds(value):
            raise ValueError(allowed)
        return value

    return Rule(allowed, parse)


_BYTE_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("ib", 1024), ("b", 1000), ("", 1024))
}


def parse_bytes(value: object) -> int:
    """Bytes from 16777216, "16MiB", "0.5GB" (powers of 1000) or "16M" (of 1024, as Slurm and dd have it).

    Raises:
        ValueError: not a size, or below 1.
    """
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)\s*([a-z]*)", str(value).strip().lower(), re.ASCII)
    if isinstance(value, bool) or match is None or match[2] not in _BYTE_UNITS:
        raise ValueError("not a size")
    size = int(float(match[1]) * _BYTE_UNITS[match[2]]) if "." in match[1] else int(match[1]) * _BYTE_UNITS[match[2]]
    if not 1 <= size <= MAX_INT:
        raise ValueError("not a size")
    return size


_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(value: object) -> float:
    """Seconds from 90, 0.5, "90s", "15m", "500ms", "1h", "2d", "15:00" or "1:30:00".

    Raises:
        ValueError: not a duration, or not above zero.
    """
    text = str(value).strip().lower()
    if isinstance(value, bool):
        raise ValueError("not a duration")
    if isinstance(value, (int, float)):
        seconds = float(value) if abs(value) <= MAX_INT else 0.0
    elif match := re.fullmatch(r"(?:(\d{1,6}):)?(\d{1,6}):([0-5]\d)", text, re.ASCII):
        seconds = float(int(match[1] or 0) * 3600 + int(match[2]) * 60 + int(match[3]))
    elif match := re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?)\s*(ms|s|m|min|h|d|)", text, re.ASCII):
        seconds = float(match[1]) * _SECONDS[match[2]]
    else:
        raise ValueError("not a duration")
    if not 0 < seconds <= MAX_INT:
        raise ValueError("not a duration")
    return seconds


_SLURM_TIME = re.compile(
    r"\d{1,8}|\d{1,8}:[0-5]?\d|\d{1,6}:[0-5]?\d:[0-5]?\d|\d{1,5}-\d{1,2}(:[0-5]?\d){0,2}",
    re.ASCII,
)


def parse_slurm_time(value: object) -> str:
    """Slurm's own notation of a finite time limit, kept as it is; a bare number is minutes, as with ``--time``.

    Raises:
        ValueError: not of that form, or zero.
    """
    text = str(value)
    if isinstance(value, bool) or _SLURM_TIME.fullmatch(text) is None or not re.search(r"[1-9]", text):
        raise ValueError("not a Slurm time")
    return text


def _matching(allowed: str, pattern: str, raw: bool = False) -> Rule:
    compiled = re.compile(pattern, re.ASCII)

    def parse(value: object) -> str:
        if isinstance(value, bool) or compiled.fullmatch(str(value)) is None:
            raise ValueError(allowed)
        return str(value)

    return Rule(allowed, parse, raw)


def expand_path(text: str) -> str:
    """An absolute path; ``~``, environment variables and ``$PYTHON_STDLIB`` (the interpreter's library) are expanded.

    Raises:
        ValueError: empty, holds a NUL, or names a variable that is not set.
    """
    known = {"PYTHON_STDLIB": sysconfig.get_path("stdlib"), **os.environ}

    def replace(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in known:
            raise ValueError(f"${name} is not set")
        return known[name]

    if not text.strip() or "\0" in text:
        raise ValueError("not a path")
    return os.path.abspath(os.path.expanduser(re.sub(r"\$(?:(\w+)|\{(\w+)\})", replace, text)))


def _parse_layout(text: str) -> str:
    layout = Layout.parse(text)
    if layout.size > MAX_INT:
        raise ValueError("too large")
    return str(layout)


_LAYOUT = Rule('a layout such as "tp2pp1dp2"', _parse_layout)
_PATH = Rule("a path", expand_path)

Count = Annotated[int, _limits(">= 1", lambda value: 1 <= value <= MAX_INT)]
Natural = Annotated[int, _limits(">= 0", lambda value: 0 <= value <= MAX_INT)]
OneOrNone = Annotated[int, _limits("0 or 1", lambda value: value in (0, 1))]
Positive = Annotated[float, _limits("> 0", lambda value: value > 0)]
NonNegative = Annotated[float, _limits(">= 0", lambda value: value >= 0)]
Share = Annotated[float, _limits("> 0 and <= 1", lambda value: 0 < value <= 1)]
Decay = Annotated[float, _limits(">= 0 and < 1", lambda value: 0 <= value < 1)]
Bytes = Annotated[int, Rule('a size >= 1 such as 16777216, "16MiB" or "0.5GB"', parse_bytes, raw=True)]
"""A size in bytes; a job file may write it as 16777216, "16MiB" or "0.5GB"."""
Seconds = Annotated[float, Rule('a duration > 0 such as 90, "90s", "15m" or "1:30:00"', parse_duration, raw=True)]
"""A duration in seconds; a job file may write it as 90, "90s", "15m" or "1:30:00"."""
SlurmTime = Annotated[str, Rule('a Slurm time such as "30" (minutes), "4:00:00" or "1-12"', parse_slurm_time, raw=True)]
SlurmMemory = Annotated[
    str, _matching('memory a node as Slurm has it, such as "4000M" or "16G"', r"\d+[KMGT]?", raw=True)
]
SlurmSignal = Annotated[
    str, _matching('a signal and lead time such as "USR2@60"', r"([BR]{1,2}:)?(SIG)?([A-Z][A-Z0-9]*|[1-9]\d?)(@\d+)?")
]
RunName = Annotated[
    str, _matching("up to 100 letters, digits, '.', '_' and '-', a letter first", r"[A-Za-z_][\w.-]{0,99}")
]
_DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
FunctionName = Annotated[str, _matching('a function as "package.module:function"', f"{_DOTTED}:{_DOTTED}")]
LayoutText = Annotated[str, _LAYOUT]
PathText = Annotated[str, _PATH]
TokenizerText = Annotated[
    str,
    Rule('"byte", or the path of a tokenizer.json', lambda text: text if text == "byte" else expand_path(text)),
]
