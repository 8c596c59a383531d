"""Where the coordinator listens: a small file in the run directory, replaced atomically at each of its starts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from liver_slurm.base.errors import ControlError
from liver_slurm.base.files import replace_file


@dataclass(frozen=True)
class Address:
    """Where one coordinator process listens."""

    host: str
    port: int
    epoch: int
    pid: int

    @property
    def endpoint(self) -> str:
        """The address as ZeroMQ writes it."""
        return f"tcp://{self.host}:{self.port}"


def write(file: Path, address: Address) -> None:
    """Replace ``file``; a reader sees the old address or the new one, never half of one."""
    replace_file(file, json.dumps(asdict(address)).encode(), 0o600)


def read(file: Path) -> Address:
    """Read an address.

    Raises:
        ControlError: no coordinator has started yet, or the file is damaged.
    """
    try:
        return Address(**json.loads(file.read_text()))
    except FileNotFoundError:
        raise ControlError(f"{file} is missing: the run's coordinator has not started yet, or has ended") from None
    except (OSError, ValueError, TypeError) as error:
        raise ControlError(f"{file} cannot be read as a coordinator's address: {error}") from None
