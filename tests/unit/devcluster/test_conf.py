"""slurm.conf as a function of the version: golden files for the versions that we know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.devcluster.conf import Machine, Version, parse_version, render, render_slurmdbd
from liver_slurm.devcluster.ports import PortBlock
from liver_slurm.devcluster.spec import ClusterSpec

PORTS = PortBlock(10240)


def machine(version: Version = (22, 5)) -> Machine:
    return Machine(version=version, user="ada", host="box", memory_mb=32000)


def spec(**options: object) -> ClusterSpec:
    return ClusterSpec(directory=Path("/home/ada/.liver-slurm/cluster"), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [(22, 5), (24, 11), (26, 5)])
def test_golden(version: Version, golden: Callable[[str, str], None]) -> None:
    files = render(spec(), machine(version), PORTS)
    text = "".join(f"# ---- {name}\n{content}" for name, content in sorted(files.items()))
    golden(f"cluster-{version[0]}.{version[1]:02d}.conf", text)


def test_golden_accounting(golden: Callable[[str, str], None]) -> None:
    wanted = spec(nodes=1, gpus_per_node=0, preempt_mode="requeue", grace=0, accounting=True)
    files = render(wanted, machine(), PORTS)
    text = files["slurm.conf"] + "# ---- slurmdbd.conf\n" + render_slurmdbd(wanted, machine(), PORTS, "secret")
    golden("cluster-accounting.conf", text)


@pytest.mark.parametrize(
    ("version", "line"),
    [
        ((22, 5), "SlurmctldParameters=preempt_send_user_signal"),
        ((24, 11), "PreemptParameters=send_user_signal"),
        ((26, 5), "PreemptParameters=send_user_signal"),
    ],
)
def test_preemption_by_qos_with_the_users_signal(version: Version, line: str) -> None:
    wanted = spec(accounting=True, preempt_type="qos", send_user_signal=True)
    lines = render(wanted, machine(version), PORTS)["slurm.conf"].splitlines()
    assert "PreemptType=preempt/qos" in lines
    assert line in lines
    assert sum("send_user_signal" in one for one in lines) == 1


def test_without_gpus_nothing_speaks_of_them() -> None:
    files = render(spec(gpus_per_node=0), machine(), PORTS)
    assert "gres.conf" not in files
    assert "gpu" not in files["slurm.conf"].lower()


@pytest.mark.parametrize(
    ("text", "version"), [("slurm-wlm 22.05.8", (22, 5)), ("slurm 24.11.5\n", (24, 11)), ("slurm 26.05.5-rc1", (26, 5))]
)
def test_parse_version(text: str, version: Version) -> None:
    assert parse_version(text) == version


def test_parse_version_of_something_else() -> None:
    with pytest.raises(ValueError, match="no version"):
        parse_version("slurmctld: unrecognized option")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"nodes": 0}, "--nodes 0: must be between 1 and 1000"),
        ({"nodes": 1001}, "--nodes 1001"),
        ({"cpus_per_node": 0}, "--cpus-per-node 0"),
        ({"gpus_per_node": -1}, "--gpus-per-node -1"),
        ({"grace": -1}, "--grace -1"),
        ({"preempt_type": "qos"}, "needs accounting"),
        ({"directory": Path("/with space")}, "--dir /with space"),
        ({"directory": Path("relative")}, "--dir relative"),
        ({"directory": Path("/" + "x" * 100)}, "at most 80"),
    ],
)
def test_bad_options(options: dict[str, object], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        ClusterSpec(**{"directory": Path("/tmp/c"), **options})  # type: ignore[arg-type]


def test_blocks_do_not_overlap() -> None:
    first, second = PortBlock(10240), PortBlock(10240 + 512)
    assert max(*first.fixed, *first.srun) < min(second.fixed)
    assert not set(first.fixed) & set(range(first.srun[0], first.srun[1] + 1))


def test_a_large_cluster_takes_the_first_port_of_each_block() -> None:
    large = PortBlock(10240, 1000)
    assert large.end == 10240 + 3 * 512
    assert {10240, 10240 + 512, 10240 + 1024} <= set(large.fixed)
    assert max(large.fixed) < large.end
    assert not set(large.fixed) & set(range(large.srun[0], large.srun[1] + 1))


def test_a_later_parameter_of_the_scheduler_replaces_one() -> None:
    files = render(spec(scheduler=("bf_interval=30", "bf_max_job_test=50")), machine(), PORTS)
    (line,) = [one for one in files["slurm.conf"].splitlines() if one.startswith("SchedulerParameters=")]
    assert "bf_interval=30,bf_continue" in line
    assert line.endswith(",preempt_youngest_first,bf_max_job_test=50")
