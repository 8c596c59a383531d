"""Help that can be read like a manual page, and shell completion."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from liver_slurm.cli import main
from liver_slurm.cli.common import first_sentence
from liver_slurm.cli.main import COMMANDS, full_parser
from liver_slurm.rundir.paths import RunDir

TINY = str(Path(__file__).parents[3] / "configs" / "gpt-tiny.toml")
SCRIPTS_AND_STREAMS = {"completion", "logs", "cluster env"}
"""Commands whose answer is for a shell, or is a file as it is."""
WIDTH = 120


def test_every_command_of_the_table_is_there() -> None:
    modules = {path.stem.removesuffix("_") for path in Path(main.__file__).parent.glob("[!_]*.py")}
    assert set(COMMANDS) == modules - {"common", "frame", "main", "progress"}


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_little(option: str) -> None:
    script = (
        "import sys; from liver_slurm.cli.main import main\n"
        f"try: main([{option!r}])\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'pydantic', 'torch', 'zmq', 'numpy'} & set(sys.modules)\n"
        "modules = [name for name in sys.modules if name.startswith('liver_slurm.cli.')]\n"
        "sys.exit(0 if (code, heavy, modules) == (0, set(), ['liver_slurm.cli.main']) else f'{code} {heavy} {modules}')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "liver-slurm" in done.stdout


def walk(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in inner:
        for word, one in action.choices.items():
            yield from walk(one, f"{name} {word}".strip())
    if name:
        yield name, parser


PARSERS = dict(walk(full_parser()))


def test_a_first_sentence_ends_with_its_full_stop_only() -> None:
    assert first_sentence("Import a model, as config.json has\nit. More") == "Import a model, as config.json has it"
    assert first_sentence("No full stop") == "No full stop"


def test_the_commands_are_told_whole(liver: Callable[..., tuple[int, str, str]]) -> None:
    assert "Hugging Face's libraries or Megatron-LM" in " ".join(liver("--help")[1].split())
    assert "as config.json" in " ".join(liver("import", "--help")[1].split()).partition("options:")[0]


@pytest.mark.parametrize("name", PARSERS)
def test_every_command_explains_itself(name: str) -> None:
    parser = PARSERS[name]
    assert parser.description
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            assert action.help, f"{name}: {action.option_strings or action.dest} has no help"
    text = parser.format_help()
    assert "examples:\n" in text
    assert f"liver-slurm {name}" in (parser.epilog or "")
    assert "exit codes:\n" in text
    assert max(map(len, text.splitlines())) <= WIDTH


@pytest.mark.parametrize("name", PARSERS)
def test_every_answer_can_be_json(name: str) -> None:
    parser = PARSERS[name]
    if name in SCRIPTS_AND_STREAMS or any(isinstance(one, argparse._SubParsersAction) for one in parser._actions):
        return
    assert "--json" in parser._option_string_actions


def test_see_also_names_commands() -> None:
    for name, parser in PARSERS.items():
        _, _, after = (parser.epilog or "").partition("see also:\n")
        for other in after.strip().split(", ") if after else ():
            assert other.removeprefix("liver-slurm ") in COMMANDS, name


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_scripts_are_shell(shell: str, liver: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    code, out, _ = liver("completion", shell)
    assert code == 0
    for word in ("submit", "--dry-run", "completion runs"):
        assert word in out
    program = shutil.which(shell, path="/usr/bin:/bin:/usr/local/bin")
    if program is None:
        return
    (tmp_path / "script").write_text(out)
    subprocess.run([program, "-n", str(tmp_path / "script")], check=True)


def test_bash_completes_commands_runs_and_layouts(
    liver: Callable[..., tuple[int, str, str]],
    run_dir: RunDir,
    fake_slurm: Callable[[str, str], None],
    tmp_path: Path,
) -> None:
    pytest.importorskip("shtab")
    _, out, _ = liver("completion", "bash")
    (tmp_path / "script").write_text(out)
    words = tmp_path / "words"
    words.write_text(f"{run_dir.path}\n")
    fake_slurm("liver-slurm", f'[ "$2" = runs ] && cat {words} || echo "tp1pp1dp1 for $@"')
    ask = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_liver_slurm; echo "${COMPREPLY[@]}"'

    def complete(*line: str) -> list[str]:
        done = subprocess.run(
            ["/bin/bash", "-c", ask, "bash", str(tmp_path / "script"), "liver-slurm", *line],
            capture_output=True,
            text=True,
            check=True,
            env=dict(os.environ),
        )
        return done.stdout.split()

    assert "cancel" in complete("can")
    assert str(run_dir.path) in complete("status", "")
    assert "tp1pp1dp1" in complete("plan", TINY, "--from", "tp1")


def test_words_to_complete_with(liver: Callable[..., tuple[int, str, str]], run_dir: RunDir) -> None:
    assert liver("completion", "runs") == (0, f"{run_dir.path}\n", "")
    code, out, _ = liver("completion", "layouts", "liver-slurm", "plan", TINY, "--from", "")
    assert (code, out.split()[:2]) == (0, ["tp1pp1dp1", "tp1pp1dp2"])
    _, of_run, _ = liver("completion", "layouts", "liver-slurm", "resize", str(run_dir.path), "--layout")
    assert of_run == out
    assert liver("completion", "layouts", "liver-slurm", "plan", "nothing.toml") == (0, "", "")


def test_the_reference_as_json(liver: Callable[..., tuple[int, str, str]]) -> None:
    _, out, _ = liver("config", "reference", "--json")
    keys = {key["name"]: key for key in json.loads(out)}
    assert keys["train.lr"] == {
        "name": "train.lr",
        "text": "Peak learning rate.",
        "allowed": "a number > 0",
        "default": 0.0003,
        "required": False,
    }


def test_doctor_without_slurm(liver: Callable[..., tuple[int, str, str]], home: Path) -> None:
    code, out, _ = liver("doctor", TINY, "--json")
    found = {(one["check"], one["status"]) for one in json.loads(out)["findings"]}
    assert {("slurm", "warn"), ("directory", "ok"), ("packages", "ok")} <= found
    assert code == 0, out
    assert list(home.iterdir()) == []
    code, out, _ = liver("doctor", "--set", "job.run_root=/")
    assert (code, out) == (2, "")
    assert liver("doctor", "--wait", "0")[0] == 2
    assert liver("doctor", TINY, "--set", "train.lr=-1")[0] == 2
