"""Another frozen dataclass with some fields changed, fast.

:func:`dataclasses.replace` goes through all fields and ``__init__``, and takes a third of the coordinator's time where
thousands of workers speak. Here the fields are copied as they are. Type checkers see the function of the library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from dataclasses import replace as replace
else:
    T = TypeVar("T")

    def replace(made: T, /, **changes: Any) -> T:
        """Return a dataclass like ``made``, which has no slots, with some fields changed."""
        kind = type(made)
        other = object.__new__(kind)
        other.__dict__.update(made.__dict__, **changes)
        if hasattr(kind, "__post_init__"):
            other.__post_init__()
        return other
