"""Small programs that are interrupted: each is run as a command, says "ready", and gets a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from interrupting import LINES, default_signals

from liver_slurm.base import interrupts

BEFORE = """\
import ctypes, os, subprocess, sys, time
from pathlib import Path
from liver_slurm.base import interrupts

def ready():
    print("ready", flush=True)

def work():
"""
AFTER = """
interrupts.run_command(work)
"""
PATIENCE = 60.0


class Program:
    """A program that runs, and what it has printed once it has ended."""

    def __init__(self, body: str, folder: Path, prepare: Callable[[], None] = default_signals) -> None:
        source = BEFORE + textwrap.indent(textwrap.dedent(body), "    ") + AFTER
        self.process = subprocess.Popen(
            [sys.executable, "-c", source],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            start_new_session=True,
            preexec_fn=prepare,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def send(self, number: signal.Signals = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Exit code, the rest of stdout, and stderr."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


@pytest.mark.parametrize("number", LINES)
def test_a_command_ends_wherever_it_is(number: signal.Signals, tmp_path: Path) -> None:
    waits_in_python = """
        ready()
        try:
            while True:
                time.sleep(0.01)
        except BaseException:
            print("nothing is raised")
    """
    waits_in_c = """
        ready()
        ctypes.CDLL(None).poll(None, 0, 600_000), ctypes.CDLL(None).poll(None, 0, 600_000)
    """
    for body in (waits_in_python, waits_in_c):
        program = Program(body, tmp_path)
        program.send(number)
        assert program.end() == (128 + number, "", LINES[number] + "\n")


def test_what_a_command_started_and_made_is_gone(tmp_path: Path) -> None:
    program = Program(
        """
        with interrupts.temporary_folder("made-", Path.cwd()) as folder:
            (folder / "file").write_text("")
            child = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(2, signal.SIG_IGN);"
            orphan = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)"
            code = f"import subprocess, sys; {orphan}"
            subprocess.run([sys.executable, "-c", code])
            ready()
            subprocess.run([sys.executable, "-c", f"{child} import time; time.sleep(600)"])
        """,
        tmp_path,
    )
    root = psutil.Process(program.process.pid)
    deadline = time.monotonic() + PATIENCE
    while len(children := root.children()) < 2:  # the orphan was adopted
        assert time.monotonic() < deadline
        time.sleep(0.01)
    program.send()
    assert program.end() == (130, "", "liver-slurm: interrupted\n")
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not list(tmp_path.iterdir())


def test_an_orderly_block_is_interrupted_once(tmp_path: Path) -> None:
    program = Program(
        """
        with interrupts.orderly():
            try:
                ready()
                time.sleep(600)
            finally:
                ready()
                time.sleep(0.3)
                print("undone", interrupts.interrupted())
        """,
        tmp_path,
    )
    program.send()
    assert program.process.stdout is not None
    assert program.process.stdout.readline() == "ready\n"
    program.send(signal.SIGTERM)
    assert program.end() == (130, "undone True\n", "liver-slurm: interrupted\n")


def test_an_orderly_block_that_does_not_end_is_ended(tmp_path: Path) -> None:
    stubborn = """
        with interrupts.orderly():
            while True:
                try:
                    ready()
                    time.sleep(600)
                except KeyboardInterrupt:
                    print("swallowed", flush=True)
    """
    began = time.monotonic()
    program = Program(stubborn, tmp_path)
    program.send()
    assert program.end() == (130, "swallowed\nready\n", "liver-slurm: interrupted\n")
    assert time.monotonic() - began >= interrupts.PATIENCE


def test_another_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    program = Program(
        """
        interrupts.PATIENCE = 600.0
        with interrupts.orderly():
            try:
                ready()
                time.sleep(600)
            finally:
                time.sleep(interrupts.SAME_PRESS)
                ready()
                time.sleep(600)
        """,
        tmp_path,
    )
    program.send()
    assert program.process.stdout is not None
    assert program.process.stdout.readline() == "ready\n"
    program.send()
    assert program.end() == (130, "", "liver-slurm: interrupted\n")


def test_an_interrupt_that_a_destructor_swallows_is_no_traceback(tmp_path: Path) -> None:
    program = Program(
        """
        class Slow:
            def __del__(self):
                ready()
                time.sleep(600)

        with interrupts.orderly():
            slow = Slow()
            del slow
            time.sleep(600)
        """,
        tmp_path,
    )
    program.send()
    assert program.end() == (130, "", "liver-slurm: interrupted\n")


def test_a_command_that_was_started_with_sigint_ignored_goes_on(tmp_path: Path) -> None:
    def as_nohup_does() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    program = Program(
        """
        ready()
        time.sleep(0.5)
        print("done")
        return 7
        """,
        tmp_path,
        as_nohup_does,
    )
    program.send()
    assert program.end() == (7, "done\n", "")


def test_a_command_whose_stderr_nobody_reads_ends_all_the_same(tmp_path: Path) -> None:
    program = Program("ready()\ntime.sleep(600)\n", tmp_path)
    assert program.process.stderr is not None
    program.process.stderr.close()
    program.send()
    assert program.process.wait(PATIENCE) == 130


def test_an_orderly_block_of_another_program_leaves_its_handlers() -> None:
    before = [signal.getsignal(number) for number in LINES]

    def work() -> None:
        with interrupts.orderly():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(PATIENCE)

    with pytest.raises(KeyboardInterrupt) as raised:
        work()
    assert interrupts.number_of(raised.value) == signal.SIGTERM
    assert [signal.getsignal(number) for number in LINES] == before
    assert not interrupts.interrupted()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_temporary_folders(fails: bool, keep: bool, tmp_path: Path) -> None:
    try:
        with interrupts.temporary_folder("made-", tmp_path, keep_failed=keep) as folder:
            assert folder.is_dir()
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert folder.exists() == (fails and keep)
