"""The text format of monitoring: families of figures as OpenMetrics, or as Prometheus had them before. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
Form = Literal["openmetrics", "prometheus"]
Kind = Literal["gauge", "counter", "info"]
Labels = Mapping[str, str]


@dataclass(frozen=True)
class Family:
    """One figure with all its labels."""

    name: str
    """Without the suffix ``_total`` of a counter."""
    kind: Kind
    text: str
    """What it is."""
    samples: tuple[tuple[Labels, float], ...]

    @property
    def exported(self) -> str:
        """The name of its samples, which is what a query asks for."""
        suffix = {"gauge": "", "counter": "_total", "info": "_info"}[self.kind]
        return self.name + suffix


def exposition(families: Iterable[Family], form: Form = "openmetrics") -> str:
    """Write families down; those without samples are left out.

    Args:
        form: ``prometheus`` is the older format, which node_exporter reads: there a family has the name of its samples,
            and there is no end mark.
    """
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        openmetrics = form == "openmetrics"
        name = family.name if openmetrics else family.exported
        kind = "gauge" if family.kind == "info" and not openmetrics else family.kind
        lines += [f"# HELP {name} {_escaped(family.text, openmetrics)}", f"# TYPE {name} {kind}"]
        lines += [f"{family.exported}{_labels(labels)} {_number(value)}" for labels, value in family.samples]
    if form == "openmetrics":
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    inner = ",".join(f'{name}="{_escaped(value, quotes=True)}"' for name, value in labels.items())
    return f"{{{inner}}}" if inner else ""


def _escaped(text: str, quotes: bool) -> str:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return escaped.replace('"', '\\"') if quotes else escaped


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
