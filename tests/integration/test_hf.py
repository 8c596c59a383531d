"""Models of transformers, imported: the same logits in every layout, and the same training through live changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hf_models import MODELS, SEQUENCE, VOCABULARY, save_model
from safetensors.torch import load_file

from liver_slurm.config.layouts import padded_vocabulary
from liver_slurm.engine.hf.importing import import_model
from liver_slurm.engine.hf.weights import SINGLE
from liver_slurm.parallel.layout import Layout

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("hf_worker.py")
PATIENCE = 600.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each model: ``hf``, ``imported``, tokens, and the logits that transformers gives them."""
    folder = tmp_path_factory.mktemp("models")
    for name in MODELS:
        here = folder / name
        model = save_model(name, here / "hf", shard="60KB")
        import_model(here / "hf", here / "imported")
        tokens = torch.randint(VOCABULARY, (2, SEQUENCE), generator=torch.Generator().manual_seed(3))
        torch.save(tokens, here / "tokens.pt")
        with torch.no_grad():
            torch.save(model(tokens).logits, here / "expected.pt")
    return folder


@pytest.mark.timeout(PATIENCE + 60)
@pytest.mark.parametrize("layout", ["tp1pp1dp1", "tp2pp2dp1", "tp1cp2pp1dp1"])
def test_logits_are_those_of_transformers(layout: str, models: Path, tmp_path: Path) -> None:
    support = str(ROOT / "tests" / "support")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": support}
    ranks = Layout.parse(layout).size
    logs = [tmp_path / f"{rank}.log" for rank in range(ranks)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as stream:
            command = [sys.executable, str(WORKER), str(rank), layout, str(models), *MODELS]
            processes.append(subprocess.Popen(command, stdout=stream, stderr=stream, env=environment))
    try:
        codes = [process.wait(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0] * ranks, "\n".join(f"==== {log.name}\n{log.read_text()[-3000:]}" for log in logs)
    for name in MODELS:
        found = torch.load(models / name / f"{layout}.pt")
        expected = torch.load(models / name / "expected.pt")
        assert found.shape[-1] == padded_vocabulary(VOCABULARY)
        assert (found[..., :VOCABULARY] - expected).abs().max() < 1e-5, name


def liver(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "liver_slurm", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE, env=environment)
    assert done.returncode == code, done.stderr
    return done


def trained(folder: Path, name: str, imported: Path, *arguments: str) -> Path:
    """Train an import, and export the run."""
    job = folder / "job.toml"
    job.write_text(
        f'''
[job]
run_root = "{folder}/{name}"
[model]
from_hf = "{imported}"
[data]
paths = ["{ROOT}/README.md"]
[train]
start_from = "{imported}"
steps = 8
seq_length = {SEQUENCE}
micro_batch_size = 1
global_batch_size = 8
lr = 1e-3
adam_eps = 1e-5
[checkpoint]
every = 0
'''
    )
    done = liver("run", str(job), *arguments, "--json")
    run = json.loads(done.stdout)
    assert (run["state"], run["steps"]) == ("finished", 8)
    assert len(run["reconfigurations"]) == arguments.count("--resize")
    exported = folder / f"{name}-exported"
    document = json.loads(liver("export", "hf", run["run_dir"], "--to", str(exported), "--json").stdout)
    assert (document["path"], document["dtype"]) == (str(exported), "fp32")
    return exported


@pytest.mark.timeout(3 * PATIENCE)
@pytest.mark.parametrize("name", ["llama3", "qwen3", "gpt2"])
def test_an_import_is_trained_through_live_changes(name: str, tmp_path: Path) -> None:
    import transformers

    model = save_model(name, tmp_path / "source", shard="60KB")
    imported = tmp_path / "imported"
    said = json.loads(liver("import", "hf", str(tmp_path / "source"), "--to", str(imported), "--json").stdout)
    assert (said["path"], said["dtype"]) == (str(imported), "float32")
    changes = [part for text in ("2:tp2pp1dp1", "4:tp1pp2dp1", "6:tp2pp1dp2") for part in ("--resize", text)]
    plain = trained(tmp_path, "plain", imported, "--workers", "2")
    changed = trained(tmp_path, "changed", imported, "--workers", "2", "--standbys", "2", *changes)
    expected, found = load_file(plain / SINGLE), load_file(changed / SINGLE)
    begun = dict(model.state_dict())
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key] - value).abs().max() < 1e-6, key
        assert not torch.equal(value, begun[key]), f"{key} was trained"
    again = transformers.AutoModelForCausalLM.from_pretrained(changed)
    assert type(again) is type(model)


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    save_model("llama3", tmp_path / "source")
    source, to = str(tmp_path / "source"), str(tmp_path / "to")
    for arguments, says in [
        (("import", "hf", str(tmp_path / "nowhere"), "--to", to), "nowhere is no folder of a Hugging Face model"),
        (("import", "hf", source, "--to", source), "it is there already; allowed: a folder that is not"),
        (("import", "hf", source, "--to", str(tmp_path / "step-5")), "step-N is a run's checkpoint"),
        (("import", "hf", source, "--to", "/proc/here"), "/proc/here cannot be written"),
        (("export", "hf", source, "--to", to), "is not a run directory"),
    ]:
        done = liver(*arguments, code=1 if "/proc/here" in arguments else 2)
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["source"]
