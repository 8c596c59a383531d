"""Looks for the functions that a job names before it runs, without importing anybody's module.

A job finds modules as whoever submits it does, in PYTHONPATH and the working directory, unless it makes an environment
of its own: then what is not here may be there, and only the run can tell.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Iterator

from liver_slurm.base.sources import find_module, may_have, names_of, source_of
from liver_slurm.config.problem import Problem
from liver_slurm.config.schema import LiveSection

log = logging.getLogger(__name__)
_OTHERS = ("--container", "--get-user-env")
"""Options of sbatch after which a job may find other modules than whoever submits it."""


def own_environment(live: LiveSection) -> str | None:
    """Name the key by which a job may find other modules than are found here; None: it finds the same ones."""
    if live.setup:
        return "live.setup"
    if live.python is not None and os.path.realpath(live.python) != os.path.realpath(sys.executable):
        return "live.python"
    return "live.sbatch" if any(option.startswith(_OTHERS) for option in live.sbatch) else None


def function_problems(key: str, name: str | None, live: LiveSection) -> Iterator[Problem]:
    """Find a function ``package.module:function`` that the job's workers would not find."""
    if name is None or (reason := _why_missing(name)) is None:
        return
    if (other := own_environment(live)) is not None:
        log.warning(
            '%s: "%s" %s; it is looked for again when the run starts, as %s may say where', key, name, reason, other
        )
        return
    allowed = "a function that PYTHONPATH or the working directory has; where only the nodes do, live.setup says how"
    yield Problem(key, f'"{name}" {reason}; allowed: {allowed}')


def _why_missing(name: str) -> str | None:
    """Say why there is no such function here; None: there is one, or only importing its module would tell."""
    module, _, path = name.partition(":")
    spec = find_module(module, first="")
    if spec is None:
        return None if may_have(module, first="") else f"is not found: there is no module {module}"
    source = source_of(spec)
    if source is None:
        return None
    try:
        known = names_of(source)
    except (SyntaxError, ValueError) as error:
        return f"cannot be imported: {spec.origin}: {' '.join(str(error).split())}"
    function = path.partition(".")[0]
    if known is None or function in known or find_module(f"{module}.{function}", first="") is not None:
        return None
    near = difflib.get_close_matches(function, known, n=1)
    where = spec.origin or f"module {module}"
    return f"is not found: {where} has no {function}" + (f"; the nearest is {near[0]}" if near else "")
