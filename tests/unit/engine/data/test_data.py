"""From text to samples: tokenizers, documents, indexed datasets, reading."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from liver_slurm.base.errors import BadInput, RunIsOver
from liver_slurm.config.load import save_job
from liver_slurm.config.schema import DataSection, JobConfig, ModelSection, TrainSection
from liver_slurm.engine.data.documents import documents
from liver_slurm.engine.data.prepare import is_prefix, prepare, resolve_data
from liver_slurm.engine.data.samples import SampleSource, open_samples
from liver_slurm.engine.data.tokenizers import ByteTokenizer, load_tokenizer, vocab_size
from liver_slurm.engine.megatron.indexed_dataset import dataset_builder
from liver_slurm.rundir.paths import RunDir


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name, content in {
        "b.py": b"print('b')\n",
        "a/z.txt": "naïve\n".encode(),
        "a/data.bin": b"xyz",
        "a/binary.py": b"a\0b",
        "a/latin.py": b"\xe9",
        "a/empty.py": b"",
        ".hidden/x.py": b"no",
        "__pycache__/x.py": b"no",
        "site-packages/x.py": b"no",
        "lines.jsonl": b'{"text": "one", "n": 1}\n\n{"text": "two"}\n',
    }.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root


def test_a_folder_gives_its_texts_in_sorted_order(tree: Path) -> None:
    assert list(documents(tree)) == ["print('b')\n", "one", "two", "naïve\n"]


def test_files_that_are_named_must_be_text(tree: Path) -> None:
    assert list(documents(tree / "b.py")) == ["print('b')\n"]
    with pytest.raises(BadInput, match=r"latin.py is not UTF-8 text \(byte 0\)"):
        list(documents(tree / "a/latin.py"))
    (tree / "bad.jsonl").write_text('{"text": "one"}\n{"txt": 1}\n')
    with pytest.raises(BadInput, match='line 2: not a JSON object with a "text"'):
        list(documents(tree / "bad.jsonl"))
    (tree / "bad.jsonl").write_bytes(b'{"text": "one"}\r\n{"text": "\xe9"}\r\n')
    with pytest.raises(BadInput, match=r"line 2: .* in UTF-8"):
        list(documents(tree / "bad.jsonl"))


def test_half_a_surrogate_pair_is_one_unknown_character(tmp_path: Path) -> None:
    """As JSON escapes of UTF-16 text that was cut have it."""
    file = tmp_path / "cut.jsonl"
    file.write_text('{"text": "cut \\ud83d"}\n{"text": "\\ude00é\\ud83dx"}\n{"text": "whole \\ud83d\\ude00"}\n')
    assert list(documents(file)) == ["cut \ufffd", "\ufffdé\ufffdx", "whole \U0001f600"]
    made = prepare([file], tmp_path / "out", ByteTokenizer())
    assert made.documents == 3


@pytest.mark.parametrize("vocabulary", [None, 300])
def test_a_token_beyond_the_vocabulary_is_refused_where_it_lies(tmp_path: Path, vocabulary: int | None) -> None:
    builder = dataset_builder(tmp_path / "other.bin", 1000)
    for document in ([1] * 20, [2] * 2 + [999] + [3] * 17):
        builder.add_document(np.array(document), [len(document)])
    builder.data_file.close()
    builder.finalize(str(tmp_path / "other.idx"))
    config = JobConfig(model=ModelSection(vocab_size=vocabulary), train=TrainSection(seq_length=10))
    samples = open_samples(config, [str(tmp_path / "other")])
    with pytest.raises(RunIsOver) as caught:
        samples.batch(0, len(samples))
    assert f"other.bin, token 22: token 999 is not in the vocabulary of {vocabulary or 257}" in str(caught.value)
    larger = dataclasses.replace(config, model=ModelSection(vocab_size=1000))
    assert open_samples(larger, [str(tmp_path / "other")]).batch(0, 3).max() == 999


def test_bytes_are_tokens(tree: Path, tmp_path: Path) -> None:
    made = prepare([tree], tmp_path / "new" / "folder" / "out", ByteTokenizer())
    assert (made.documents, made.vocab_size) == (4, 257)
    source = SampleSource([made.prefix], made.tokens - 1, seed=0)
    assert len(source) == 1
    stream = source.batch(0, 1)[0]
    assert stream.dtype == np.int64
    texts = [bytes(part[part < 256].astype(np.uint8)) for part in np.split(stream, np.flatnonzero(stream == 256) + 1)]
    assert [text.decode() for text in texts[:-1]] == ["print('b')\n", "one", "two", "naïve\n"]
    assert not list((tmp_path / "new" / "folder").glob(".*")), "no half-written file is left"


def test_samples_lie_end_to_end_over_several_datasets(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefghij")
    (tmp_path / "b.txt").write_text("0123456789")
    prefixes = [prepare([tmp_path / f"{n}.txt"], tmp_path / n, ByteTokenizer()).prefix for n in "ab"]
    source = SampleSource(prefixes, seq_length=4, seed=3)
    assert len(source) == 4
    epoch = source.batch(0, 4)
    assert sorted(bytes(row.astype(np.uint8)) for row in epoch) == [b"01234", b"45678", b"abcde", b"efghi"]
    assert np.array_equal(source.batch(2, 3), np.concatenate([epoch[2:], source.batch(4, 1)]))
    orders = {source.batch(start, 4).tobytes() for start in range(0, 64, 4)}
    assert len(orders) > 4, "epochs are shuffled anew"


def test_too_little_text_or_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    made = prepare([tmp_path / "a.txt"], tmp_path / "a", ByteTokenizer())
    with pytest.raises(BadInput, match="fewer than the 65 tokens"):
        SampleSource([made.prefix], 64, 0)
    (tmp_path / "empty").touch()
    with pytest.raises(BadInput, match="there is no text in"):
        prepare([tmp_path / "empty"], tmp_path / "e", ByteTokenizer())
    with pytest.raises(BadInput, match="is no file"):
        prepare([tmp_path / "gone"], tmp_path / "e", ByteTokenizer())
    with pytest.raises(BadInput, match=r"cannot make the folder .*a\.txt: File exists"):
        prepare([tmp_path / "a.txt"], tmp_path / "a.txt" / "no-folder", ByteTokenizer())
    (tmp_path / "damaged.bin").write_bytes(b"x")
    (tmp_path / "damaged.idx").write_bytes(b"nonsense")
    with pytest.raises(BadInput, match="is not an indexed dataset"):
        SampleSource([str(tmp_path / "damaged")], 4, 0)


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    model = models.WordLevel({"hello": 0, "world": 1, "[UNK]": 2, "<|endoftext|>": 7}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_a_hugging_face_tokenizer(tokenizer_file: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tokenizer_file))
    assert (tokenizer.eod, tokenizer.vocab_size) == (7, 8)
    assert tokenizer.encode("hello world nobody").tolist() == [0, 1, 2]
    content = json.loads(tokenizer_file.read_text())
    content["truncation"] = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 2, "pad_type_id": 0, "pad_token": "[UNK]",
    }  # fmt: skip
    tokenizer_file.write_text(json.dumps(content))
    assert load_tokenizer(str(tokenizer_file)).encode("hello world").tolist() == [0, 1]
    del content["model"]["vocab"]["<|endoftext|>"]
    tokenizer_file.write_text(json.dumps(content))
    without = load_tokenizer(str(tokenizer_file))
    assert (without.eod, without.vocab_size) == (3, 4)
    content["model"]["vocab"] |= {"far": 9}
    tokenizer_file.write_text(json.dumps(content))
    gaps = load_tokenizer(str(tokenizer_file))
    assert (gaps.eod, gaps.vocab_size) == (10, 11), "a token of its own"
    tokenizer_file.write_text("{}")
    with pytest.raises(BadInput, match=r"is not a tokenizer.json"):
        load_tokenizer(str(tokenizer_file))


def test_documents_end_as_the_job_says(tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello world hello")
    config = JobConfig(data=DataSection(paths=(str(tmp_path / "a.txt"),), tokenizer=str(tokenizer_file), eod=1))
    run_dir = RunDir(tmp_path / "run")
    run_dir.path.mkdir()
    (prefix,) = resolve_data(config, run_dir)
    assert SampleSource([prefix], 3, 0).batch(0, 1).tolist() == [[0, 1, 0, 1]]


def test_the_models_vocabulary_may_be_larger_not_smaller() -> None:
    assert vocab_size(None, "byte") == 257
    assert vocab_size(512, "byte") == 512
    with pytest.raises(BadInput, match=r"model.vocab_size: 256 is too small; allowed: >= 257"):
        vocab_size(256, "byte")


def test_text_is_prepared_once_in_the_run_directory(tree: Path, tmp_path: Path) -> None:
    prepared = prepare([tree / "b.py"], tmp_path / "own", ByteTokenizer()).prefix
    config = JobConfig(data=DataSection(paths=(prepared, str(tree))))
    run_dir = RunDir(tmp_path / "run")
    run_dir.path.mkdir()
    first = resolve_data(config, run_dir)
    assert first == [str(run_dir.data / "text"), prepared]
    before = (run_dir.data / "text.bin").stat().st_ino
    assert resolve_data(config, run_dir) == first
    assert (run_dir.data / "text.bin").stat().st_ino == before
    assert is_prefix(run_dir.data / "text")


def test_of_several_workers_one_prepares(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = JobConfig(data=DataSection(paths=(str(tree),)))
    run_dir = RunDir(tmp_path / "run")
    run_dir.path.mkdir()
    call = "import sys\nfrom pathlib import Path\nfrom liver_slurm.config.load import read_job\n"
    call += "from liver_slurm.rundir.paths import RunDir\nfrom liver_slurm.engine.data import prepare as module\n"
    call += "def prepare(paths, prefix, tokenizer, eod):\n    print('prepared', flush=True)\n"
    call += "    [Path(f'{prefix}{s}').touch() for s in ('.bin', '.idx')]\n"
    call += "module.prepare = prepare\nrun_dir = RunDir(Path(sys.argv[1]))\n"
    call += "module.resolve_data(read_job(run_dir.job_file), run_dir)"
    save_job(config, run_dir.job_file)
    arguments = [sys.executable, "-c", call, str(run_dir.path)]
    workers = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    printed = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0, 0]
    assert "".join(printed) == "prepared\n"


class _Counting:
    def __len__(self) -> int:
        return 100

    def batch(self, first: int, count: int) -> np.ndarray:
        return np.zeros((count, 5), dtype=np.int64) + first


def test_a_providers_tokens_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_data", sys.modules[__name__])
    data, train = DataSection(provider="my_data:_provider"), TrainSection(seq_length=4)
    samples = open_samples(JobConfig(data=data, train=train, model=ModelSection(vocab_size=50)), [])
    assert samples.batch(49, 1)[0, 0] == 49
    with pytest.raises(RunIsOver, match=r"data\.provider my_data:_provider, sample 50 of the run: token 50"):
        samples.batch(50, 1)
    own = JobConfig(data=data, train=train, model=ModelSection(provider="my_model:build"))
    assert open_samples(own, []).batch(1000, 1)[0, 0] == 1000, "what its model takes is not known"


def _provider(config: JobConfig) -> object:
    return _Counting() if config.train.seq_length == 4 else 3


def test_peoples_own_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_data", sys.modules[__name__])
    config = JobConfig(data=DataSection(provider="my_data:_provider"), train=TrainSection(seq_length=4))
    assert resolve_data(config, RunDir(Path("/nowhere"))) == []
    assert open_samples(config, []).batch(3, 1)[0, 0] == 3
    with pytest.raises(BadInput, match="returned int, without batch or len"):
        open_samples(dataclasses.replace(config, train=TrainSection(seq_length=5)), [])
    with pytest.raises(BadInput, match="has no '_gone'"):
        open_samples(dataclasses.replace(config, data=DataSection(provider="my_data:_gone")), [])
    with pytest.raises(BadInput, match="there is no module 'not_there'"):
        open_samples(dataclasses.replace(config, data=DataSection(provider="not_there:x")), [])
