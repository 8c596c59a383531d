"""A standby's submission through submitit's public surface, with stand-ins for Slurm's commands on PATH."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.base.errors import ClusterError
from liver_slurm.config.schema import JobConfig, LiveSection, StandbySection
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.ports import LaunchStopped
from liver_slurm.scheduler.slurm import submitit_launcher
from liver_slurm.scheduler.slurm.standby import SlurmStandbys
from liver_slurm.worker.bootstrap import standby_main

SBATCH = r"""#!/bin/bash
n=$(ls "$NOTES" | wc -l)
env > "$NOTES/env-$n"
case $(cat "$NOTES/../refuse") in
always) ;;
later) [ "$n" -ge 1 ] || { echo "Submitted batch job 41"; exit; } ;;
hang) exec sleep 1000 ;;
*) echo "Submitted batch job $((41 + n)) in 5 job 7's place"; exit ;;
esac
echo "sbatch: error: invalid partition specified: a" >&2
exit 1
"""


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder in which each call of sbatch leaves its environment."""
    tools, found = tmp_path / "bin", tmp_path / "notes"
    for folder in (tools, found, tmp_path / "run"):
        folder.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": "#!/bin/bash\n"}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / "refuse").write_text("never")
    (tmp_path / "slurm.conf").touch()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(found))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    return found


def standbys(tmp_path: Path, slurm: Any, live: LiveSection | None = None, **options: Any) -> SlurmStandbys:
    config = JobConfig(live=live or LiveSection(), standby=StandbySection(**{"partitions": ("a",), **options}))
    return SlurmStandbys(config, RunDir(tmp_path / "run"), slurm, standby_main)


def test_script(tmp_path: Path, notes: Path, slurm: Any, golden: Callable[[str, str], None]) -> None:
    live = LiveSection(account="lab", setup=("module load cuda",), python="/opt/liver/bin/python")
    size = {"nodes_per_job": 2, "tasks_per_node": 4, "cpus_per_task": 3, "gpus_per_task": 1}
    (job,) = standbys(tmp_path, slurm, live, mem="16G", qos="low", **size).launch(1, 0, "a")
    script = (tmp_path / "run" / "standby" / f"{job}_submission.sh").read_text()
    golden("standby.sh", script.replace(str(tmp_path), "/runs"))


def test_own_words_win_over_submitits(tmp_path: Path, notes: Path, slurm: Any) -> None:
    (job,) = standbys(tmp_path, slurm, signal="USR1@45", time="1:00:00").launch(1)
    script = (tmp_path / "run" / "standby" / f"{job}_submission.sh").read_text()
    for line in ("--signal=USR1@45", "--no-requeue", "--time=1:00:00"):
        assert f"#SBATCH {line}\n" in script
    assert "--wckey" not in script


def test_sbatch_is_outside_of_the_job_that_submits(
    tmp_path: Path, notes: Path, slurm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SLURM_CPUS_PER_TASK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("OWN", "kept")
    assert standbys(tmp_path, slurm).launch(2) == ["41", "42"]
    seen = (notes / "env-1").read_text().splitlines()
    assert {f"SLURM_CONF={tmp_path}/slurm.conf", "OWN=kept"} <= set(seen)
    assert not [line for line in seen if line.startswith(("SLURM_", "CUDA_")) and "SLURM_CONF" not in line]


@pytest.mark.parametrize(("when", "taken"), [("always", ()), ("later", ("41",))])
def test_a_refusal_is_one_line(tmp_path: Path, notes: Path, slurm: Any, when: str, taken: tuple[str, ...]) -> None:
    (tmp_path / "refuse").write_text(when)
    with pytest.raises(LaunchStopped, match=r"^a standby job was refused: invalid partition specified: a$") as refused:
        standbys(tmp_path, slurm).launch(3)
    assert refused.value.job_ids == taken
    assert len(list(notes.iterdir())) == len(taken) + 1


def test_an_sbatch_that_hangs_is_given_up(
    tmp_path: Path, notes: Path, slurm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "refuse").write_text("hang")
    monkeypatch.setattr(submitit_launcher, "TIMEOUT", 0.5)
    with pytest.raises(ClusterError, match=r"did not answer within 0\.5 s"):
        standbys(tmp_path, slurm).launch(1)


def test_without_slurm_it_says_so(tmp_path: Path, notes: Path, slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(tmp_path / "bin")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ClusterError, match=r'a standby job was refused: .*"srun"'):
        standbys(tmp_path, slurm).launch(1)
