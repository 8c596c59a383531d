"""Make the pictures of the tutorial: parts of the report of a demo, as its reader sees them in Chromium.

``make pictures``, or of a demo that was made with ``make demo RUNS=FOLDER``: ``python docs/pictures.py FOLDER``.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from liver_slurm.report.write import read_report, write_html
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import read_run_info

PICTURES = Path(__file__).resolve().parent / "pictures"
LARGEST = 200_000
"""Bytes of a picture at most, as they are in the repository."""
WIDTH = 1240
VIEWS = {
    "report-changes.png": ("header", 620),
    "report-workers.png": ("#details", 740),
    "report-table.png": ("#changes", 410),
}
"""Where in the page each picture begins, and its height."""
AROUND = """
<body style="margin: 0; overflow: hidden">
<iframe id="page" src="report.html" style="width: WIDTHpx; height: 4000px; border: 0"></iframe>
<script>
const frame = document.getElementById("page");
frame.onload = () => {
  const top = frame.contentDocument.querySelector("PART").getBoundingClientRect().top;
  frame.style.marginTop = `${12 - Math.max(12, top)}px`;
};
</script>
"""
"""A page that shows a part of the report; Chromium's headless screenshots do not scroll."""


def browser() -> str:
    """Return Chromium's path.

    Raises:
        SystemExit: there is none.
    """
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise SystemExit("pictures: no Chromium here: apt-get install chromium")
    return found


def both_runs(folder: Path) -> tuple[RunDir, RunDir]:
    """Return the demo's run on Slurm and the undisturbed one, from the folder that ``--runs`` named.

    Raises:
        SystemExit: they are not there.
    """
    runs = {bool(read_run_info(run).job_id): run for run in map(RunDir, sorted(folder.iterdir()))}
    if set(runs) != {True, False}:
        raise SystemExit(f"pictures: {folder} has not the two runs of a demo; make them: make demo RUNS={folder}")
    return runs[True], runs[False]


def photograph(part: str, height: int, scratch: Path) -> bytes:
    """Return a PNG of a part of the report in ``scratch``, in few colours."""
    shot, around = scratch / "shot.png", scratch / "around.html"
    around.write_text(AROUND.replace("WIDTH", str(WIDTH)).replace("PART", part))
    subprocess.run(
        [
            browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--allow-file-access-from-files", f"--user-data-dir={scratch / 'profile'}",
            "--blink-settings=preferredColorScheme=1", f"--window-size={WIDTH},{height}",
            f"--screenshot={shot}", around.as_uri(),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    stream = io.BytesIO()
    Image.open(shot).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def main(arguments: list[str]) -> int:
    """Write all pictures."""
    if len(arguments) != 1:
        raise SystemExit("pictures: one folder, in which the runs of a demo are")
    elastic, undisturbed = both_runs(Path(arguments[0]).absolute())
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_html(read_report(elastic, undisturbed), scratch / "report.html")
        for picture, (part, height) in VIEWS.items():
            content = photograph(part, height, scratch)
            if len(content) > LARGEST:
                raise SystemExit(f"pictures: {picture} has {len(content):,} bytes, more than {LARGEST:,}")
            (PICTURES / picture).write_bytes(content)
            print(f"{PICTURES / picture}: {len(content):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
