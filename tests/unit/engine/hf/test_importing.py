"""A folder of transformers' becomes a checkpoint, and the checkpoint the same folder again, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import MODELS, SEQUENCE, save_model
from safetensors.torch import load_file, save_file

from liver_slurm.base.errors import BadInput
from liver_slurm.config.from_hf import read_hf_model
from liver_slurm.config.schema import DataSection, JobConfig, ModelSection, TrainSection
from liver_slurm.engine.hf.exporting import export_model
from liver_slurm.engine.hf.importing import import_model
from liver_slurm.rundir.checkpoints import verify


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found.update(load_file(file))
    return found


def job(folder: Path) -> JobConfig:
    """A job of the model in a folder."""
    model = ModelSection(**read_hf_model(folder).section)
    train = TrainSection(steps=1, seq_length=SEQUENCE, global_batch_size=1)
    return JobConfig(model=model, data=DataSection(paths=("nowhere",)), train=train)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]) for name in expected
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "fp32") for name in MODELS), ("llama3", "bf16"), ("gpt2", "bf16")],
)
def test_there_and_back_bit_for_bit(name: str, dtype: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_model(name, source, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[dtype], shard="60KB")
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert len(list(source.glob("model-*.safetensors"))) > 1
    done = import_model(source, tmp_path / "imported")
    verify(done.path)
    assert done.dtype == {"fp32": "float32", "bf16": "bfloat16"}[dtype]
    assert done.window == (48 if name == "mistral" else None)
    for like in (source, done.path, None):
        to = tmp_path / f"exported like {like.name if like else 'none'}"
        export_model(done.path, job(source), to, like, dtype, file_bytes=50_000)
        assert same(weights(to), weights(source))
        assert len(list(to.glob("model-*.safetensors"))) > 1
        config = json.loads((to / "config.json").read_text())
        if like is not None:
            assert config == json.loads((source / "config.json").read_text())
            assert (to / "tokenizer_config.json").read_bytes() == (source / "tokenizer_config.json").read_bytes()
    with pytest.raises(BadInput, match="has no moving average of its weights"):
        export_model(done.path, job(source), tmp_path / "averages", None, dtype, averages=True)
    assert not (tmp_path / "averages").exists()
    assert sorted(one.name for one in tmp_path.iterdir() if one.name.startswith(".")) == []


@pytest.mark.parametrize("name", ["llama3", "qwen3", "gpt2"])
def test_a_folder_that_was_made_from_the_job_alone_loads_in_transformers(name: str, tmp_path: Path) -> None:
    import transformers

    model = save_model(name, tmp_path / "source")
    import_model(tmp_path / "source", tmp_path / "imported")
    export_model(tmp_path / "imported", job(tmp_path / "source"), tmp_path / "exported", None, "fp32")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    tokens = torch.arange(SEQUENCE)[None]
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert again.config.eos_token_id == 256
    other = job(tmp_path / "source")
    other = replace(other, data=replace(other.data, eod=7))
    export_model(tmp_path / "imported", other, tmp_path / "other", None, "fp32")
    assert json.loads((tmp_path / "other" / "config.json").read_text())["eos_token_id"] == 7


def rewritten(folder: Path, change: Any) -> Path:
    """The folder with its one file of weights changed."""
    tensors = weights(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_files_of_a_bare_model_with_buffers_of_old_versions(tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_model("gpt2", source)
    expected = weights(source)

    def bare(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()

    import_model(rewritten(source, bare), tmp_path / "imported")
    export_model(tmp_path / "imported", job(source), tmp_path / "exported", None, "fp32")
    assert same(weights(tmp_path / "exported"), expected)


def test_weights_in_one_file_count_where_others_lie_beside(tmp_path: Path) -> None:
    """As for transformers: a merge may have been saved into the folder of a model in several files."""
    source = tmp_path / "source"
    save_model("llama3", source)
    names = dict.fromkeys(weights(source), "old.safetensors")
    save_file({name: torch.zeros_like(tensor) for name, tensor in weights(source).items()}, source / "old.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    expected = load_file(source / "model.safetensors")
    import_model(source, tmp_path / "imported")
    export_model(tmp_path / "imported", job(source), tmp_path / "exported", None, "fp32")
    assert same(weights(tmp_path / "exported"), expected)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda all_: all_.pop("model.norm.weight"), "source: its files have no model.norm.weight"),
        (lambda all_: all_.update({"score.weight": torch.ones(2)}), "the model has no model.score.weight"),
        (
            lambda all_: all_.update({"model.norm.weight": torch.ones(2)}),
            "model.norm.weight has shape (2,), by config.json it is (64,)",
        ),
        (
            lambda all_: all_.update({"model.norm.weight": torch.ones(64, dtype=torch.float64)}),
            "model.norm.weight is F64; allowed: F32, BF16, F16",
        ),
        (lambda all_: all_.update({"lm_head.weight": torch.ones(300, 64)}), "lm_head.weight is not the embedding"),
    ],
)
def test_files_that_are_not_of_the_model_are_refused(change: Any, says: str, tmp_path: Path) -> None:
    save_model("llama3", tmp_path / "source")
    with pytest.raises(BadInput) as caught:
        import_model(rewritten(tmp_path / "source", change), tmp_path / "imported")
    assert says in str(caught.value)
    assert [one.name for one in tmp_path.iterdir()] == ["source"], "nothing is left"


def indexed(folder: Path, index: str) -> None:
    """Give the folder an index of files in the place of its one file of weights."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safetensors nor"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\1" * 20), "model.safetensors cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), "is no folder of a Hugging Face model"),
        (
            lambda folder: indexed(folder, '{"weight_map": {"a": "../../x"}}'),
            "names '../../x', which is no file of",
        ),
        (lambda folder: indexed(folder, "[]"), "index.json cannot be read"),
    ],
)
def test_damaged_folders_are_refused(damage: Any, says: str, tmp_path: Path) -> None:
    save_model("llama3", tmp_path / "source")
    damage(tmp_path / "source")
    with pytest.raises(BadInput) as caught:
        import_model(tmp_path / "source", tmp_path / "imported")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_export_is_like_its_own_model_only(tmp_path: Path) -> None:
    for name in ("llama2", "mistral", "qwen3"):
        save_model(name, tmp_path / name)
    import_model(tmp_path / "mistral", tmp_path / "imported")
    config = job(tmp_path / "mistral")
    with pytest.raises(BadInput, match=r"model\.num_query_groups: 4 is not allowed; allowed: 8, as in"):
        export_model(tmp_path / "imported", config, tmp_path / "exported", tmp_path / "llama2", "fp32")
    with pytest.raises(BadInput, match="is not of the model that its job file describes: it has no"):
        export_model(tmp_path / "imported", job(tmp_path / "qwen3"), tmp_path / "exported", None, "fp32")
    assert not (tmp_path / "exported").exists()
