"""Shared by all tests: a cluster for a module, waiting for conditions, golden files, a root that is left as it was."""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    # Imported where they are used: tests for GPUs run on machines that have no Slurm and not all of our dependencies.
    from liver_slurm.devcluster.lifecycle import Cluster
    from liver_slurm.scheduler.slurm.client import CommandClient

GOLDEN = Path(__file__).parent / "unit" / "golden"
LOG_LINES = 40
ROOT = Path(__file__).parents[1]
_failed = pytest.StashKey[bool]()
_in_root = pytest.StashKey[set[str]]()
_left = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "cluster(nodes, cpus_per_node, gpus_per_node, grace, preempt_mode, accounting): the cluster that the module's "
        "`cluster` fixture brings up; set it as pytestmark",
    )
    config.addinivalue_line("markers", "job(section={key: value}): what differs in the job file of the `notices` run")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("ucx") is not None and importlib.util.find_spec("nixl") is None:
        pytest.skip("nixl, the extra [ucx], is not installed; `make test-ucx` installs it")
    if item.get_closest_marker("advisor_check") is not None:
        missing = [name for name in ("doubleml", "econml") if importlib.util.find_spec(name) is None]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}; `make test-advisor` installs it")
    if item.get_closest_marker("trackers") is not None:
        missing = [name for name in ("tensorboard", "wandb") if importlib.util.find_spec(name) is None]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}; `make test-trackers` installs it")


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[_in_root] = _names_in_root()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run of the tests that leaves a file in the repository's root, such as a job's ``slurm-4.out``."""
    if hasattr(session.config, "workerinput"):  # one of several processes: the one that started them looks
        return
    left = sorted(_names_in_root() - session.config.stash[_in_root])
    session.config.stash[_left] = left
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _names_in_root() -> set[str]:
    """What lies in the repository's root, but for what git is told to ignore, such as caches."""
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()]
    return {name for name in os.listdir(ROOT) if not any(fnmatch.fnmatch(name, one) for one in ignored)}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests of notices and of faults have measured, whichever process they ran in."""
    reports = [report for each in terminalreporter.stats.values() for report in each if hasattr(report, "when")]
    said = [pair for report in reports if report.when == "teardown" for pair in report.user_properties]
    notices = [row for name, value in said if name == "notices" for row in value]
    faults = [value for name, value in said if name == "faults"]
    for title, rows in (("notices: seconds until the standby's node is free", notices), ("faults", faults)):
        if rows:
            from tabulate import tabulate

            terminalreporter.section(title)
            terminalreporter.write_line(tabulate(rows, headers="keys", floatfmt=".2f"))
    left = terminalreporter.config.stash.get(_left, [])
    if left:
        terminalreporter.section("left in the repository's root")
        terminalreporter.write_line(
            f"{', '.join(left)}: a test writes to its working directory, or submits a job without --output"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    module = item.getparent(pytest.Module)
    if report.failed and module is not None:
        module.stash[_failed] = True
    return report


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A real cluster for the module, SLURM_CONF pointing at it; the mark ``cluster`` says what kind.

    It is taken down whatever happens; if a test of the module failed, the ends of its logs are printed first. Its files
    stay where a daemon could not be ended, as daemons are found by them.
    """
    if shutil.which("slurmctld", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin") is None:
        pytest.skip("no slurmctld on this machine; `make setup` installs it")
    from liver_slurm.devcluster.lifecycle import down, up
    from liver_slurm.devcluster.spec import ClusterDir, ClusterSpec

    marker = request.node.get_closest_marker("cluster")
    options = {"nodes": 3, "grace": 5, **(marker.kwargs if marker is not None else {})}
    # Not below pytest's folder: sockets live here, and their paths are short.
    path = Path(tempfile.mkdtemp(prefix="liver-cluster-"))
    try:
        running = up(ClusterSpec(directory=path, **options))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(running.slurm_conf))
            yield running
        if request.node.stash.get(_failed, False):
            _print_logs(path)
    finally:
        if ClusterDir(path).slurm_conf.is_file():
            down(path)
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> CommandClient:
    """A client of the module's cluster."""
    from liver_slurm.scheduler.slurm.client import CommandClient

    return CommandClient()


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """``eventually(check, what, timeout=120)``: the first true value of ``check()``; fails if none comes in time."""

    def wait(check: Callable[[], Any], what: str, timeout: float = 120.0) -> Any:
        deadline = time.monotonic() + timeout
        while True:
            value = check()
            if value:
                return value
            if time.monotonic() > deadline:
                pytest.fail(f"not in {timeout:g} s: {what}; last: {value!r}")
            time.sleep(0.05)

    return wait


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """``golden(name, text)``: ``text`` is what tests/unit/golden/NAME holds. LIVER_UPDATE_GOLDEN=1 rewrites it."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("LIVER_UPDATE_GOLDEN"):
            path.write_text(text)
        assert path.is_file(), f"{path} is missing: run with LIVER_UPDATE_GOLDEN=1 and read what it wrote"
        assert text == path.read_text(), f"differs from {path}; if it should: LIVER_UPDATE_GOLDEN=1"

    return check


def _print_logs(path: Path) -> None:
    from liver_slurm.devcluster.spec import ClusterDir

    for log in sorted(ClusterDir(path).log.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        print(f"---- {log.name}", *lines, sep="\n")
