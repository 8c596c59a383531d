"""The templates of sbatch/ on a real cluster, given to sbatch as people do.

No container runtime is on this machine: a stand-in for each, on PATH, notes its options and runs the command as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.app.api import Job, prepare_config
from liver_slurm.config.load import load_job
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.slurm.client import CommandClient

pytestmark = [pytest.mark.slurm, pytest.mark.cluster(nodes=4, cpus_per_node=1, gpus_per_node=0), pytest.mark.slow]
JOB = Path(__file__).parents[2] / "configs" / "gpt-tiny.toml"
Eventually = Callable[..., Any]

APPTAINER = r"""#!/bin/bash
echo "apptainer $*" >> "$NOTES"
[ "$1" = exec ] || exit 64
shift
while [ "$1" = --bind ]; do shift 2; done
[ "$1" = /images/liver.sif ] || exit 65
shift
exec "$@"
"""
PYXIS = r"""#!/bin/bash
[ "${1:-}" != --help ] || { echo "      --container-image=IMAGE  [pyxis]"; exit; }
arguments=()
for argument; do
    case $argument in
    --container-*) echo "$argument" >> "$NOTES" ;;
    *) arguments+=("$argument") ;;
    esac
done
exec REAL_SRUN "${arguments[@]}"
"""
LIVER_SLURM = r"""#!/bin/bash
[ "$1" != status ] || { printf '{\n  "state": "lost"\n}\n'; exit; }
echo "$*" >> "$NOTES"
case $* in *--resume*) work=true ;; *) work='sleep 1000' ;; esac
printf '{\n "job_id": "%s",\n "run_dir": "/runs/a"\n}\n' \
    "$(sbatch --parsable --no-requeue -p prod -w n4 -o /dev/null --wrap "$work")"
"""


@pytest.fixture
def place(
    client: CommandClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> Iterator[Path]:
    """Where a user's copies of the templates lie; no job is left at the end."""
    for template in (resources.files("liver_slurm") / "sbatch").iterdir():
        if template.name.endswith(".sh"):
            copy = tmp_path / template.name
            copy.write_text(template.read_text())
            copy.chmod(0o755)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.chdir(tmp_path)
    yield tmp_path

    def none_is_left() -> bool:
        left = {job.leader for job in client.jobs() if not job.is_over}
        client.cancel(sorted(left))  # again and again: a link of a chain may be submitting another job
        return not left

    eventually(none_is_left, "no job is left", 60)


def stand_in(place: Path, name: str, text: str) -> str:
    path = place / "bin" / name
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def sbatch(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        ["sbatch", "--parsable", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def output(place: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(place.glob("*.out")))


def grown(job: Job) -> bool:
    return any(
        event.get("to") == "tp1pp1dp3" for event in job.events() if event["event"] == "reconfiguration_committed"
    )


@pytest.mark.parametrize("contained", ["standby", pytest.param("live", marks=pytest.mark.long)])
def test_a_run_in_one_allocation_and_a_standby_by_hand(
    client: CommandClient, place: Path, eventually: Eventually, contained: str
) -> None:
    options = ["train.steps=100000", "standby.max_jobs=1", "elastic.layouts=['tp1pp1dp2','tp1pp1dp3']"]
    prepared = prepare_config(load_job(JOB, [f"job.run_root={place}/runs", *options, "checkpoint.every=0"]))
    run_dir = prepared.run_dir.path
    live = {"PATH": f"{place}/bin:{os.environ['PATH']}"}
    standby = dict(live)
    if contained == "live":
        stand_in(place, "srun", PYXIS.replace("REAL_SRUN", str(shutil.which("srun"))))
        live |= {"CONTAINER_IMAGE": "liver.sqsh"}
    else:
        stand_in(place, "apptainer", APPTAINER)
        image = {"LIVER_IMAGE": "/images/liver.sif", "LIVER_PYTHON_INSIDE": sys.executable}
        standby |= {"PYTHON": f"{place}/container.sh", **image}
    job_id = sbatch("single.sh", str(run_dir), "--source", "none", **live)
    guest = sbatch("-p", "scavenger", "standby.sh", str(run_dir), "--name", "guest", **standby)
    try:
        eventually(lambda: grown(prepared), "the standby has joined", 90)
    except BaseException:
        print(output(place), *(log.read_text() for log in prepared.run_dir.logs.glob("*")), sep="\n")
        raise
    job = Job(prepared.run_dir)
    assert job.job_id == job_id, "the coordinator has noted which job it is in"
    status = job.status()
    assert {worker["worker"] for worker in status["workers"]} == {"live-0", "live-1", "guest"}
    job.cancel()
    eventually(lambda: all(one.is_over for one in client.jobs([job_id, guest])), "both jobs end", 60)
    assert job.status()["state"] == "cancelled"
    notes = (place / "notes").read_text()
    if contained == "live":
        assert f"--container-image=liver.sqsh\n--container-mounts={run_dir}:{run_dir}\n" in notes
    else:
        assert f"apptainer exec --bind {run_dir} /images/liver.sif {sys.executable} -m liver_slurm.worker" in notes


def test_what_is_missing_is_said_in_one_line(client: CommandClient, place: Path, eventually: Eventually) -> None:
    (place / "run.json").touch()
    ids = [
        sbatch("standby.sh", "/no/run"),
        sbatch("--nodes=1", "single.sh", "/no/run"),
        sbatch("--nodes=1", "single.sh", str(place)),
        sbatch("standby.sh", str(place), CONTAINER_IMAGE="liver.sqsh"),
        sbatch("standby.sh", str(place), PYTHON=str(place / "container.sh")),
    ]
    eventually(lambda: all(job.is_over for job in client.jobs(ids)), "all have failed", 60)
    assert {job.state for job in client.jobs(ids)} == {"FAILED"}
    said = [
        (place / f"{name}-{job}.out").read_text()
        for name, job in zip(["liver-standby", "liver", "liver", "liver-standby", "liver-standby"], ids, strict=True)
    ]
    for text, wanted in zip(
        said,
        [
            "standby.sh: '/no/run' is not a run directory",
            "single.sh: '/no/run' is not a run directory",
            "single.sh: 1 node is not enough",
            "standby.sh: srun has no --container-image here (Pyxis)",
            "container.sh: neither apptainer nor enroot is on ",
        ],
        strict=True,
    ):
        assert wanted in text


def back_in_service(client: CommandClient, node: str) -> bool:
    """RESUME is refused for a node that its slurmd has brought back already: what counts is its state."""
    subprocess.run(["scontrol", "update", f"NodeName={node}", "State=RESUME"], timeout=30, capture_output=True)
    return not any("down" in found.state for found in client.nodes() if found.name == node)


def test_a_chain_survives_a_node_failure_and_ends_with_the_run(
    client: CommandClient, place: Path, eventually: Eventually
) -> None:
    stand_in(place, "liver-slurm", LIVER_SLURM)
    sbatch("-w", "n1", "chain.sh", "my job.toml", "--set", "train.steps=5", PATH=f"{place}/bin:{os.environ['PATH']}")

    def live_jobs() -> list[Any]:
        return [job for job in client.jobs() if job.partition == "prod" and job.comment == "" and job.name == "wrap"]

    first = eventually(lambda: next((job for job in live_jobs() if job.state == "RUNNING"), None), "the first job runs")
    eventually(lambda: [job for job in client.jobs() if job.reason == "Dependency"], "the next link waits for its end")
    subprocess.run(["scontrol", "update", "NodeName=n4", "State=DOWN", "Reason=test"], check=True, timeout=30)
    eventually(lambda: back_in_service(client, "n4"), "the node is in service again")
    eventually(lambda: "ended COMPLETED" in output(place), "the last link has looked", 60)
    assert (place / "notes").read_text().splitlines() == [
        "submit my job.toml --set train.steps=5 --set live.successor=false --json",
        f"submit my job.toml --set train.steps=5 --set live.successor=false --resume {first.job_id} --json",
    ]
    assert f"chain.sh: job {first.job_id} ended NODE_FAIL" in output(place)
    eventually(lambda: all(job.is_over for job in client.jobs()), "nothing is left")


@pytest.mark.long
def test_a_chain_of_real_runs_across_a_time_limit(client: CommandClient, place: Path, eventually: Eventually) -> None:
    keys = [f"job.run_root={place}/runs", "live.time=1:00", "train.steps=1000000", "standby.max_jobs=0"]
    options = [word for key in [*keys, "checkpoint.every=20"] for word in ("--set", key)]
    liver = str(Path(sys.executable).with_name("liver-slurm"))
    sbatch("chain.sh", str(JOB), *options, LIVER_SLURM=liver)

    def runs() -> list[Job]:
        found = [Job(RunDir(path.parent)) for path in place.glob("runs/*/run.json")]
        return sorted((job for job in found if job.job_id), key=lambda job: int(job.job_id))

    def second_trains() -> bool:
        return len(runs()) > 1 and next(runs()[1].metrics(), None) is not None

    try:
        eventually(second_trains, "the second guaranteed job trains", 240)
    except BaseException:
        print(output(place))
        raise
    first, second = runs()
    assert first.status()["state"] == "stopped", "a checkpoint was written in time"
    steps = [line.step for line in first.metrics()]
    assert 1 < next(second.metrics()).step <= steps[-1] + 1, "from a checkpoint of the first one"
    second.cancel()
    eventually(lambda: f"job {second.job_id} ended" in output(place), "the chain ends with it", 60)
    assert len(runs()) == 2


@pytest.mark.parametrize("runtime", ["apptainer", "enroot"])
def test_a_python_in_a_container(place: Path, monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    stand_in(place, runtime, '#!/bin/bash\nprintf "%s\\n" "$0" "$@"\n')
    # Without whatever this machine has besides coreutils.
    monkeypatch.setenv("PATH", f"{place}/bin:/usr/bin:/bin")
    for name, value in {"RUN_DIR": "/runs/a b", "LIVER_IMAGE": "i", "SLURM_PROCID": "3", "SECRET": "s"}.items():
        monkeypatch.setenv(name, value)
    for name in ("CUDA_VISIBLE_DEVICES", "PYTHONPATH", "PYTORCH_ALLOC_CONF", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "0")
    argv = [str(place / "container.sh"), "-m", "liver_slurm.worker", "/runs/a b"]
    lines = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout.splitlines()
    assert lines[-4:] == ["python3", "-m", "liver_slurm.worker", "/runs/a b"]
    if runtime == "apptainer":
        assert lines[1:-4] == ["exec", "--bind", "/runs/a b", "--nv", "i"]
    else:
        assert lines[1:6] == ["start", "--mount", "/runs/a b:/runs/a b", "--mount", f"{place}:{place}"]
        assert lines[-9:-4] == ["i", "sh", "-c", 'cd "$0" && exec "$@"', str(place)]
        passed = lines[6:-9][1::2]
        assert {"SLURM_PROCID", "CUDA_VISIBLE_DEVICES", "RUN_DIR"} <= set(passed)
        assert {"PYTHONPATH", "PYTORCH_ALLOC_CONF", "TRITON_CACHE_DIR"} <= set(passed)
        assert "SECRET" not in passed
    outside = [str(place / "container.sh"), "-c", "print('out')", "liver_slurm.coordinator"]
    monkeypatch.setenv("LIVER_PYTHON_OUTSIDE", sys.executable)
    assert subprocess.run(outside, check=True, capture_output=True, text=True, timeout=30).stdout == "out\n"
