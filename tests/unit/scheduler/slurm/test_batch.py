"""The guaranteed job's script: golden files, and that bash and shellcheck have nothing to say about any of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.config.schema import ComponentSection, JobConfig, JobSection, LiveSection
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.slurm.batch import render_script
from liver_slurm.scheduler.slurm.submit import Submission

RUN_DIR = RunDir(Path("/shared/runs/liver-20260102-030405-abcd"))
PYTHON = "/opt/liver/bin/python"

CASES = {
    "live-minimal": JobConfig(),
    "live-gpu": JobConfig(
        job=JobSection(name="gpt 70b's"),
        live=LiveSection(
            partition="gpu",
            coordinator_partition="cpu",
            time="2-00:00:00",
            account="lab",
            qos="high",
            setup=("module load cuda/12.4", 'export NCCL_SOCKET_IFNAME="ib0"'),
            component=(
                ComponentSection(
                    nodes=4, tasks_per_node=8, cpus_per_task=12, gpus_per_task=1, mem="900G", constraint="h100&ib"
                ),
            ),
        ),
    ),
    "live-two-components": JobConfig(
        live=LiveSection(
            partition="live",
            time="1:00:00",
            component=(
                ComponentSection(nodes=2, tasks_per_node=2, gpus_per_task=1, exclude="n[7-8]"),
                ComponentSection(nodes=1, cpus_per_task=3, partition="prod"),
            ),
        )
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"{name}.sh", render_script(CASES[name], RUN_DIR, PYTHON))


@pytest.mark.parametrize("name", CASES)
def test_bash_can_parse_it(name: str) -> None:
    script = render_script(CASES[name], RUN_DIR, PYTHON)
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", CASES)
def test_shellcheck_finds_nothing(name: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck on this machine; `make setup` installs it")
    script = render_script(CASES[name], RUN_DIR, PYTHON)
    done = subprocess.run(
        ["shellcheck", "--shell=bash", "-"], input=script, text=True, capture_output=True, check=False, timeout=60
    )
    assert done.stdout == ""


def test_a_run_directory_with_a_space_is_quoted_everywhere() -> None:
    script = render_script(JobConfig(), RunDir(Path("/my runs/a")), PYTHON)
    assert "#SBATCH --output='/my runs/a/logs/slurm-%j.out'" in script
    assert "export RUN_DIR='/my runs/a'" in script


def test_slurm_may_take_nodes_back_from_a_component() -> None:
    """From 24.11 on «Job is no longer pending execution» is what a job with ntasks-per-node gets to hear."""
    header = [
        line for line in render_script(CASES["live-gpu"], RUN_DIR, PYTHON).splitlines() if line.startswith("#SBATCH")
    ]
    assert not [line for line in header if "ntasks-per-node" in line]
    # Without it tasks stay even by each node's least number of CPUs.
    assert {"#SBATCH --nodes=4", "#SBATCH --ntasks=32", "#SBATCH --cpus-per-task=12", "#SBATCH --mincpus=96"} <= set(
        header
    )


def test_what_there_is_no_key_for_stands_in_every_component() -> None:
    component = ComponentSection(gpus_per_task=1, tasks_per_node=2, gpu_type="h100")
    live = LiveSection(sbatch=("--reservation=the night's", "--exclusive"), component=(component,))
    script = render_script(JobConfig(live=live), RUN_DIR, PYTHON)
    lines = script.splitlines()
    assert lines.count("""#SBATCH --reservation='the night'"'"'s'""") == 2
    assert lines.count("#SBATCH --exclusive") == 2
    assert "#SBATCH --gres=gpu:h100:2" in lines
    assert "--gres=gpu:h100:2" in script[script.index("srun") :], "steps ask for the same"


def test_gres_only_with_gpus() -> None:
    assert "gres" not in render_script(JobConfig(), RUN_DIR, PYTHON)


def test_interpreter_of_the_job_file_is_taken() -> None:
    assert "PYTHON=/site/python\n" in render_script(JobConfig(live=LiveSection(python="/site/python")), RUN_DIR)


def test_a_line_break_cannot_smuggle_in_an_option() -> None:
    config = JobConfig(live=LiveSection(account="lab\n#SBATCH --uid=0"))
    for render in (lambda: render_script(config, RUN_DIR, PYTHON), lambda: Submission.by_hand(config)):
        with pytest.raises(BadInput, match=r"account.*line break"):
            render()


def components(*given: dict[str, str]) -> JobConfig:
    return JobConfig(live=LiveSection(component=tuple(ComponentSection(**one) for one in given)))  # type: ignore[arg-type]


def headers(config: JobConfig, option: str) -> list[list[str]]:
    """Values of an option in each component's header."""
    parts = render_script(config, RUN_DIR, PYTHON).split("#SBATCH hetjob")
    return [re.findall(rf"^#SBATCH --{option}=(.*)$", part, re.MULTILINE) for part in parts]


def test_what_slurm_would_carry_over_is_said_again() -> None:
    assert headers(components({"exclude": "n1"}, {}), "exclude") == [[], ["n1"], [""]]
    assert headers(components({}, {}), "exclude") == [[], [], []]


def test_memory_is_asked_for_by_all_or_by_none_before() -> None:
    assert headers(components({"mem": "4G"}, {"mem": "8G"}), "mem") == [["2G"], ["4G"], ["8G"]]
    assert headers(components({}, {"mem": "8G"}), "mem") == [[], [], ["8G"]]
    with pytest.raises(BadInput, match=r"live.component\[1\].mem: not given, but live.component\[0\].mem is"):
        Submission.by_hand(components({"mem": "4G"}, {}))


def test_a_job_that_has_lost_a_node_comes_first() -> None:
    config = CASES["live-two-components"]
    script = render_script(config, RUN_DIR, PYTHON, expedite=True)
    assert script.count("#SBATCH --requeue=expedite\n") == 3, "each component says so"
    never = replace(config, live=replace(config.live, requeue=False))
    assert "expedite" not in render_script(never, RUN_DIR, PYTHON, expedite=True)


# ---- what the script does ------------------------------------------------------------------------------------------

SRUN = """#!/bin/bash
case "$*" in
*liver_slurm.worker*)
    env > "$LAB/env"
    touch "$LAB/workers"
    while [ -e "$LAB/workers" ]; do /bin/sleep 0.02; done
    ;;
*)
    echo coordinator >> "$LAB/starts"
    case "$*" in *--decided-codes*) echo yes >> "$LAB/asked" ;; esac
    [ -e "$LAB/no-node" ] || : > "$LIVER_STARTED"
    while ! [ -e "$LAB/workers" ] && ! [ -e "$LAB/ended" ]; do /bin/sleep 0.02; done
    read -r code < <(sed -n "$(wc -l < "$LAB/starts")p" "$LAB/codes")
    [ "$code" != workers-end ] || { rm "$LAB/workers"; touch "$LAB/ended"; /bin/sleep 0.3; code=70; }
    exit "$code"
    ;;
esac
"""
SCANCEL = """#!/bin/bash
rm -f "$LAB/workers"
touch "$LAB/scancelled"
"""


def play(
    folder: Path, codes: list[object], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the script with an srun whose coordinators end with these codes, and with no time to sleep."""
    lab = folder / "lab"
    lab.mkdir(parents=True)
    run_dir = RunDir(folder / "run")
    run_dir.logs.mkdir(parents=True)
    for name, text in (("srun", SRUN), ("scancel", SCANCEL), ("sleep", "#!/bin/sh\nexec /bin/sleep 0.02\n")):
        (lab / name).write_text(text)
        (lab / name).chmod(0o755)
    (lab / "codes").write_text("".join(f"{code}\n" for code in codes))
    script = folder / "live.sh"
    text = render_script(CASES["live-minimal"], run_dir, PYTHON)
    assert "\nPATIENCE=20\n" in text
    script.write_text(text.replace("\nPATIENCE=20\n", "\nPATIENCE=1\n"))  # these workers end only when told to
    return subprocess.run(
        ["bash", str(script)],
        env={"PATH": f"{lab}:/usr/bin:/bin", "LAB": str(lab), "SLURM_JOB_ID": "7", **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def starts(folder: Path) -> int:
    return len((folder / "lab" / "starts").read_text().splitlines())


@pytest.mark.parametrize(("decided", "code"), [(10, 0), (11, 1), (13, 0), (14, 0)])
def test_only_a_decided_outcome_ends_the_job(tmp_path: Path, decided: int, code: int) -> None:
    done = play(tmp_path, [70, 139, decided])
    assert (done.returncode, starts(tmp_path)) == (code, 3)


def test_a_coordinator_that_cannot_start_takes_no_worker_with_it(tmp_path: Path) -> None:
    # LS-14: they end by themselves after job.orphan_timeout, with a checkpoint
    done = play(tmp_path, [70] * 14 + ["workers-end", 70])
    assert done.returncode == 1
    assert starts(tmp_path) == 15
    assert "no workers any more" in done.stdout
    assert not (tmp_path / "lab" / "scancelled").exists(), "nobody has signalled the workers"


@pytest.mark.parametrize(("code", "ends"), [(1, 1), (2, 2), (126, 1), (127, 1)])
def test_one_that_never_could_start_is_given_up_soon(tmp_path: Path, code: int, ends: int) -> None:
    done = play(tmp_path, [code] * 9)
    assert (done.returncode, starts(tmp_path)) == (ends, 3)


def test_what_came_with_the_submission_reaches_no_step(tmp_path: Path) -> None:
    came = {
        "SLURM_TIMELIMIT": "1",
        "SLURM_GPUS_PER_TASK": "9",
        "SLURM_CPU_BIND": "map_cpu:0",
        "SRUN_CPUS_PER_TASK": "3",
    }
    play(tmp_path, [10], {**came, "SLURM_CLUSTER_NAME": "c"})
    seen = (tmp_path / "lab" / "env").read_text()
    assert [name for name in came if f"{name}=" in seen] == []
    assert "SLURM_JOB_ID=7" in seen
    assert "SLURM_CLUSTER_NAME=c" in seen
    assert (tmp_path / "lab" / "asked").read_text() == "yes\n"
