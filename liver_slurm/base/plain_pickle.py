"""Read pickles that others wrote, without running anything of them.

A pickle is a program, which calls whatever it names. Here no name is ever looked up: what a pickle would have made of
a class is plain data, and a name that its reader does not expect ends the reading.
"""

from __future__ import annotations

import io
import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from typing import Any


class Plain:
    """What an object of a pickle was made of; its attributes are those that the pickle gave it."""

    arguments: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *arguments: Any) -> Plain:
        self = super().__new__(cls)
        self.arguments = arguments
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __getattr__(self, name: str) -> Any:
        if isinstance(state := self.__dict__.get("state"), dict) and name in state:
            return state[name]
        raise AttributeError(name)


def read_pickle(
    content: bytes, known: Callable[[str, str], Any], persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Read a pickle as plain data.

    Args:
        known: of a module and a name in it what stands for them, :class:`Plain` or a constant; None: it is refused.
        persistent: of a persistent id what stands for it; default: there are none.

    Raises:
        pickle.UnpicklingError: it names something that is not known.
        Exception: any other, of damaged bytes.
    """

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            # Older protocols have the names that Python 2 had.
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            found = known(module, name)
            if found is None:
                raise pickle.UnpicklingError(f"it names {module}.{name}, which has no place there")
            return found

        def persistent_load(self, pid: Any) -> Any:
            if persistent is None:
                raise pickle.UnpicklingError("it refers to what is not in it")
            return persistent(pid)

    return Reader(io.BytesIO(content)).load()
