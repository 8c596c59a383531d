"""Keys are private, made once, and not trusted when others could have read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from liver_slurm.base.errors import BadInput, ControlError
from liver_slurm.rundir import keys


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    keys.create(tmp_path / "secrets")
    return tmp_path / "secrets"


def test_private_from_the_start(secrets: Path) -> None:
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert [file.stat().st_mode & 0o777 for file in secrets.iterdir()] == [0o600] * 4


def test_two_different_pairs_and_no_secret_in_their_text(secrets: Path) -> None:
    pairs = keys.load(secrets)
    assert pairs.server.public != pairs.client.public
    assert pairs.client.secret.decode() not in repr(pairs)


def test_never_overwritten(secrets: Path) -> None:
    before = keys.load(secrets)
    with pytest.raises(BadInput, match="already has keys"):
        keys.create(secrets)
    assert keys.load(secrets) == before


@pytest.mark.parametrize("what", ["", "coordinator.key_secret", "member.key_secret"])
@pytest.mark.parametrize("mode", [0o750, 0o704])
def test_open_permissions_are_refused(secrets: Path, what: str, mode: int) -> None:
    # LS-16
    (secrets / what).chmod(mode)
    with pytest.raises(ControlError, match="open to other users"):
        keys.load(secrets)


def test_missing_and_damaged(secrets: Path) -> None:
    with pytest.raises(ControlError, match="missing"):
        keys.load(secrets / "elsewhere")
    (secrets / "member.key_secret").write_text("no key at all")
    with pytest.raises(ControlError, match="holds no"):
        keys.load(secrets)
