"""Further options of sbatch in a job file."""

from __future__ import annotations

import pytest

from liver_slurm.config.sbatch import options, problems


def test_options_are_read_as_sbatch_reads_them() -> None:
    texts = ("--reservation=night", "--licenses=a:2,b", "--exclusive", "--nodelist=n[1-3]", "--begin=20:00")
    assert options(texts) == [
        ("reservation", "night"), ("licenses", "a:2,b"), ("exclusive", None), ("nodelist", "n[1-3]"),
        ("begin", "20:00"),
    ]  # fmt: skip
    assert not list(problems("live.sbatch", texts))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("-N 3", "allowed: --NAME=VALUE or --NAME, in full"),
        ("reservation=x", "allowed: --NAME=VALUE or --NAME, in full"),
        ("--reservation x", "allowed: --NAME=VALUE or --NAME, in full"),
        ("--time=5", "time says that"),
        ("--gres=gpu:h100:2", "gpus_per_task and gpu_type says that"),
        ("--comment=x", "the run needs --comment for itself"),
        ("--array=1-3", "the run needs --array for itself"),
        (
            "--begin=now+1hour",
            "jobs in the queue are told when they may start, and would not keep to it",
        ),
    ],
)
def test_what_a_key_says_or_the_run_needs_is_refused(text: str, why: str) -> None:
    (problem,) = problems("standby.sbatch", ["--exclusive", text])
    assert problem.key == "standby.sbatch.1"
    assert problem.text.endswith(why)
