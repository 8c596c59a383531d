"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.cli import main as main_module
from liver_slurm.cli.events import event_line
from liver_slurm.cli.main import COMMANDS
from liver_slurm.cli.run import parse_resize
from liver_slurm.parallel.layout import Layout
from liver_slurm.rundir import address
from liver_slurm.rundir.event_log import EventLog
from liver_slurm.rundir.events import CoordinatorStarted, Notice, RunEnded
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.slurm.parsing import JOB_FIELDS, SEPARATOR

TINY = str(Path(__file__).parents[3] / "configs" / "gpt-tiny.toml")
Liver = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("arguments", [["--help"], ["status"], ["list", "--json"]])
def test_answers_at_once_and_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from liver_slurm.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'megatron', 'numpy', 'zmq', 'submitit', 'jinja2', 'rich'}\n"
        "print(*(set(sys.modules) & heavy), file=sys.stderr)"
    )
    # Processor time, not wall time: other tests run beside this one.
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    after = os.times()
    assert done.stderr.strip() == ""
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 0.5


def test_help_names_every_command_that_is_there(liver: Liver) -> None:
    code, out, _ = liver("--help")
    assert code == 0
    for name in ("submit", "run", "status", "list", "events", "logs", "resize", "checkpoint", "cancel", "data"):
        assert f"    {name}" in out
        assert name in COMMANDS
        code, out_of_command, _ = liver(name, "--help")
        assert code == 0
        assert out_of_command.startswith(f"usage: liver-slurm {name}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("status", "99"),
        ("submit", "/nope.toml"),
        ("resize", "99", "--layout", "tp1pp1dp1"),
        ("resize", "99"),
        ("resize", "99", "--workers", "two"),
        ("cluster", "up", "--preempt-mode", "suspend"),
        ("events", "/tmp"),
        ("submit", TINY, "--set", "train.lr=-1"),
        ("run",),
        ("run", TINY, "--workers", "0"),
        ("run", TINY, "--workers", "2", "--standbys", "-1"),
        ("run", TINY, "--workers", "2", "--resize", "5:tp2pp1dp2"),
        ("run", TINY, "--workers", "2", "--resize", "500:tp1pp1dp1"),
        ("run", TINY, "--workers", "2", "--resize", "0:tp1pp1dp1"),
        ("run", TINY, "--workers", "2", "--set", "standby.policy=nobody"),
        ("submit", TINY, "--set", "standby.policy=nobody"),
        ("run", TINY, "--workers", "2", "--set", "stream.interface=ib7"),
        ("run", TINY, "--workers", "2", "--resize", "tp1pp1dp1"),
        ("run", TINY, "--workers", "2", "--resume", "nothing"),
        ("run", "--workers", "2"),
        ("submit", "--resume", "nothing"),
        ("data", "prepare", "/nope", "--output", "x"),
    ],
)
def test_bad_input_is_exit_code_2_and_makes_nothing(liver: Liver, arguments: tuple[str, ...], home: Path) -> None:
    code, out, err = liver(*arguments)
    assert (code, out) == (2, "")
    assert all(line.startswith("liver-slurm: error: ") for line in err.splitlines())
    assert list(home.iterdir()) == []


def test_a_transport_that_is_not_installed(liver: Liver, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nixl", None)
    code, out, err = liver("run", TINY, "--workers", "2", "--set", "stream.transport=ucx")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "pip install 'liver-slurm[ucx]'" in err
    assert list(home.iterdir()) == []


def test_each_mistake_is_a_line_on_stderr(liver: Liver) -> None:
    _, _, err = liver("submit", TINY, "--set", "train.lr=-1", "--set", "train.setps=3")
    assert err.splitlines() == [
        "liver-slurm: error: --set: train.setps: no such key; the nearest is train.steps",
        "liver-slurm: error: --set: train.lr: -1 is not allowed; allowed: a number > 0",
    ]


def test_a_command_line_that_argparse_refuses_is_one_line(liver: Liver) -> None:
    wrong = "one of the arguments --layout --workers is required"
    assert liver("resize", "99") == (2, "", f"liver-slurm: error: {wrong}; see liver-slurm resize --help\n")


def test_no_slurm_on_the_machine(liver: Liver, home: Path) -> None:
    code, out, err = liver("submit", TINY)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "on this machine" in err
    assert list(home.iterdir()) == []


def test_prepare_makes_a_run_for_sbatch_by_hand(liver: Liver, home: Path) -> None:
    code, out, err = liver("submit", TINY, "--set", "train.steps=5", "--prepare")
    assert (code, err) == (0, "")
    run_dir = Path(out.rstrip("\n"))
    assert (run_dir / "live.sh").read_text().startswith("#!/bin/bash\n")
    assert json.loads((run_dir / "run.json").read_text())["job_id"] == ""
    code, out, _ = liver("submit", TINY, "--prepare", "--json")
    assert code == 0
    assert json.loads(out)["job_id"] == ""
    assert liver("status", str(run_dir))[0] == 0
    code, _, err = liver("submit", TINY, "--prepare", "--set", "live.account=a\nb")
    assert code == 2
    assert "line break" in err
    assert len(list(run_dir.parent.iterdir())) == 2, "nothing of it is left behind"


def test_a_dry_run_prints_the_script_and_makes_nothing(liver: Liver, home: Path) -> None:
    code, out, _ = liver("submit", TINY, "--dry-run")
    assert code == 0
    assert out.startswith("#!")
    assert "#SBATCH hetjob" in out
    assert list(home.iterdir()) == []


def test_a_check_needs_no_cluster_and_makes_nothing(liver: Liver, home: Path) -> None:
    assert liver("check", TINY) == (0, "ok: gpt-tiny, 2 guaranteed workers and up to 4 more, 200 steps\n", "")
    code, out, err = liver("check", TINY, "--set", "train.lr=0", "--set", "live.time=x")
    assert (code, out, len(err.splitlines())) == (2, "", 2)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("command", [("check",), ("submit", "--dry-run"), ("submit", "--prepare")])
def test_what_needs_no_cluster_checks_the_policy(liver: Liver, home: Path, command: tuple[str, ...]) -> None:
    code, out, err = liver(command[0], TINY, *command[1:], "--set", "standby.policy=greddy")
    assert (code, out) == (2, "")
    assert "greddy" in err


@pytest.mark.parametrize("command", [("check",), ("submit", "--dry-run"), ("submit", "--prepare")])
def test_what_needs_no_cluster_checks_what_the_run_begins_with(
    liver: Liver, home: Path, command: tuple[str, ...]
) -> None:
    code, out, err = liver(command[0], TINY, *command[1:], "--set", "train.start_from=/nope")
    assert (code, out) == (2, "")
    assert "train.start_from: /nope cannot be used" in err


def test_a_dry_run_finds_that_there_is_nothing_to_resume(liver: Liver, run_dir: RunDir) -> None:
    code, out, err = liver("submit", "--resume", str(run_dir.path), "--dry-run")
    assert (code, out) == (2, "")
    assert "cannot be resumed: there is no complete checkpoint" in err


def test_a_run_without_a_checkpoint_can_write_one_only_while_it_goes_on(liver: Liver, ended: RunDir) -> None:
    code, _, err = liver("export", "hf", str(ended.path), "--to", "model")
    assert code == 2
    assert "has no checkpoint to export: there is no complete checkpoint" in err
    assert "asks for one" not in err
    EventLog(ended.events).append(CoordinatorStarted())
    address.write(ended.address_file, address.Address("127.0.0.1", 1, 1, os.getpid()))
    code, _, err = liver("export", "hf", str(ended.path), "--to", "model")
    assert f"; `liver-slurm checkpoint {ended.path.name}` asks for one" in err


def test_submit_names_keys_of_the_site_file_that_the_job_file_overrides(
    liver: Liver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site.toml"
    site.write_text('[live]\npartition = "gpu"\naccount = "physics"\n')
    monkeypatch.setenv("LIVER_SITE", str(site))
    code, _, err = liver("submit", TINY, "--dry-run")
    assert (code, err) == (0, "gpt-tiny.toml overrides the site file: live.partition\n")


def test_submitting(liver: Liver, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from liver_slurm.scheduler.slurm import submit
    from liver_slurm.scheduler.slurm.client import CommandClient

    monkeypatch.setattr(submit, "check_submittable", lambda config, client: [])
    monkeypatch.setattr(CommandClient, "config", lambda self: {})
    monkeypatch.setattr(CommandClient, "submit", lambda self, script, arguments=(): "77")
    code, out, err = liver("submit", TINY, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["job_id"] == "77"
    assert json.loads(Path(document["run_dir"], "run.json").read_text())["job_id"] == "77"
    code, out, _ = liver("submit", TINY, "--set", "job.name=other")
    assert code == 0
    assert "Submitted job 77" in out
    assert "liver-slurm status 77" in out


def test_a_refused_submission_leaves_nothing_behind(liver: Liver, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from liver_slurm.base.errors import ClusterError
    from liver_slurm.scheduler.slurm import submit
    from liver_slurm.scheduler.slurm.client import CommandClient

    def refuse(*_: object) -> str:
        raise ClusterError("sbatch: no such account")

    monkeypatch.setattr(submit, "check_submittable", lambda config, client: [])
    monkeypatch.setattr(CommandClient, "config", lambda self: {})
    monkeypatch.setattr(CommandClient, "submit", refuse)
    code, out, err = liver("submit", TINY)
    assert (code, out, err) == (1, "", "liver-slurm: error: sbatch: no such account\n")
    assert list((home / "runs").iterdir()) == []
    monkeypatch.setattr(
        submit, "check_submittable", lambda config, client: ["live.partition: no such", "standby: no such"]
    )
    code, _, err = liver("submit", TINY)
    assert (code, len(err.splitlines())) == (2, 2)


def test_status_from_files(liver: Liver, run_dir: RunDir) -> None:
    code, out, _ = liver("status", "gpt-tiny", "--json")
    document = json.loads(out)
    assert code == 0
    assert {
        "state": "training",
        "step": 12,
        "generation": 1,
        "layout": "tp1pp1dp3",
        "source": "files",
    }.items() <= document.items()
    assert len(document["workers"]) == 3
    assert document["standbys"] == []
    assert document["last_reconfiguration"]["pause_s"] == 0.25
    assert "has not started" in document["reason"] or document["reason"] == "a standby is warm"
    code, out, _ = liver("status", str(run_dir.path))
    assert "tp1pp1dp2 → tp1pp1dp3 at step 10, training waited 250 ms, 1.0 MiB" in out
    assert "5.3800" in out
    assert "throughput:  1,365 tokens/s · 266.7 TFLOP/s a GPU · MFU 0.267" in out


def test_status_of_an_older_run_or_on_cpus_tells_tokens_only(liver: Liver, run_dir: RunDir) -> None:
    lines = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
    rates = ("tokens_per_s", "tflops", "mfu")
    old = [{key: value for key, value in line.items() if key not in rates} for line in lines]
    run_dir.metrics.write_text("".join(json.dumps(line) + "\n" for line in old))
    document = json.loads(liver("status", str(run_dir.path), "--json")[1])
    assert {key for key in rates if key in document} == {"tokens_per_s"}
    out = liver("status", str(run_dir.path))[1]
    assert "throughput:  1,365 tokens/s\n" in out
    run_dir.metrics.write_text("")
    assert "throughput" not in liver("status", str(run_dir.path))[1]


def test_a_run_whose_coordinator_is_gone_is_lost(liver: Liver, run_dir: RunDir) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    run_dir.address_file.write_text(json.dumps({"host": "127.0.0.1", "port": 1, "epoch": 1, "pid": gone.pid}))
    code, out, _ = liver("status", "gpt-tiny", "--json")
    document = json.loads(out)
    assert (code, document["state"]) == (0, "lost")
    assert f"process {gone.pid}, is gone" in document["reason"]
    assert "is gone" in document["coordinator"]
    _, out, _ = liver("list", "--json")
    assert json.loads(out)[0]["state"] == "lost"


def test_list_and_status_without_a_run(liver: Liver, run_dir: RunDir) -> None:
    for arguments in (["list"], ["status"]):
        code, out, _ = liver(*arguments)
        assert code == 0
        assert "gpt-tiny" in out
        assert "12/200" in out
        assert "training" in out
    _, out, _ = liver("status", "--json")
    assert [document["run_dir"] for document in json.loads(out)] == [str(run_dir.path)]


def test_a_slurm_job_that_slurm_does_not_know(
    liver: Liver, run_dir: RunDir, fake_slurm: Callable[[str, str], None]
) -> None:
    from liver_slurm.rundir.registry import record_run

    record_run(run_dir, "41")
    fake_slurm("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    _, out, _ = liver("status", "41", "--json")
    assert json.loads(out)["state"] == "lost"
    assert "unknown to Slurm" in json.loads(out)["reason"]
    fields = ["41+0", "CANCELLED", *["N/A"] * (len(JOB_FIELDS) - 2)]
    fake_slurm("squeue", f"printf '%s{SEPARATOR}' {' '.join(fields)}; echo")
    _, out, _ = liver("status", "41", "--json")
    assert (json.loads(out)["state"], "ended CANCELLED" in json.loads(out)["reason"]) == ("cancelled", True)
    fake_slurm("squeue", "echo 'slurm_load_jobs error: Access denied' >&2; exit 1")
    _, out, _ = liver("list")
    assert "training?" in out


def test_events(liver: Liver, ended: RunDir) -> None:
    _, out, _ = liver("events", "gpt-tiny", "--json")
    assert [event["event"] for event in json.loads(out)][-1] == "run_ended"
    _, out, _ = liver("events", "gpt-tiny")
    assert 'reason="a standby is warm"' in out
    assert "members=live-0,live-1,standby-1-0" in out
    _, out, _ = liver("events", "gpt-tiny", "--json", "--follow")
    assert len([json.loads(line) for line in out.splitlines()]) == 6


def test_following_events_until_the_end(liver: Liver, run_dir: RunDir) -> None:
    def finish() -> None:
        log = EventLog(run_dir.events)
        log.append(Notice(generation=1, worker="standby-1-0", reason="SIGTERM"))
        log.append(RunEnded(generation=1, outcome="cancelled", exit_code=3, reason="enough", step=13))

    later = threading.Timer(0.3, finish)
    later.start()
    code, out, _ = liver("events", "gpt-tiny", "--follow")
    later.join()
    assert code == 0
    assert "notice" in out
    assert out.rstrip().endswith("step=13")


def test_logs(liver: Liver, ended: RunDir) -> None:
    code, _, err = liver("logs", "gpt-tiny")
    assert (code, "there is no log of coordinator" in err, "none yet" in err) == (2, True, True)
    (ended.logs / "coordinator.log").write_text("hello\n")
    ended.worker_log("live-0").write_bytes(b"\xff worker\n")
    assert liver("logs", "gpt-tiny") == (0, "hello\n", "")
    assert liver("logs", "gpt-tiny", "--follow") == (0, "hello\n", "")
    code, _, err = liver("logs", "gpt-tiny", "--worker", "live-9")
    assert "there are: coordinator, live-0" in err
    code, _, err = liver("logs", "gpt-tiny", "--worker", "../run")
    assert code == 2


def test_asking_a_run_that_is_over(liver: Liver, ended: RunDir) -> None:
    code, out, _ = liver("cancel", "gpt-tiny", "--json")
    assert (code, json.loads(out)["how"]) == (0, "it is over already: finished")
    code, out, err = liver("resize", "gpt-tiny", "--layout", "tp1pp1dp1")
    assert (code, out) == (2, "")
    assert "is over: finished" in err
    assert liver("checkpoint", "gpt-tiny")[0] == 2


def test_cancelling_where_nobody_answers(liver: Liver, run_dir: RunDir) -> None:
    code, _, err = liver("cancel", "gpt-tiny")
    assert code == 1
    assert "cancel it where it was started" in err
    arguments = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)", "liver_slurm.worker"]
    worker = subprocess.Popen([*arguments, str(run_dir.path)], stdout=subprocess.PIPE)
    assert worker.stdout is not None
    worker.stdout.readline()
    bystander = subprocess.Popen([*arguments, str(run_dir.path) + "-other"], stdout=subprocess.PIPE)
    try:
        code, out, _ = liver("cancel", "gpt-tiny")
        assert code == 0
        assert "told 1 of its processes to end" in out
        assert worker.wait(timeout=10) != 0
        assert bystander.poll() is None
    finally:
        for process in (worker, bystander):
            process.kill()
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]


def test_cancelling_a_run_that_slurm_has_forgotten(
    liver: Liver, run_dir: RunDir, fake_slurm: Callable[[str, str], None]
) -> None:
    from liver_slurm.rundir.registry import record_run

    record_run(run_dir, "41")
    fake_slurm("squeue", "exit 0")
    code, out, _ = liver("cancel", "41")
    assert (code, "no job of it was left" in out) == (0, True)
    assert json.loads(liver("status", "41", "--json")[1])["state"] == "cancelled"


def test_data_prepare(liver: Liver, home: Path) -> None:
    (home / "a.txt").write_text("hello")
    code, out, _ = liver("data", "prepare", "a.txt", "--output", "made", "--json")
    assert code == 0
    document = json.loads(out)
    assert document == {"prefix": str(home / "made"), "documents": 1, "tokens": 6, "vocab_size": 257}
    assert sorted(file.name for file in home.iterdir()) == ["a.txt", "made.bin", "made.idx"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--workers", "99999999"), "--workers: 99999999 is not allowed; allowed: 1 to 4096"),
        (("--workers", "0"), "--workers: 0 is not allowed"),
        (("--workers", "7"), "--workers: 7 are more than any layout of this job uses; allowed: 1 to 6"),
        (("--workers", "2", "--standbys", "99999999"), "--standbys: 99999999 is not allowed"),
        (("--set", "live.component.0.nodes=99999999"), "--workers: 99999999 is not allowed"),
        (("--workers", "abc"), "argument --workers: 'abc' is no whole number"),
    ],
)
def test_numbers_of_workers_that_a_run_refuses(liver: Liver, home: Path, arguments: tuple[str, ...], says: str) -> None:
    code, out, err = liver("run", TINY, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("evnts",), "there is no command 'evnts'; the nearest is events; see liver-slurm --help"),
        (("data", "prpare"), "there is no verb 'prpare'; the nearest is prepare; see liver-slurm data --help"),
        (
            ("export", "xyz"),
            "there is no kind 'xyz'; allowed: tensorboard, wandb, hf, megatron; see liver-slurm export",
        ),
        (("completion",), "the following arguments are required: WHAT; see liver-slurm completion --help"),
        (("top", "--interval", "x"), "argument --interval: 'x' is no number; see liver-slurm top --help"),
        (("bench", "policies", "--seed", "1.5"), "argument --seed: '1.5' is no whole number; see"),
    ],
)
def test_what_argparse_refuses_is_said_in_our_words(liver: Liver, arguments: tuple[str, ...], line: str) -> None:
    code, out, err = liver(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"liver-slurm: error: {line}")


@pytest.mark.parametrize(("redirection", "code"), [(">/dev/full", 1), (">&-", 0)])
def test_an_output_that_cannot_be_written(ended: RunDir, redirection: str, code: int) -> None:
    command = f"{sys.executable} -m liver_slurm status {ended.path} {redirection}"
    done = subprocess.run(["/bin/sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    said = "liver-slurm: error: the output cannot be written: No space left on device\n" if code else ""
    assert (done.returncode, done.stderr) == (code, said)


def test_numbers_by_partition_are_told_without_quotes() -> None:
    event = {"time": 0.0, "event": "capacity_changed", "generation": 0, "workers": {"": 2}}
    assert event_line(event).endswith("capacity_changed         workers=2")
    assert event_line({**event, "workers": {"a": 1, "b": 3}}).endswith(" workers=a:1,b:3")
    assert event_line({**event, "workers": {}}).endswith(" workers=none")


def test_data_prepare_writes_over_nothing(liver: Liver, home: Path) -> None:
    (home / "a.txt").write_text("hello")
    (home / "made.idx").write_text("precious")
    code, _, err = liver("data", "prepare", "a.txt", "--output", "made")
    assert (code, err.count("\n")) == (2, 1)
    assert f"--output made: {home / 'made.idx'} is there already" in err
    assert (home / "made.idx").read_text() == "precious"
    assert not (home / "made.bin").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("a.txt", "--output", "made", "--eod", "99999999999"), "--eod: 99999999999 is no token; allowed: 0 to 256"),
        (("a.txt", "--output", "made", "--eod", "257"), "--eod: 257 is no token"),
        (("a.txt", "--output", ""), "--output '': not a prefix"),
        (("a.txt", "--output", "made", "--tokenizer", "nope"), "error: --tokenizer: nope is not a tokenizer.json"),
        (("bad.txt", "--output", "made"), "error: FILES: "),
    ],
)
def test_what_data_prepare_refuses(liver: Liver, home: Path, arguments: tuple[str, ...], says: str) -> None:
    (home / "a.txt").write_text("hello")
    (home / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    code, out, err = liver("data", "prepare", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert not (home / "made.bin").exists()


def test_resize_arguments() -> None:
    assert parse_resize("50:tp2pp1dp2") == (50, Layout(2, 1, 2))
    for text in ("50", "x:tp1pp1dp1", "50:tp0pp1dp1", "-1:tp1pp1dp1"):
        with pytest.raises(BadInput, match="--resize"):
            parse_resize(text)


def test_interrupts_and_closed_pipes(liver: Liver, ended: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        @staticmethod
        def add_parser(subparsers: object) -> None:
            subparsers.add_parser("list")  # type: ignore[attr-defined]

        @staticmethod
        def run(_: object) -> int:
            raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "_module", lambda name: Module)
    assert liver("list") == (130, "", "liver-slurm: interrupted\n")
    reader = subprocess.Popen(
        [sys.executable, "-m", "liver_slurm.cli.main", "events", str(ended.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert reader.stdout is not None
    reader.stdout.close()
    assert reader.stderr is not None
    assert reader.stderr.read() == b""
    assert reader.wait(timeout=30) == 0
    reader.stderr.close()


def test_waiting_has_a_deadline(run_dir: RunDir) -> None:
    from liver_slurm import find
    from liver_slurm.base.errors import LiverError

    start = time.monotonic()
    with pytest.raises(LiverError, match=r"is not over after 0\.2 s"):
        find(run_dir.path).wait(timeout=0.2, poll=0.05)
    assert time.monotonic() - start < 5
