"""README.md: short, and the pages that it promises are there."""

from __future__ import annotations

import re

from documents import ROOT, generate

README = (ROOT / "README.md").read_text()


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 200


def test_it_names_every_page() -> None:
    pages = {path.name for path in generate.documents() if path.parent == ROOT / "docs"}
    assert pages == set(re.findall(r"\(docs/([\w-]+\.md)\)", README))


def test_the_licence_is_that_of_the_package() -> None:
    (licence,) = re.findall(r'^license = "(.+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert f"## Licence\n\n{licence}." in README


def test_environment_variables_are_documented() -> None:
    """Every ``LIVER_…`` that product, plugins or batch scripts read or set has a place in docs/operations.md."""
    folders = (ROOT / "liver_slurm", ROOT / "plugins", ROOT / "sbatch", ROOT / ".ci")
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    found = {name for path in files for name in re.findall(r"\bLIVER_[A-Z_]+\b", path.read_text())}
    assert len(found) > 5
    assert found <= set(re.findall(r"`(LIVER_[A-Z_]+)`", (ROOT / "docs" / "operations.md").read_text()))
