"""slurmdbd on a MariaDB of its own, for ``sacct`` and QOS."""

from __future__ import annotations

import secrets
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from liver_slurm.base.errors import ClusterError
from liver_slurm.devcluster.conf import Machine, render_slurmdbd
from liver_slurm.devcluster.ports import PortBlock
from liver_slurm.devcluster.processes import until
from liver_slurm.devcluster.spec import ClusterDir, ClusterSpec
from liver_slurm.scheduler.slurm.command import NotAnswering, run_once

PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "my_print_defaults")
PACKAGES = "slurmdbd mariadb-server-core mariadb-client-core"
_START = 60.0


def start_accounting(
    spec: ClusterSpec, machine: Machine, ports: PortBlock, programs: Mapping[str, str], environment: Mapping[str, str]
) -> None:
    """Bring up the database and slurmdbd, and register cluster, account and user; before slurmctld starts.

    Raises:
        ClusterError: one of them did not come up; the message quotes its log.
    """
    directory = ClusterDir(spec.directory)
    password = secrets.token_hex(16)
    _install_database(directory, machine, programs, environment)
    _start_database(directory, machine, ports, programs, environment, password)

    conf = directory.etc / "slurmdbd.conf"
    conf.touch(mode=0o600)
    conf.write_text(render_slurmdbd(spec, machine, ports, password))
    run_once([programs["slurmdbd"]], _START, environment)
    if not until(lambda: _answers(environment), _START):
        raise ClusterError(f"slurmdbd does not answer: {last_lines(directory.log / 'slurmdbd.log', 3)}")
    for entity in (
        ["cluster", "liver"],
        ["account", "liver", "Cluster=liver", "Description=liver", "Organization=liver"],
        ["user", machine.user, "Account=liver", "Cluster=liver"],
    ):
        run_once(["sacctmgr", "-i", "add", *entity], 30, environment)


def _answers(environment: Mapping[str, str]) -> bool:
    try:
        run_once(["sacctmgr", "-n", "list", "cluster"], 10, environment)
    except NotAnswering:
        return False
    except ClusterError as error:
        # slurmdbd is still making its tables: sacctmgr's words for that differ by version, the subject does not.
        if "slurmdbd" in str(error).lower() or "problem talking to the database" in str(error).lower():
            return False
        raise
    return True


def _install_database(
    directory: ClusterDir, machine: Machine, programs: Mapping[str, str], environment: Mapping[str, str]
) -> None:
    argv = [
        programs["mariadb-install-db"],
        "--no-defaults",
        f"--datadir={directory.database}",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
        f"--user={machine.user}",
    ]
    run_once(argv, 120, environment)


def _start_database(
    directory: ClusterDir,
    machine: Machine,
    ports: PortBlock,
    programs: Mapping[str, str],
    environment: Mapping[str, str],
    password: str,
) -> None:
    grant = directory.munge / "grant.sql"  # a folder that only its owner can read
    grant.touch(mode=0o600)
    grant.write_text(
        f"CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';\n"
        "GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';\n"
    )
    log = directory.log / "mariadb.log"
    argv = [
        programs["mariadbd"],
        "--no-defaults",
        f"--datadir={directory.database}",
        f"--socket={directory.run}/mariadb.sock",
        f"--pid-file={directory.run}/mariadb.pid",
        f"--log-error={log}",
        "--bind-address=127.0.0.1",
        f"--port={ports.database}",
        "--skip-name-resolve",
        # slurmdbd complains about smaller ones.
        "--innodb-lock-wait-timeout=900",
        "--innodb-log-file-size=64M",
        f"--init-file={grant}",
        f"--user={machine.user}",
    ]
    server = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=dict(environment),
        start_new_session=True,
    )
    if not until(lambda: server.poll() is not None or _listens(ports.database), _START) or server.poll() is not None:
        raise ClusterError(f"mariadbd did not come up: {last_lines(log, 3)}")


def _listens(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def last_lines(log: Path, count: int) -> str:
    """Return the last lines of a log, in one line; for error messages."""
    if not log.exists():
        return f"{log} was not written"
    return " | ".join(log.read_text(errors="replace").splitlines()[-count:]) or f"{log} is empty"
