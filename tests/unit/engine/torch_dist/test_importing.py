"""What would run something, is damaged or is of another model is refused."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch_dist_lab import DENSE, checkpoint, common_of, job

from liver_slurm.base.errors import BadInput
from liver_slurm.cli.main import main
from liver_slurm.engine.torch_dist.exporting import export_model
from liver_slurm.engine.torch_dist.importing import import_model


class Runs:
    """A pickle of it runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.call, (["touch", str(self.marker)],)


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


def test_state_of_optimizers_that_is_not_taken_may_have_any_form(exported: Path, tmp_path: Path) -> None:
    state = "optimizer.distributed.dp_group_idx_0.gbuf_idx_0.param"
    edited(lambda all_: all_.update({state: replace(all_[LAST], chunks=[])}))(exported)
    assert import_model(exported, tmp_path / "imported", None).tensors == 8
    with pytest.raises(BadInput, match="has no moments that any layout can read; leave out --optimizer"):
        import_model(exported, tmp_path / "again", None, optimizer=True)


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
