"""Code in the documents: the command line knows the commands, Python resolves, job files load, make targets exist."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import documents
import pytest
from documents import CodeBlock

from liver_slurm.chaos.schedule import gap
from liver_slurm.cli.chaos import _program
from liver_slurm.cli.main import full_parser
from liver_slurm.config.load import load_job

SHELL = [block for block in documents.code_blocks() if block.info.split()[:1] == ["sh"]]
PYTHON = [block for block in documents.code_blocks() if block.info == "python"]
TOML = [block for block in documents.code_blocks() if block.info == "toml"]
RUN = [block for block in SHELL if "runs" in block.info.split()]


def name(block: CodeBlock) -> str:
    return f"{block.document.name}:{block.line}"


def commands(text: str) -> list[list[str]]:
    """Return the arguments of each ``liver-slurm`` in shell lines: comments, variables and substitutions left out."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.findall(r"liver-slurm [^|)\"]*", line):
            words = shlex.split(part, comments=True)
            found.append(words[1 : words.index(">") if ">" in words else None])
    return found


def unresolved(text: str) -> list[str]:
    """Return names that a block of Python uses and neither defines, imports, nor finds in what it imports."""
    tree = ast.parse(text)
    modules: dict[str, object] = {}
    bound = set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules[alias.asname or alias.name] = importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            source = importlib.import_module(node.module or "")
            modules |= {alias.asname or alias.name: getattr(source, alias.name, None) for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
    wrong = [imported for imported, value in modules.items() if value is None]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in bound | set(modules):
            wrong.append(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = node.value.id
            if owner in modules and not hasattr(modules[owner], node.attr):
                wrong.append(f"{owner}.{node.attr}")
    return wrong


@pytest.mark.parametrize("block", SHELL, ids=name)
def test_the_command_line_knows_each_command(block: CodeBlock) -> None:
    parser = full_parser()
    for arguments in commands(block.text):
        if "--help" not in arguments:
            parser.parse_args(arguments)


CHAOS = [arguments for block in SHELL for arguments in commands(block.text) if arguments[:1] == ["chaos"]]


@pytest.mark.parametrize("arguments", CHAOS, ids=" ".join)
def test_chaos_strikes_within_its_duration(arguments: list[str]) -> None:
    program, duration = _program(full_parser().parse_args(arguments))
    assert gap(program, 0) < duration


@pytest.mark.timeout(600)  # a plan imports megatron-core, which takes long on a busy machine
@pytest.mark.parametrize("block", RUN, ids=name)
def test_marked_commands_run(block: CodeBlock, tmp_path: Path) -> None:
    assert commands(block.text)
    for arguments in commands(block.text):
        command = [sys.executable, "-m", "liver_slurm.cli.main", *arguments]
        done = subprocess.run(command, cwd=documents.ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), f"{arguments}: {done.stderr}"
        assert done.stdout


@pytest.mark.parametrize("block", PYTHON, ids=name)
def test_python_resolves(block: CodeBlock) -> None:
    assert unresolved(block.text) == []


@pytest.mark.parametrize("block", TOML, ids=name)
def test_job_files_load(block: CodeBlock, tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(block.text)
    load_job(file, files=False)


@pytest.mark.parametrize("document", documents.documents(), ids=lambda path: path.name)
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (documents.ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(r"(?:^ {4}|`)make ([\w-]+)", document.read_text(), flags=re.MULTILINE)
    assert set(named) <= targets


def test_there_is_something_of_each_kind() -> None:
    assert all((SHELL, PYTHON, TOML, RUN, CHAOS))


def test_what_does_not_resolve_is_found() -> None:
    text = "import os\nfrom liver_slurm import nowhere\nprint(os.nothing, unknown)\n"
    assert sorted(unresolved(text)) == ["nowhere", "os.nothing", "unknown"]


def test_commands_are_taken_out_of_shell_lines() -> None:
    text = 'eval "$(liver-slurm cluster env)"\nliver-slurm submit job.toml --dry-run > live.sh  # not run\nsinfo\n'
    assert commands(text) == [["cluster", "env"], ["submit", "job.toml", "--dry-run"]]
