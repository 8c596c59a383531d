"""``liver-slurm report``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from liver_slurm.rundir.paths import RunDir

Liver = Callable[..., tuple[int, str, str]]


def test_without_an_option_the_page_is_in_the_run_directory(liver: Liver, run_dir: RunDir) -> None:
    code, out, err = liver("report", str(run_dir.path))
    assert (code, err) == (0, "")
    path = Path(out.strip())
    assert path == run_dir.path / "report.html"
    _, out, _ = liver("report", str(run_dir.path), "--json")
    assert json.loads(out) == {"html": str(path)}
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert "The run grew once" in path.read_text()


def test_all_three_files(liver: Liver, run_dir: RunDir, tmp_path: Path) -> None:
    page, picture, trace = tmp_path / "run.html", tmp_path / "run.png", tmp_path / "run.json"
    code, out, _ = liver(
        "report", str(run_dir.path), "--html", str(page), "--png", str(picture), "--trace", str(trace),
        "--undisturbed", str(run_dir.path),
    )  # fmt: skip
    assert code == 0
    assert out.split() == [str(page), str(picture), str(trace)]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads(trace.read_text())["traceEvents"]
    assert "undisturbed" in page.read_text()
    assert not (run_dir.path / "report.html").exists()


def test_a_file_that_cannot_be_written_is_one_line(liver: Liver, run_dir: RunDir, tmp_path: Path) -> None:
    code, out, err = liver("report", str(run_dir.path), "--html", str(tmp_path / "no" / "such" / "run.html"))
    assert (code, out) == (2, "")
    assert "cannot be written" in err
    assert err.count("\n") == 1


def test_a_run_that_is_not_there_is_one_line(liver: Liver) -> None:
    code, _, err = liver("report", "nowhere")
    assert code == 2
    assert err.count("\n") == 1


def test_other_commands_do_not_import_what_draws() -> None:
    script = (
        "import sys; from liver_slurm.cli import goodput, report; from liver_slurm.cli.main import full_parser\n"
        "full_parser(); sys.exit('matplotlib' in sys.modules or 'liver_slurm.report.figures' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
