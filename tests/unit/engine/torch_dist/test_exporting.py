"""A checkpoint becomes one of Megatron-LM's, and that the same checkpoint again."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint_files import tensors
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex
from torch_dist_lab import BIASED, DENSE, EXPERTS, checkpoint, common_of, job, same

from liver_slurm.base.errors import BadInput
from liver_slurm.cli.main import main
from liver_slurm.config.schema import JobSection, ModelSection
from liver_slurm.engine.checkpoint_files import finish_folder, gather, write_share
from liver_slurm.engine.torch_dist.exporting import export_model
from liver_slurm.engine.torch_dist.importing import import_model
from liver_slurm.parallel.torch_private import place_in_file
from liver_slurm.reshard.tensors import Piece
from liver_slurm.rundir.checkpoints import verify
from liver_slurm.rundir.registry import create_run


@pytest.mark.parametrize(("model", "precision"), [(DENSE, "fp32"), (BIASED, "bf16"), (EXPERTS, "bf16")])
def test_there_and_back_bit_for_bit(model: ModelSection, precision: str, tmp_path: Path) -> None:
    config = job(model)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    source = checkpoint(tmp_path / "run", config, dtype)
    export_model(source, config, tmp_path / "exported", precision)
    assert (tmp_path / "exported" / "latest_checkpointed_iteration.txt").read_text() == "release"
    done = import_model(tmp_path / "exported", tmp_path / "imported", None, vocabulary=300)
    verify(done.path)
    assert same(done.path, source)
    assert done.model.vocab_size == 300
    assert done.steps is None
    again = import_model(tmp_path / "exported" / "release", tmp_path / "again", config)
    assert same(again.path, source)
    assert sorted(one.name for one in tmp_path.iterdir() if one.name.startswith(".")) == []


def test_names_that_layers_of_transformer_engine_ask_for_are_there(tmp_path: Path) -> None:
    config = job(replace(EXPERTS, qk_layernorm=True))
    export_model(checkpoint(tmp_path / "run", config), config, tmp_path / "exported", "fp32")
    there = pickle.loads((tmp_path / "exported" / "release" / ".metadata").read_bytes()).state_dict_metadata
    layers = "decoder.layers"
    tensors = ("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight", "self_attention.q_layernorm.weight")
    assert {f"{layers}.{name}" for name in tensors} <= there.keys()
    empty = {
        f"{layers}.pre_mlp_layernorm._extra_state/shard_0_2",
        f"{layers}.self_attention.q_layernorm._extra_state/shard_1_2",
        f"{layers}.self_attention.linear_qkv._extra_state/shard_1_2",
        f"{layers}.mlp.experts.experts.linear_fc2._extra_state/shard_1.3_2.4",
        f"{layers}.mlp.shared_experts.linear_fc1._extra_state/shard_0_2",
        "decoder.final_layernorm._extra_state/shard_0_1",
    }
    assert empty <= {name for name, entry in there.items() if isinstance(entry, BytesStorageMetadata)}


def test_moments_and_their_steps_come_along(tmp_path: Path) -> None:
    config = job(DENSE)
    source = checkpoint(tmp_path / "run", config, moments=True)
    done = export_model(source, config, tmp_path / "exported", "bf16", optimizer=True)
    assert done.iteration == 5
    imported = import_model(tmp_path / "exported", tmp_path / "imported", None, 300, optimizer=True)
    assert imported.steps == 4
    assert imported.dtype == "float32", "weights are the masters"
    assert same(imported.path, source)
    alone = import_model(tmp_path / "exported", tmp_path / "alone", None, 300)
    assert (alone.dtype, alone.steps) == ("bfloat16", None)


def flat(name: str, whole: torch.Tensor) -> list[tuple[Piece, torch.Tensor]]:
    """Optimizer state as megatron-core before 0.14 saved it, of tensors cut into two parts by rows."""
    stack = 1 if "layers" in name else 0
    parts = torch.stack([one.flatten(stack) for one in whole.chunk(2, stack)], stack)
    shape = (*parts.shape[: stack + 1], *(1 for _ in whole.shape[stack + 1 :]), parts.shape[-1])
    half = parts.shape[-1] // 3  # replicas have parts of it, which need not be alike
    spans = ((0, half), (half, parts.shape[-1]))
    values = parts.reshape(shape)
    return [
        (Piece(f"chained_0.{name}", (*(0 for _ in shape[1:]), a), (*shape[:-1], b - a)), values[..., a:b])
        for a, b in spans
    ]


def test_moments_that_older_versions_saved_flat(tmp_path: Path) -> None:
    config = job(DENSE)
    source = checkpoint(tmp_path / "run", config, moments=True)
    export_model(source, config, tmp_path / "exported", "fp32", optimizer=True)
    folder, older = tmp_path / "exported" / "iter_0000005", tmp_path / "older"
    boxes, shapes = [], {}
    for name, whole in tensors(folder).items():
        if name.startswith("optimizer."):
            boxes += flat(name, whole)
            piece = boxes[-1][0]
            shapes[piece.tensor] = (*piece.shape[:-1], piece.offset[-1] + piece.shape[-1])
        else:
            boxes.append((Piece(name, (0,) * whole.dim(), tuple(whole.shape)), whole))
            shapes[name] = tuple(whole.shape)
    write_share(older, 0, boxes, shapes)
    finish_folder(older, gather(older, {0: "0"}, 10.0), [0])
    for file in ("common.pt", "metadata.json"):
        shutil.copy(folder / file, older / file)
    done = import_model(older, tmp_path / "imported", None, 300, optimizer=True)
    assert (done.steps, same(done.path, source)) == (4, True)


def test_arguments_may_lie_among_the_tensors(tmp_path: Path) -> None:
    config = job(DENSE)
    source = checkpoint(tmp_path / "run", config, moments=True)
    export_model(source, config, tmp_path / "exported", "fp32", optimizer=True)
    folder = tmp_path / "exported" / "iter_0000005"
    torch.save([common_of(folder / "common.pt")], folder / "__2_0.distcp")
    (folder / "common.pt").unlink()
    found = pickle.loads((folder / ".metadata").read_bytes())
    key = "common_state/shard_0_1"
    found.state_dict_metadata[key] = BytesStorageMetadata()
    length = (folder / "__2_0.distcp").stat().st_size
    found.storage_data[MetadataIndex(key)] = place_in_file("__2_0.distcp", 0, length)
    (folder / ".metadata").write_bytes(pickle.dumps(found))
    done = import_model(tmp_path / "exported", tmp_path / "imported", None, 300, optimizer=True)
    assert (done.steps, same(done.path, source)) == (4, True)
    (folder / "__2_0.distcp").write_bytes(b"\0" * length)
    with pytest.raises(BadInput, match=r"__2_0\.distcp cannot be read: .*--job JOB\.toml says"):
        import_model(tmp_path / "exported", tmp_path / "again", None)
    assert same(
        import_model(tmp_path / "exported", tmp_path / "again", config).path, checkpoint(tmp_path / "alone", config)
    )


def test_moments_that_are_not_there_are_refused(tmp_path: Path) -> None:
    config, experts = job(DENSE), job(EXPERTS)
    source = checkpoint(tmp_path / "run", config)
    with pytest.raises(BadInput, match=r"has no moments of .*; allowed: weights alone"):
        export_model(source, config, tmp_path / "exported", "fp32", optimizer=True)
    with pytest.raises(BadInput, match="is for models without experts"):
        export_model(checkpoint(tmp_path / "other", experts), experts, tmp_path / "exported", "fp32", optimizer=True)
    export_model(source, config, tmp_path / "exported", "fp32")
    with pytest.raises(BadInput, match=r"has no moments that any layout can read; leave out --optimizer"):
        import_model(tmp_path / "exported", tmp_path / "imported", None, optimizer=True)
    assert not (tmp_path / "imported").exists()


def test_an_export_of_another_model_than_the_job_says_is_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "run", job(DENSE))
    for model, says in [
        (replace(DENSE, hidden_size=64), r"has shape \(32,\) there, \(64,\) here"),
        (
            replace(DENSE, qk_layernorm=True),
            r"is not of the model that its job file describes: it has no .*k_layernorm",
        ),
        (replace(DENSE, activation_func="relu"), r"it cannot be exported: model\.activation_func"),
    ]:
        with pytest.raises(BadInput, match=says):
            export_model(source, job(model), tmp_path / "exported", "fp32")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["run"]


def test_the_command_says_what_megatron_lm_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = job(replace(BIASED, layernorm_epsilon=1e-6))
    run_dir = create_run(replace(config, job=JobSection(run_root=str(tmp_path / "runs"))))
    path, to = checkpoint(run_dir.checkpoints, config), tmp_path / "exported"
    command = ["export", "megatron", str(path), "--to", str(to)]
    assert main([*command, "--ema", "--optimizer"]) == 2
    assert main([*command, "--optimizer"]) == 2
    assert not to.exists()
    assert capsys.readouterr().err.count("\n") == 2
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["options"] == (
        f"--load {to} --use-checkpoint-args --ckpt-format torch_dist --norm-epsilon 1e-06 --no-bias-gelu-fusion"
    )
    assert (document["iteration"], document["dtype"], document["checkpoint"]) == (None, "fp32", str(path))
    assert main(command) == 2, "it is there already"
