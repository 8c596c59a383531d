"""CURVE keys of the control channel: one pair for the coordinator, one shared by the run's workers and clients.

Whoever can read the run's secrets may drive the run; nobody else can even finish a handshake.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from liver_slurm.base.errors import BadInput, ControlError

_SERVER, _CLIENT = "coordinator", "member"


@dataclass(frozen=True)
class KeyPair:
    """Public and secret CURVE key, Z85 text as bytes."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Keys:
    """Both ends' keys of one run."""

    server: KeyPair
    client: KeyPair


def create(secrets: Path) -> None:
    """Make the run's keys in a new folder ``secrets`` (0700, files 0600).

    Raises:
        BadInput: the folder exists already; keys of a run are never replaced.
    """
    import zmq.auth

    try:
        secrets.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise BadInput(f"{secrets} exists: this run directory already has keys; use a new run directory") from None
    secrets.chmod(0o700)  # mkdir's mode passes through the umask
    for name in (_SERVER, _CLIENT):
        for file in zmq.auth.create_certificates(secrets, name):
            Path(file).chmod(0o600)


def load(secrets: Path) -> Keys:
    """Read the run's keys.

    Raises:
        ControlError: there are none, they are not ours, or others could have read them.
    """
    _check(secrets)
    return Keys(server=_load_pair(secrets, _SERVER), client=_load_pair(secrets, _CLIENT))


def _load_pair(secrets: Path, name: str) -> KeyPair:
    import zmq.auth

    file = secrets / f"{name}.key_secret"
    _check(file)
    try:
        public, secret = zmq.auth.load_certificate(file)
    except (OSError, ValueError) as error:
        raise ControlError(f"{file} holds no key: {error}") from None
    if secret is None:
        raise ControlError(f"{file} holds no secret key")
    return KeyPair(public, secret)


def _check(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ControlError(f"{path} is missing: not a run directory, or one whose keys were removed") from None
    except PermissionError:
        raise ControlError(f"{path} may not be read: the run belongs to another user") from None
    if status.st_uid != os.geteuid():
        raise ControlError(f"{path} belongs to user {status.st_uid}, not to you: its keys are not trusted")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise ControlError(f"{path} is open to other users (mode {mode:04o}); close it: chmod -R go= {path}")
