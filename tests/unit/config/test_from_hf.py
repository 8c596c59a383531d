"""``model.from_hf`` fills the section, and what is written beside it must say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.config.load import check_job, load_job, save_job
from liver_slurm.config.schema import DataSection, JobConfig, ModelSection, TrainSection

CONFIG: dict[str, Any] = {
    "model_type": "mistral",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "sliding_window": 64,
}


def write(folder: Path, model: str = "", **change: Any) -> Path:
    """A job file that names a model's folder."""
    (folder / "config.json").write_text(json.dumps({**CONFIG, **change}))
    (folder / "text.txt").write_text("text")
    job = folder / "job.toml"
    job.write_text(
        f'[model]\nfrom_hf = "{folder}"\n{model}\n[data]\npaths = ["{folder}/text.txt"]\n'
        "[train]\nsteps = 5\nseq_length = 64\nglobal_batch_size = 4\n"
    )
    return job


def test_the_section_is_filled(tmp_path: Path) -> None:
    model = load_job(write(tmp_path, 'init_method_std = 0.01\nrotary_base = 1000000\nnormalization = "RMSNorm"')).model
    assert (model.num_layers, model.num_query_groups, model.ffn_hidden_size, model.vocab_size) == (3, 4, 96, 300)
    assert (model.rotary_base, model.layernorm_epsilon, model.init_method_std) == (1_000_000, 1e-6, 0.01)
    assert not model.share_embeddings_and_output_weights
    assert model.from_hf == str(tmp_path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("num_layers = 4", "job.toml: model.num_layers: 4 is not that of DIR/config.json; allowed: 3, or leave it out"),
        ('normalization = "LayerNorm"', 'model.normalization: "LayerNorm" is not that of'),
        (
            "rope_scaling_factor = 8.0",
            "model.rope_scaling_factor: 8.0 is not that of DIR/config.json; allowed: ",
        ),
        ('provider = "a:b"', "model.provider: has no place beside model.from_hf"),
    ],
)
def test_what_is_written_beside_it_must_say_the_same(line: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        load_job(write(tmp_path, line))
    assert says.replace("DIR", str(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "job.toml: model.from_hf: DIR is no folder of a Hugging Face model: it has no config.json"),
        ("{", "model.from_hf: DIR/config.json cannot be read: "),
        ("[1]", "model.from_hf: DIR/config.json cannot be read: "),
        (json.dumps({**CONFIG, "logit_scale": 2.0}), "model.from_hf: DIR/config.json: logit_scale 2.0 is not known"),
        (json.dumps({**CONFIG, "model_type": "dbrx"}), 'model_type "dbrx" is not possible; allowed: llama'),
    ],
)
def test_a_folder_that_cannot_be_read_is_one_line(content: str | None, says: str, tmp_path: Path) -> None:
    job = write(tmp_path)
    (tmp_path / "config.json").unlink()
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(BadInput) as caught:
        load_job(job)
    assert says.replace("DIR", str(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sliding_window_limits_the_sequence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"train\.seq_length: 65 is above the sliding window .* allowed: at most 64"):
        load_job(write(tmp_path), ["train.seq_length=65"])


def test_a_resolved_job_no_longer_needs_the_folder(tmp_path: Path) -> None:
    config = load_job(write(tmp_path))
    save_job(config, tmp_path / "job.json")
    (tmp_path / "config.json").unlink()
    assert load_job(tmp_path / "job.json") == config


def test_its_tokenizer_is_the_default(tmp_path: Path) -> None:
    job = write(tmp_path)
    assert load_job(job).data.tokenizer == "byte"
    (tmp_path / "tokenizer.json").write_text("{}")
    assert load_job(job, files=False).data.tokenizer == str(tmp_path / "tokenizer.json")
    assert load_job(job, ["data.tokenizer=byte"]).data.tokenizer == "byte"


def test_a_job_that_is_made_in_python(tmp_path: Path) -> None:
    write(tmp_path)
    data = DataSection(paths=(str(tmp_path / "text.txt"),))
    train = TrainSection(steps=5, seq_length=64, global_batch_size=4)
    model = ModelSection(from_hf=str(tmp_path))
    assert check_job(JobConfig(model=model, data=data, train=train)).model.num_layers == 3
    with pytest.raises(BadInput, match=r"model\.num_layers: 5 is not that of"):
        check_job(JobConfig(model=ModelSection(from_hf=str(tmp_path), num_layers=5), data=data, train=train))
