"""How many files this process may have open."""

from __future__ import annotations

import resource


def allow_many_files() -> None:
    """Raise the limit to what the system allows this user: a socket is a file, and callers may be many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
