"""What a daemon that did not come up is quoted with; the logs are real ones."""

from __future__ import annotations

import pytest

from liver_slurm.devcluster.lifecycle import fatal_lines

IN_26_05 = """\
[2026-11-27T00:20:52.508] error: Configured MailProg is invalid
[2026-11-27T00:20:52.522] slurmctld version 26.05.5 started on cluster liver
[2026-11-27T00:20:52.522] cred/munge: init: Munge credential signature plugin loaded
[2026-11-27T00:20:52.523] error: cannot create select context for select/nonsense
[2026-11-27T00:20:52.523] fatal: failed to initialize node selection plugin
"""
IN_24_11 = """\
[2026-11-27T00:20:51.951] error: Configured MailProg is invalid
[2026-11-27T00:20:51.991] slurmctld version 24.11.5 started on cluster liver(0)
[2026-11-27T00:20:52.009] select/linear: init: Linear node selection plugin loaded with argument 4
[2026-11-27T00:20:52.009] fatal: Can't find plugin for select/nonsense
"""


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            IN_26_05,
            [" | ".join(IN_26_05.splitlines()[-2:])],
        ),
        (IN_24_11, [IN_24_11.splitlines()[-1]]),
        ("slurmd: fatal: no\n", ["slurmd: fatal: no"]),
        ("slurmd: error: by itself\n", []),
    ],
)
def test_a_fatal_line_comes_with_the_error_before_it(log: str, said: list[str]) -> None:
    assert fatal_lines(log) == said
