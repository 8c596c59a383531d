"""Users' own models and data: functions that a job file names as ``package.module:function``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from liver_slurm.base.errors import BadInput


def load_function(name: str) -> Callable[..., Any]:
    """Import the function that ``package.module:function`` names; the working directory counts as a place to look.

    Raises:
        BadInput: not of that form, no such module or function, or importing the module fails.
    """
    module_name, colon, path = name.partition(":")
    if not colon or not module_name or not path:
        raise BadInput(f"{name!r} does not name a function; write package.module:function")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        whose = "" if error.name and module_name.startswith(error.name) else f" that {module_name} imports"
        raise BadInput(f"{name}: there is no module {error.name!r}{whose}; is its folder in PYTHONPATH?") from error
    except (Exception, SystemExit) as error:  # someone else's module may raise anything when it is imported
        raise BadInput(f"{name}: importing {module_name} failed: {type(error).__name__}: {error}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise BadInput(f"{name}: {module_name} has no {path!r}")
        found = getattr(found, part)
    if not callable(found):
        raise BadInput(f"{name}: is not a function but {type(found).__name__}")
    return found  # type: ignore[no-any-return]
