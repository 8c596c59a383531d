"""Look at the machine that this runs on. On a node it is a process that holds a dialogue in JSON lines.

It prints ``{"host", "port", "name"}``, where it listens; reads ``{"peers": {name: [host, port]}}``; prints ``{"time"}``
at once, from which the other side tells how the clocks differ; and prints the report.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from liver_slurm.base.network import reachable_host
from liver_slurm.doctor.facts import DirectoryReport, Report, TorchReport

PACKAGES = ("torch", "megatron-core", "submitit", "numpy", "pyzmq", "msgspec", "nixl")
TOKEN_FILE = ".liver-slurm-doctor"
CONNECT_TIMEOUT = 5.0
TOOL_TIMEOUT = 60.0
"""Seconds for nvidia-smi, and for importing torch: both are slow on a cold node."""
_TORCH = """
import contextlib, json, torch
cards = []
for number in range(torch.cuda.device_count()):
    with contextlib.suppress(RuntimeError):  # one that it lists and cannot use
        one = {"name": torch.cuda.get_device_name(number), "capability": torch.cuda.get_device_capability(number)}
        cards.append(one)
print(json.dumps({"cuda": torch.version.cuda, "cards": cards}))
"""


def look_here(run_root: str, token_file: str | None, torch: bool) -> Report:
    """Look at this machine.

    Args:
        torch: also import torch, in a process of its own, and ask it for GPUs.
    """
    gpus, gpu_error = _nvidia_smi()
    return Report(
        host=machine_name(),
        python=platform.python_version(),
        versions={name: _version(name) for name in PACKAGES},
        interfaces=_interfaces(),
        directory=_directory(run_root, token_file),
        gpus=gpus,
        gpu_error=gpu_error,
        torch=_import_torch() if torch else None,
    )


def machine_name() -> str:
    """Return Slurm's name of this node inside a job, else the host's name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def nearest_folder(path: str) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    folder = Path(path)
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def connect_all(peers: Mapping[str, Sequence[str | int]]) -> dict[str, str]:
    """Connect to each of ``peers`` and return why that failed; empty for those that answered."""
    return {name: _connect(str(host), int(port)) for name, (host, port) in peers.items()}


def _connect(host: str, port: int) -> str:
    try:
        with socket.create_connection((host, port), timeout=CONNECT_TIMEOUT):
            return ""
    except OSError as error:
        return f"{host}:{port}: {error.strerror or error}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _interfaces() -> dict[str, str]:
    import psutil

    return {
        name: address.address
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    }


def _directory(run_root: str, token_file: str | None) -> DirectoryReport:
    folder = nearest_folder(run_root)
    space = os.statvfs(folder)
    token = Path(token_file) if token_file else None
    return DirectoryReport(
        path=str(folder),
        writable=os.access(folder, os.W_OK | os.X_OK),
        free=space.f_bavail * space.f_frsize,
        file_system=_file_system(folder),
        token=token.read_text() if token is not None and token.is_file() else None,
        lock=_try_lock(token) if token is not None and token.is_file() else "",
        umask=_umask(),
    )


def hold_lock(descriptor: int) -> None:
    """Lock a whole file for as long as it is open, against whoever locks it as sqlite does, this process included.

    Raises:
        OSError: its file system has no locks.
    """
    lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)


def _try_lock(file: Path) -> str:
    with file.open("r+b") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return "refused"
        except OSError as error:
            return str(error.strerror)
        return "granted"


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _file_system(folder: Path) -> str:
    import psutil

    mounts = {Path(one.mountpoint): one.fstype for one in psutil.disk_partitions(all=True)}
    return next((mounts[place] for place in (folder.resolve(), *folder.resolve().parents) if place in mounts), "")


def _nvidia_smi() -> tuple[int | None, str]:
    if shutil.which("nvidia-smi") is None:
        return None, ""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=TOOL_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return 0, f"no answer within {TOOL_TIMEOUT:g} s"
    lines = [line for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return len(lines), "" if done.returncode == 0 else (done.stdout + done.stderr).strip().partition("\n")[0]


def _import_torch() -> TorchReport:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH], capture_output=True, text=True, timeout=TOOL_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return TorchReport(error=f"not imported within {TOOL_TIMEOUT:g} s")
    if done.returncode != 0:
        return TorchReport(error=(done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=TorchReport)


def listen() -> socket.socket:
    """Open a socket that takes connections on any free port of all addresses; nobody has to accept them."""
    return socket.create_server(("", 0), backlog=64)


def main() -> int:
    """Hold the dialogue on stdin and stdout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-root", required=True)
    parser.add_argument("--token-file")
    parser.add_argument("--interface")
    parser.add_argument("--torch", action="store_true")
    args = parser.parse_args()
    interfaces = _interfaces()
    address = interfaces.get(args.interface) if args.interface else None
    with listen() as server:
        _say({"host": address or reachable_host(None), "port": server.getsockname()[1], "name": machine_name()})
        peers = json.loads(sys.stdin.readline())["peers"]
        _say({"time": time.time()})
        answers = connect_all(peers)
        report = look_here(args.run_root, args.token_file, args.torch)
        document = {
            **msgspec.to_builtins(report),
            "reached": [name for name, why in answers.items() if not why],
            "unreached": {name: why for name, why in answers.items() if why},
        }
        _say(document)
        # Others may not have tried to connect yet: our stdin is closed when all have.
        sys.stdin.read()
    return 0


def _say(document: object) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
