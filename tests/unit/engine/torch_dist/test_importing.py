"""A checkpoint becomes one of Megatron-LM's, and that the same checkpoint again; what is damaged is refused."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import zipfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import tensors
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from liver_slurm.base.errors import BadInput
from liver_slurm.cli.main import main
from liver_slurm.config.schema import DataSection, JobConfig, ModelSection, TrainSection
from liver_slurm.engine.foreign import publish_import
from liver_slurm.engine.hf.importing import box_of
from liver_slurm.engine.torch_dist.exporting import export_model
from liver_slurm.engine.torch_dist.importing import import_model
from liver_slurm.engine.torch_dist.table import units_of
from liver_slurm.parallel.torch_private import place_in_file
from liver_slurm.reshard.tensors import ADAM
from liver_slurm.rundir.checkpoints import checkpoint_path, verify
from liver_slurm.rundir.start import import_meta

DENSE = ModelSection(
    num_layers=2, hidden_size=32, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=48, vocab_size=300
)
EXPERTS = replace(
    DENSE,
    num_moe_experts=4,
    moe_ffn_hidden_size=16,
    moe_router_score_function="sigmoid",
    moe_router_enable_expert_bias=True,
    moe_shared_expert_intermediate_size=32,
    moe_shared_expert_gate=True,
)
BIASED = replace(
    DENSE,
    num_query_groups=None,
    normalization="LayerNorm",
    gated_linear_unit=False,
    activation_func="gelu",
    add_bias_linear=True,
    position_embedding_type="learned_absolute",
    max_position_embeddings=24,
    share_embeddings_and_output_weights=False,
)


def job(model: ModelSection) -> JobConfig:
    train = TrainSection(steps=9, seq_length=16, global_batch_size=2)
    return JobConfig(model=model, data=DataSection(paths=("nowhere",)), train=train)


def checkpoint(folder: Path, config: JobConfig, dtype: torch.dtype = torch.float32, moments: bool = False) -> Path:
    """A checkpoint of step 5, whose every value is another."""
    torch.manual_seed(1)
    units, path = units_of(config), checkpoint_path(folder, 5)
    kinds = ("", *(f"@{name}" for name in ADAM if moments))
    boxes = []
    for kind in kinds:
        for unit in units:
            fp32 = kind or unit.tensor.endswith("expert_bias")
            values = torch.randn(unit.shape, dtype=torch.float32).to(torch.float32 if fp32 else dtype)
            if unit.tensor in ("embedding.word_embeddings.weight", "output_layer.weight"):
                values[config.model.vocab_size :] = 0.0
            boxes.append(box_of(unit, f"{unit.tensor}{kind}", values))
    shapes = {f"{unit.tensor}{kind}": unit.whole for unit in units for kind in kinds}
    publish_import(path, boxes, shapes, {**import_meta(config.model, None), "step": 5}, steps=4)
    return path


def same(one: Path, other: Path) -> bool:
    expected, found = tensors(one), tensors(other)
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]) for name in expected
    )


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


class Runs:
    """A pickle of it runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.call, (["touch", str(self.marker)],)


def common_of(file: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([Namespace]):
        found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    export_model(checkpoint(folder / "run", job(DENSE)), job(DENSE), folder / "exported", "fp32")
    return folder / "exported"


@pytest.fixture
def exported(release: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(release, tmp_path / "exported"))


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that ends with exit code 2."""
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("file", [".metadata", "common.pt", "__0_0.distcp"])
def test_what_would_run_something_is_refused_and_runs_nothing(
    file: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker, path = tmp_path / "marker", exported / "release" / file
    if file == ".metadata":
        path.write_bytes(pickle.dumps(Runs(marker)))
    elif file == "common.pt":
        torch.save({**common_of(path), "more": Runs(marker)}, path)
    else:
        torch.save(Runs(marker), path.with_name("bad"))
        length, content = path.stat().st_size, path.with_name("bad").read_bytes()
        path.write_bytes(content.ljust(length, b"\0"))
        _point_at_the_beginning(exported / "release" / ".metadata", len(content))
    line = refusal(["import", "megatron", str(exported), "--to", str(tmp_path / "imported")], capsys)
    assert str(path) in line
    assert "subprocess.call" in line or file == "__0_0.distcp", line
    assert not marker.exists()
    assert not (tmp_path / "imported").exists()
    if file == "common.pt":
        with pytest.raises(pickle.UnpicklingError):
            common_of(path)
        torch.load(path, weights_only=False)
        assert marker.exists(), "it would have run something"


def _point_at_the_beginning(metadata: Path, length: int) -> None:
    """Have all boxes lie at the beginning of their file."""
    found = pickle.loads(metadata.read_bytes())
    for key, place in found.storage_data.items():
        if key.offset is not None:
            found.storage_data[key] = replace(place, offset=0, length=length)
    metadata.write_bytes(pickle.dumps(found))


def edited(change: Callable[[Any], object]) -> Callable[[Path], None]:
    """A change of what ``.metadata`` says."""

    def edit(folder: Path) -> None:
        file = folder / "release" / ".metadata"
        found = pickle.loads(file.read_bytes())
        change(found.state_dict_metadata)
        file.write_bytes(pickle.dumps(found))

    return edit


def with_args(**args: Any) -> Callable[[Path], None]:
    """A change of the arguments; without any, there are none."""

    def edit(folder: Path) -> None:
        file = folder / "release" / "common.pt"
        common = common_of(file)
        if args:
            vars(common["args"]).update(args)
        else:
            del common["args"]
        torch.save(common, file)

    return edit


def cut_short(folder: Path) -> None:
    file = folder / "release" / "__0_0.distcp"
    os.truncate(file, file.stat().st_size // 2)


def older_format(folder: Path) -> None:
    shutil.rmtree(folder / "release")
    (folder / "release" / "mp_rank_00").mkdir(parents=True)


def flipped(folder: Path) -> None:
    file = folder / "release" / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 3 :: 1000] = bytes(len(content[len(content) // 3 :: 1000]))
    content[:4] = b"\0\0\0\0"
    file.write_bytes(content)


def no_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "release" / "common.pt", "w") as archive:
        archive.writestr("nothing", b"")


QKV, LAST = "decoder.layers.self_attention.linear_qkv.weight", "decoder.final_layernorm.weight"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shutil.rmtree, "exported: no such folder"),
        (lambda at: (at / "latest_checkpointed_iteration.txt").unlink(), "has neither latest_checkpointed_iteration"),
        (lambda at: (at / "latest_checkpointed_iteration.txt").write_text("../x"), 'says "../x"; allowed: the number'),
        (lambda at: (at / "latest_checkpointed_iteration.txt").write_text("12"), "iter_0000012; name the folder of"),
        (older_format, "has Megatron-LM's older format, mp_rank_*"),
        (lambda at: (at / "release/metadata.json").unlink(), "is no whole checkpoint of Megatron-LM's format"),
        (lambda at: (at / "release/metadata.json").write_text("[]"), "metadata.json cannot be read"),
        (lambda at: (at / "release/metadata.json").write_text('{"sharded_backend": "zarr"}'), 'has format "zarr"'),
        (lambda at: (at / "release/.metadata").unlink(), ".metadata cannot be read"),
        (lambda at: (at / "release/.metadata").write_bytes(b"x"), ".metadata is damaged"),
        (lambda at: (at / "release/common.pt").unlink(), "--job JOB.toml says which model it is"),
        (no_zip, "common.pt cannot be read"),
        (cut_short, "__0_0.distcp is cut short"),
        (flipped, "__0_0.distcp is damaged"),
        (edited(lambda all_: all_.pop(LAST)), f"has no {LAST}, which the model has by its arguments"),
        (edited(lambda all_: all_.pop("embedding.word_embeddings.weight")), "is of no GPT of Megatron-LM's"),
        (edited(lambda all_: all_[QKV].chunks.pop()), f"elements of {QKV} are there"),
        (with_args(), "has no arguments: --job JOB.toml says which model it is"),
        (with_args(qk_layernorm=True), "has no decoder.layers.self_attention.k_layernorm.weight"),
        (with_args(untie_embeddings_and_output_weights=True), "has no output_layer.weight"),
        (with_args(hidden_size=64), "by its arguments it is"),
        (with_args(num_layers=10**9), "for which it has too few tensors"),
        (with_args(num_layers="2"), "of their arguments, model.num_layers"),
        (with_args(multi_latent_attention=True), "multi_latent_attention true is not possible here"),
        (with_args(num_experts=4, moe_ffn_hidden_size=6), "there can be no such model: with experts"),
        (with_args(num_experts=10**9), "for which it has too few tensors"),
        (with_args(normalization="none"), "model.normalization"),
    ],
)
def test_what_is_damaged_or_of_another_model_is_refused(
    damage: Callable[[Path], object], says: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(exported)
    assert says in refusal(["import", "megatron", str(exported), "--to", str(tmp_path / "imported")], capsys)
    assert [one.name for one in tmp_path.iterdir() if one.name != "exported"] == []


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


def test_boxes_that_are_not_in_their_tensors_are_refused(exported: Path, tmp_path: Path) -> None:
    file = exported / "release" / ".metadata"
    found = pickle.loads(file.read_bytes())
    chunks, places = found.state_dict_metadata[QKV].chunks, found.storage_data
    far = torch.Size([10**12, *chunks[0].offsets[1:]])
    (key,) = (one for one in places if one.fqn == QKV and one.offset == chunks[0].offsets)
    places[MetadataIndex(QKV, far)] = places.pop(key)
    chunks[0] = replace(chunks[0], offsets=far)
    file.write_bytes(pickle.dumps(found))
    with pytest.raises(BadInput, match=r"and a box of shape \(1, 64, 32\) at \(1000000000000, 0, 0\)"):
        import_model(exported, tmp_path / "imported", None)


def test_further_tensors_are_refused(tmp_path: Path) -> None:
    config = job(replace(DENSE, share_embeddings_and_output_weights=False))
    export_model(checkpoint(tmp_path / "run", config), config, tmp_path / "exported", "fp32")
    with pytest.raises(BadInput, match=r"by the job, the model has no output_layer\.weight"):
        import_model(tmp_path / "exported", tmp_path / "imported", job(DENSE))
    with pytest.raises(BadInput, match=r"has shape \(384, 32\), by the job it is \(500, 32\)"):
        import_model(tmp_path / "exported", tmp_path / "imported", config, vocabulary=500)
