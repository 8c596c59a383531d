"""Job files: every problem at once, each in one clear line; what is valid survives the way through job.json."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liver_slurm.base.errors import BadInput
from liver_slurm.config.checks import cross_check
from liver_slurm.config.keys import known_keys
from liver_slurm.config.load import check_job, load_job, overridden, read_job, save_job
from liver_slurm.config.problem import join
from liver_slurm.config.schema import ElasticSection, JobConfig

TINY = Path(__file__).parents[3] / "configs" / "gpt-tiny.toml"


@pytest.fixture(autouse=True)
def _no_site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LIVER_SITE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def problems(*overrides: str) -> list[str]:
    with pytest.raises(BadInput) as caught:
        load_job(TINY, overrides)
    return str(caught.value).splitlines()


def test_the_demo_job_is_valid() -> None:
    config = load_job(TINY)
    assert config.job.name == "gpt-tiny"
    assert config.stream.staging_bytes == 4 << 20
    assert Path(config.job.run_root).is_absolute()
    assert Path(config.data.paths[0], "abc.py").exists()


def test_overrides_take_toml_values_plain_text_and_list_indices() -> None:
    config = load_job(
        TINY,
        [
            "train.precision=bf16",
            "train.lr=1e-2",
            "live.component.0.nodes=3",
            "live.time=02:00:00",
            "job.heartbeat=500ms",
        ],
    )
    assert (config.train.precision, config.train.lr) == ("bf16", 0.01)
    assert (config.live.component[0].nodes, config.live.component[0].tasks_per_node) == (3, 1)
    assert (config.live.time, config.job.heartbeat) == ("02:00:00", 0.5)


def test_every_problem_is_reported_at_once() -> None:
    found = problems(
        "train.lr=-1",
        "train.setps=3",
        'model.num_layers="x"',
        "lvie.time=1",
        'elastic.layouts=["tp3pp1dp1", "foo"]',
        "job.heartbeat=true",
        'data.paths=["/nope"]',
        "train.num_layers=4",
        "stream.staging_bytes=12parsecs",
    )
    for expected in (
        "--set: train.lr: -1 is not allowed; allowed: a number > 0",
        "--set: train.setps: no such key; the nearest is train.steps",
        '--set: model.num_layers: "x" is not allowed; allowed: a whole number >= 1',
        "--set: lvie: no such key; the nearest is live",
        '--set: elastic.layouts.1: "foo" is not allowed; allowed: a layout such as "tp2pp1dp2"',
        "--set: train.num_layers: no such key; the nearest is model.num_layers",
    ):
        assert expected in found
    assert any(line.startswith('--set: data.paths: "/nope" is no file, no folder') for line in found)
    assert any(line.startswith('--set: stream.staging_bytes: "12parsecs"') for line in found)
    assert len(found) == 9


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[live.component]\nnodes = 2\n", "live.component: is a single table; write [[live.component]]"),
        ("[train]\nsteps = 3\n[job]\n[train]\n", "(at line 4, column 7); [train] is there twice: merge them"),
        ("[train]\nsteps = 3\nsteps = 4\n", "(at line 3, column 10); steps is there twice: merge them"),
        ("[live]\npartition = live # ours\n", '; text needs quotes: partition = "live"'),
        ("[live]\ntime = 24:00:00\n", '; text needs quotes: time = "24:00:00"'),
        ("[model]\nnum_layer = 2\n", "model.num_layer: no such key; the nearest is model.num_layers"),
        ('[data]\npath = ["x"]\n', "data.path: no such key; the nearest is data.paths"),
    ],
)
def test_usual_mistakes_are_said_once_with_what_to_write(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "job.toml").write_text(content)
    with pytest.raises(BadInput) as caught:
        load_job(tmp_path / "job.toml")
    lines = str(caught.value).splitlines()
    assert sum(expected in line for line in lines) == 1


@pytest.mark.parametrize("key", ["model.num_layers", "data.paths", "train.steps"])
def test_a_key_that_is_misspelt_is_not_missing_as_well(tmp_path: Path, key: str) -> None:
    section, _, name = key.partition(".")
    (tmp_path / "job.toml").write_text(f"[{section}]\n{name[:-1]} = 2\n")
    with pytest.raises(BadInput) as caught:
        load_job(tmp_path / "job.toml")
    lines = str(caught.value).splitlines()
    assert [line for line in lines if key in line] == [f"job.toml: {key[:-1]}: no such key; the nearest is {key}"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.hidden_size=65", "model.hidden_size: 65 is not a multiple of num_attention_heads 8"),
        (
            "model.num_query_groups=3",
            "model.num_query_groups: 3 does not divide num_attention_heads 8; allowed: 1, 2, 4, 8",
        ),
        (
            "model.kv_channels=7",
            "model.kv_channels: 7 makes heads of width 7, all of it rotated in pairs; allowed: an even width",
        ),
        (
            "train.global_batch_size=15",
            "train.global_batch_size: 15 is not a multiple of micro_batch_size 2; allowed: a multiple of 2, such as 14",
        ),
        ('elastic.layouts=["tp1pp1dp2", "tp1pp5dp1"]', "impossible for this model: pp5 is more than num_layers 4"),
        ('elastic.layouts=["tp1pp1dp2", "tp3pp1dp1"]', "tp3 does not divide num_attention_heads 8"),
        ('elastic.layouts=["tp1pp1dp2", "tp1pp1dp9"]', "dp9 is more than the 8 microbatches"),
        (
            "elastic.initial=tp2pp1dp2",
            '"tp2pp1dp2" needs 4 workers, and the guaranteed job has 2; allowed: a smaller layout, or more',
        ),
        ("elastic.initial=tp1pp1dp7", "is not in elastic.layouts"),
        ("standby.partitions=[]", "standby.partitions: is missing"),
        ("standby.gpus_per_task=1", "standby.gpus_per_task: 1 differs from live.component.0's 0"),
        ("standby.gpus_per_task=2", "standby.gpus_per_task: 2 is not allowed; allowed: a whole number 0 or 1"),
        ("data.tokenizer=/nope.json", 'data.tokenizer: "/nope.json" is not a readable file'),
        ("data.paths=[]", "data.paths: is missing"),
        ("train.rampup_batch_size=[1, 1]", "train.rampup_batch_size: has 2 numbers; allowed: three"),
        ("data.weights=[1, 2]", "data.weights: has 2 weights; allowed: as many as data.paths, which has 1"),
        ('data.paths=["$NOT_THERE/x"]', "$NOT_THERE is not set"),
        ("model.provider=nothing", 'allowed: a function as "package.module:function"'),
        ("live.component=[]", "live.component: [] is not allowed"),
        ("live=1", "not an override"),
        ("live.component.7.nodes=1", "there is no place live.component.7.nodes"),
        ("train=3=4", "not an override"),
        ("model.extra.x=nan", "model.extra.x: nan is not allowed"),
        ("live.time=soon", 'live.time: "soon" is not allowed; allowed: a Slurm time'),
        ("job.name=a/b", 'job.name: "a/b" is not allowed'),
        ("train.min_lr=1", "train.min_lr: 1.0 is above lr"),
        ("train.lr_wsd_decay_steps=5", 'train.lr_wsd_decay_steps: has no use; allowed: lr_decay_style = "wsd" too'),
        ("job.lost_after=1", "job.lost_after: 1.0 is too short"),
        ("stream.memory_limit=4MiB", "stream.memory_limit: 4194304 leaves no room for state"),
        ("stream.memory_limit=none", 'stream.memory_limit: "none" is not allowed; allowed: a size >= 1'),
    ],
)
def test_one_problem_is_one_line(override: str, expected: str) -> None:
    assert sum(expected in line for line in problems(override)) == 1


@pytest.mark.parametrize(
    ("optimizer", "key"), [("adam", "adam_beta1"), ("adam", "adam_beta2"), ("sgd", "sgd_momentum")]
)
def test_decay_rates_that_rounding_would_undo(optimizer: str, key: str) -> None:
    kind, rounded = f"train.optimizer={optimizer}", "train.moments_precision=bf16"
    load_job(TINY, [kind, f"train.{key}=0.999"])
    load_job(TINY, [kind, f"train.{key}=0.996", rounded])
    (found,) = problems(kind, f"train.{key}=0.999", rounded)
    allowed = 'allowed: <= 0.996, or train.moments_precision = "fp32"'
    assert found == f"--set: train.{key}: 0.999 is lost in moments of bf16, which then never fall; {allowed}"


def test_moments_fall_at_every_decay_rate_that_is_allowed() -> None:
    """And at some that are not, some stay as they are for good."""
    for value in torch.arange(1 << 7) / (1 << 7) + 1:  # all numbers from 1 to 2 that bf16 has
        assert (value.bfloat16().float() * 0.996).bfloat16() < value
    assert (torch.tensor(1 + 2**-7) * 0.9962).bfloat16() == 1 + 2**-7


def test_settings_that_nothing_would_heed() -> None:
    found = problems("data.eod_mask_loss=true", "data.provider=json:loads")
    assert "data.eod: is missing; allowed: the token that ends a document, for data.eod_mask_loss" in found[0]
    found = problems("data.reset_attention_mask=true", "model.extra.qk_layernorm=true")
    assert "data.reset_attention_mask: is for models without model.extra; allowed: false" in found[0]
    assert 'allowed: true, or packing = "none"' in problems("data.packing=best_fit")[0]
    assert "data.packing_window: 9 has no use without packing" in problems("data.packing_window=9")[0]
    found = problems("data.packing=best_fit", "data.provider=json:loads")
    assert 'data.packing: is for data.paths, and data.provider gives samples; allowed: "none"' in found[0]
    assert load_job(TINY, ["data.packing=best_fit", "data.eod_mask_loss=true"]).data.packing_window == 65536
    found = problems("train.z_loss_coeff=1e-4", "model.provider=json:loads")
    assert "train.z_loss_coeff: 0.0001 has no effect with model.provider" in found[0]
    for key, value in (("provider", "json:loads"), ("extra.qk_layernorm", "true")):
        for rate in ("hidden_dropout", "attention_dropout"):
            found = problems(f"model.{rate}=0.1", f"model.{key}={value}")
            expected = f"model.{rate}: 0.1 is for this product's own layers, which model.{key.partition('.')[0]}"
            assert any(expected in one for one in found)
    said = '--set: train.fp8: true is for bf16; allowed: train.precision = "bf16" too, or false'
    assert said in problems("train.fp8=true", "train.precision=fp32")
    found = problems("train.fp8=true", "train.precision=bf16", "model.provider=json:loads")
    assert any(
        "train.fp8: true is for this product's own layers, which model.provider replaces" in one for one in found
    )
    found = problems("train.fp8=true", "train.precision=bf16", "model.provider=json:loads", "model.extra.fp8=hybrid")
    assert [one for one in found if "model.extra replaces" in one] == [], "one reason is enough"
    assert any("model.extra.fp8: is not allowed: a model of your own sets it in its own config" in one for one in found)
    assert "for FP8 set train.fp8" in problems("model.extra.fp8=hybrid")[0]
    found = problems("train.fp8=true", "train.precision=bf16", "model.extra.recompute_granularity=full")
    assert "which model.extra replaces; allowed: false; write train.recompute" in found[0]
    assert problems("model.moe_aux_loss_coeff=0.1") == [
        "--set: model.moe_aux_loss_coeff: has no use without experts; allowed: model.num_moe_experts too"
    ]
    assert load_job(TINY, ["data.eod_mask_loss=true", "data.provider=json:loads", "data.eod=0"]).data.eod == 0


def test_a_model_that_no_layout_of_auto_can_have() -> None:
    config = load_job(TINY, ["train.precision=bf16"])
    model, train = dataclasses.replace(config.model, ffn_hidden_size=200), dataclasses.replace(config.train, fp8=True)
    config = dataclasses.replace(config, model=model, train=train, elastic=ElasticSection())
    (found,) = cross_check(config, set())
    assert found.text == (
        "no layout is possible with the 2 guaranteed workers: with train.fp8, ffn_hidden_size over tp1 must be a "
        "multiple of 16, and is 200"
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.moe_router_topk=5"], "model.moe_router_topk: 5 is above num_moe_experts; allowed: at most 4"),
        (["model.moe_router_topk=1"], "model.moe_router_pre_softmax: false weighs each token's only expert with 1"),
        (["model.moe_router_enable_expert_bias=true"], 'false, or moe_router_score_function = "sigmoid"'),
        (["model.moe_router_bias_update_rate=0.1"], "model.moe_router_bias_update_rate: 0.1 has no use without a bias"),
        (
            ["model.moe_router_score_function=sigmoid", "model.moe_router_pre_softmax=true"],
            "model.moe_router_pre_softmax: true has no meaning without a softmax",
        ),
        (["model.add_bias_linear=true"], "model.add_bias_linear: true is not possible with experts; allowed: false"),
        (["model.moe_shared_expert_gate=true"], "model.moe_shared_expert_gate: has no use without a shared expert"),
        (["model.extra.softmax_scale=1.0"], "model.num_moe_experts: is for models without model.extra"),
        (["model.provider=json:loads"], "model.num_moe_experts: is for models without model.provider"),
    ],
)
def test_what_does_not_go_with_experts(overrides: list[str], expected: str) -> None:
    (found,) = problems("model.num_moe_experts=4", *overrides)
    assert expected in found


def test_biases_of_experts_with_all_that_they_need() -> None:
    keys = ("num_moe_experts=4", "moe_router_topk=1", "moe_router_score_function=sigmoid")
    rate = ("moe_router_enable_expert_bias=true", "moe_router_bias_update_rate=0.01")
    assert load_job(TINY, [f"model.{key}" for key in (*keys, *rate)]).model.moe_router_bias_update_rate == 0.01
    assert "no use without experts" in problems("model.moe_router_score_function=sigmoid")[0]


def test_what_muon_cannot_do() -> None:
    (found,) = problems("train.optimizer=muon")
    assert found == (
        "gpt-tiny.toml: train.distributed_optimizer: true divides matrices among replicas, and train.optimizer muon "
        "updates whole ones; allowed: false"
    )
    whole = ["train.optimizer=muon", "train.distributed_optimizer=false"]
    assert problems(*whole, "train.muon_ns_steps=6") == [
        "--set: train.muon_ns_steps: 6 is not a multiple of 5; allowed: 5, 10, …"
    ]
    assert problems(*whole, "train.moments_precision=bf16") == [
        '--set: train.moments_precision: "bf16" is for adam and sgd; allowed: "fp32" with train.optimizer muon'
    ]
    assert load_job(TINY, [*whole, "train.muon_ns_steps=10"]).train.muon_ns_steps == 10
    assert load_job(TINY, ["train.muon_ns_steps=6"]).train.muon_ns_steps == 6, "of no use without it"


def test_a_decay_that_begins_in_the_warm_up_is_named_by_default_too() -> None:
    found = problems("train.steps=200", "train.lr_decay_style=wsd", "train.lr_warmup_steps=195")
    assert found == ["gpt-tiny.toml: train.lr_wsd_decay_steps: 20 begin in the warm-up; allowed: <= 5"]


def test_a_required_key_that_is_missing_is_named(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text("[train]\nsteps = 3\n")
    with pytest.raises(BadInput) as caught:
        load_job(job)
    lines = str(caught.value).splitlines()
    assert "job.toml: model.num_layers: is missing; allowed: a whole number >= 1" in lines
    assert all(line.startswith("job.toml: ") for line in lines)
    assert len(lines) == 6


def test_a_model_provider_may_leave_sizes_out(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        '[model]\nprovider = "json:load"\n[data]\nprovider = "json:loads"\n'
        "[train]\nsteps = 3\nseq_length = 8\nglobal_batch_size = 4\n"
    )
    assert load_job(job).model.num_layers == 0


def test_a_mark_at_the_beginning_is_no_mistake(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_bytes(b"\xef\xbb\xbf" + TINY.read_bytes())
    assert load_job(job) == load_job(TINY)


def test_a_file_without_an_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "job.toml").symlink_to("/dev/zero")
    with pytest.raises(BadInput, match=r"job\.toml: is larger than 4 MiB"):
        load_job(tmp_path / "job.toml")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.steps=99999999999999999999999", "a whole number >= 1, at most 9223372036854775807"),
        ("elastic.layouts=[]", 'elastic.layouts: [] is not allowed; allowed: "auto", or at least one layout'),
        ("live.component.5.nodes=1", "live.component has 1, counted from 0; allowed: 0 to 1, the last for a new one"),
        ("live.nothing.x.y=1", "live.nothing: no such key"),
        ("live.partition=a\nb", r'live.partition: "a\nb" has a line break in it; allowed: one line'),
        ("live.component.0.exclude=n1\nn2", "live.component.0.exclude: "),
        ('standby.partitions=["a\\nb"]', "standby.partitions: "),
        ('standby.unit=[{constraint="a\\nb"}]', "standby.unit.0.constraint: "),
    ],
)
def test_one_line_says_what_is_allowed(override: str, line: str) -> None:
    (said,) = problems(override)
    assert line in said


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"[job\n", "not TOML"), (b"\xff\xfe", "not UTF-8"), (b"a = 1\na = 2\n", "not TOML")],
)
def test_a_file_that_is_no_job_file(tmp_path: Path, content: bytes, expected: str) -> None:
    job = tmp_path / "job.toml"
    job.write_bytes(content)
    with pytest.raises(BadInput, match=expected) as caught:
        load_job(job)
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="no such file"):
        load_job(tmp_path / "other.toml")
    with pytest.raises(BadInput, match="cannot be read"):
        load_job(tmp_path)
    with pytest.raises(BadInput, match="an empty text names no job file"):
        load_job("")


def test_the_site_file_gives_defaults_and_is_blamed_for_its_own_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site.toml"
    site.write_text('[live]\naccount = "physics"\ntime = "3:00:00"\n[stream]\ninterface = "ib0"\n')
    monkeypatch.setenv("LIVER_SITE", str(site))
    config = load_job(TINY)
    assert (config.live.account, config.live.time, config.stream.interface) == ("physics", "1:00:00", "ib0")
    site.write_text("[stream]\ninterfaec = 1\n")
    assert problems() == ["site.toml: stream.interfaec: no such key; the nearest is stream.interface"]
    monkeypatch.setenv("LIVER_SITE", str(tmp_path / "gone.toml"))
    gone = f"LIVER_SITE names {tmp_path}/gone.toml: no such file; allowed: a site file, or /dev/null for none"
    assert problems() == [gone]


def test_keys_of_the_site_file_that_a_job_file_overrides(tmp_path: Path) -> None:
    site, job = tmp_path / "site.toml", tmp_path / "job.toml"
    site.write_text(
        '[job]\nrun_root = "/a"\n[live]\npartition = "gpu"\naccount = "physics"\n[standby]\ngrace = "30s"\n'
    )
    job.write_text('[job]\nrun_root = "/b"\n[live]\npartition = "gpu"\n[standby]\ngrace = "60s"\nmax_jobs = 1\n')
    assert overridden(job, site) == ["job.run_root", "standby.grace"]
    assert overridden(job) == []
    assert overridden(tmp_path / "job.json", site) == []


def test_a_plan_needs_no_partition_for_standbys() -> None:
    with pytest.raises(BadInput, match="at least one, here or in the site file"):
        load_job(TINY, ["standby.partitions=[]"])
    assert load_job(TINY, ["standby.partitions=[]"], files=False).standby.partitions == ()


def test_the_example_site_file_is_valid_with_its_lines_uncommented(tmp_path: Path) -> None:
    example = (TINY.parent / "site.toml").read_text()
    assert load_job(TINY, site=TINY.parent / "site.toml") == load_job(TINY)
    lines = [line.removeprefix("# ") if re.match(r"# \w+ = ", line) else line for line in example.splitlines()]
    (tmp_path / "site.toml").write_text("\n".join(lines).replace("$USER", "me"))
    assert load_job(TINY, site=tmp_path / "site.toml").live.setup == ("module load python/3.12 gcc",)


def test_keys_and_values_that_cannot_be_printed_stay_on_one_line(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('[live]\n"a\\nb" = 1\n"c.d" = 2\n[train]\n"" = 3\nprecision = "fp32\\u0007"\n')
    with pytest.raises(BadInput) as caught:
        load_job(job, ['data.paths=["/nope\\n"]'])
    lines = str(caught.value).split("\n")
    for expected in (
        r'job.toml: live."a\nb": no such key',
        'job.toml: live."c.d": no such key',
        'job.toml: train."": no such key',
        r'job.toml: train.precision: "fp32\x07" is not allowed; allowed: "fp32", "bf16"',
        r'--set: data.paths: "/nope\n" is no file',
    ):
        assert sum(line.startswith(expected) for line in lines) == 1


def test_a_byte_that_is_no_character_is_refused() -> None:
    assert problems("live.qos=\udc80") == [r'--set: live.qos: "\udc80" is not allowed; allowed: text']
    assert problems('model.extra.softmax_scale="\udc80"') == [
        r'--set: model.extra.softmax_scale: "\udc80" is not allowed; allowed: text, numbers, true, false, lists, tables'
    ]


def test_a_relative_path_in_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert any("job.run_root" in line and "(the working directory is gone)" in line for line in problems())


def test_a_home_folder_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert load_job(TINY).job.name == "gpt-tiny"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.setenv("HOME", str(tmp_path / "loop"))
    (line,) = problems()
    assert "cannot be read" in line
    assert "LIVER_SITE" in line


def test_workers_read_a_job_without_pydantic() -> None:
    script = "import sys, liver_slurm.config.load; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_plain_processes_take_the_place_of_slurm_resources() -> None:
    config = load_job(TINY, ["elastic.initial=tp1pp1dp1"], workers=1, standbys=3)
    assert [(one.nodes, one.tasks_per_node) for one in config.live.component] == [(1, 1)]
    assert (config.standby.max_jobs, config.standby.nodes_per_job, config.standby.tasks_per_node) == (3, 1, 1)
    with pytest.raises(BadInput, match="needs 2 workers, and the guaranteed job has 1"):
        load_job(TINY, workers=1)


def test_files_are_not_looked_at_for_a_plan() -> None:
    assert load_job(TINY, ['data.paths=["/nope"]'], files=False).data.paths == ("/nope",)


def test_a_resolved_job_that_is_gone_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"is .* a run directory"):
        read_job(tmp_path / "job.json")
    (tmp_path / "job.json").write_text('{"job": {"name": 3}}')
    with pytest.raises(BadInput, match="not a resolved job"):
        read_job(tmp_path / "job.json")


@st.composite
def valid_configs(draw: st.DrawFn) -> JobConfig:
    config = load_job(TINY)
    heads = draw(st.sampled_from([1, 2, 4, 8, 12]))
    micro = draw(st.integers(1, 8))
    return dataclasses.replace(
        config,
        job=dataclasses.replace(config.job, heartbeat=draw(st.floats(0.01, 10))),
        model=dataclasses.replace(
            config.model,
            num_attention_heads=heads,
            hidden_size=heads * 2 * draw(st.integers(1, 32)),
            num_query_groups=draw(st.sampled_from([None, 1, heads])),
            num_layers=draw(st.integers(1, 100)),
            extra=draw(
                st.dictionaries(
                    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5),
                    st.booleans() | st.integers(0, 10) | st.floats(-1, 1) | st.just("x"),
                )
            ),
        ),
        train=dataclasses.replace(
            config.train,
            micro_batch_size=micro,
            global_batch_size=micro * draw(st.integers(1, 64)),
            seed=draw(st.integers(0, 2**63 - 1)),
        ),
        elastic=dataclasses.replace(
            config.elastic, layouts="auto", initial=None, max_workers=draw(st.none() | st.integers(1, 99))
        ),
        stream=dataclasses.replace(config.stream, staging_bytes=draw(st.integers(1, 2**40))),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(valid_configs())
def test_any_valid_config_round_trips(tmp_path: Path, config: JobConfig) -> None:
    config = check_job(config, files=False)
    save_job(config, tmp_path / "job.json")
    assert read_job(tmp_path / "job.json") == config
    assert check_job(config, files=False) == config


_sections = ["job", "model", "data", "train", "live", "standby", "elastic", "stream", "checkpoint"]
_keys = [key.rpartition(".")[2] for key in known_keys()]
_odd = st.text(st.characters(codec="utf-8", exclude_characters=':"'), max_size=5)
_names = st.sampled_from([*_sections, "component", "extra", *_keys]) | _odd
_leaves = (
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.sampled_from(["1:30", "16MiB", "tp1pp1dp1", "auto", "$HOME"])
    | st.dates()
    | st.times()
    | st.datetimes()
)
_tables = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=4), max_leaves=20
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(_names, _tables, max_size=6), st.lists(st.text(max_size=20), max_size=2))
def test_junk_is_only_ever_bad_input(tmp_path: Path, junk: dict[str, object], overrides: list[str]) -> None:
    (tmp_path / "job.toml").write_text("")
    with pytest.raises(BadInput) as caught:
        load_job(tmp_path / "job.toml", overrides, sections=junk)
    lines = str(caught.value).split("\n")
    if len(lines) == 1 and lines[0].startswith("--set"):
        return
    tables = {join("", name) for name in (*_sections, *junk)}
    for line in lines:
        assert line.isprintable()
        origin, key, text = line.split(": ", 2)
        assert origin in ("job.toml", "overrides", "--set")
        assert any(key == table or key.startswith(f"{table}.") for table in tables)
        assert "no such key" in text or "allowed" in text or "is not a table" in text or "impossible" in text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | st.sampled_from([b"[job]", b"x = [" * 5000]))
def test_junk_files_are_only_ever_bad_input(tmp_path: Path, content: bytes) -> None:
    job = tmp_path / "junk.toml"
    job.write_bytes(content)
    with pytest.raises(BadInput):
        load_job(job)
