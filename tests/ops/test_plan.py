"""`adapt plan`: what it finds, what it advises, what it refuses, and that it loads neither torch nor a weight."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.catalog.devices import DEVICES, device_named, device_titled
from adapterhub.cli.main import main
from adapterhub.errors import IncompatibleError, NetworkError, UsageError
from adapterhub.ops import _devices
from adapterhub.ops._plan_cost import FIT_SHARE
from adapterhub.ops.plan import human_time, plan_training
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from tests.factory import edit_json, tiny_llama, write_json
from tests.ops.test_build import project


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def home(settings: Settings, base_folder: Path) -> Settings:
    """Settings whose base store knows the tiny Llama."""
    BaseStore(settings).add(read_base(base_folder, BaseModelRef(id="tiny-llama"), "folder"))
    return settings


def data_of(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


# --- what is found ----------------------------------------------------------------------------------------------------


def test_the_plan_names_memory_and_time_of_a_named_device(
    tmp_path: Path, home: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    del home
    recipe = project(tmp_path)
    assert main(["plan", str(recipe), "--device", "rtx4090", "--json"]) == 0
    data = data_of(capsys)
    assert data["device"] == {
        "title": "NVIDIA GeForce RTX 4090",
        "kind": "cuda",
        "memory_bytes": 24 << 30,
        "name": "rtx4090",
        "source": DEVICES["rtx4090"].source,
    }
    written = data["options"][0]
    memory = written["memory"]
    assert memory["total"] == sum(memory[name] for name in memory if name not in ("total", "loading"))
    assert (written["title"], written["fits"], written["dtype"], written["steps"]) == (
        "as written",
        True,
        "bfloat16",
        8,
    )
    assert written["seconds"] > 0 and data["advised"] == "as written" and data["tokens_counted"] is True
    assert main(["plan", str(recipe), "--device", "rtx4090"]) == 0
    shown = capsys.readouterr().out
    assert "NVIDIA GeForce RTX 4090, bfloat16" in shown and "8 steps" in shown and "optimizer" in shown


def test_a_larger_batch_and_rank_take_more(tmp_path: Path, home: Settings) -> None:
    recipe = project(tmp_path)

    def total(*overrides: str) -> int:
        plan = plan_training(recipe, device="a100-40", overrides=overrides, settings=home)
        return plan.written.cost.memory.total

    plain = total()
    assert total("training.per_device_train_batch_size=16") > plain
    assert total("hyperparameters.r=64") > plain
    assert total("training.dtype=float32") > plain
    assert total("training.gradient_checkpointing=true") < plain


@pytest.mark.engine
def test_it_is_the_build_s_own_estimate(tmp_path: Path, home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub.ops.build import plan_build

    monkeypatch.setattr(_devices, "_nvidia", lambda: None)
    recipe = project(tmp_path)
    build = plan_build(recipe, settings=home, device="cpu", overrides=["training.dtype=float32"])
    plan = plan_training(recipe, settings=home, device="cpu", overrides=["training.dtype=float32"])
    assert plan.written.cost.memory.total == build.memory
    assert (plan.trainable, plan.written.cost.steps) == (build.trainable, build.training_steps)


@pytest.mark.engine
def test_tokens_are_those_that_the_build_trains_on(tmp_path: Path, home: Settings) -> None:
    """Batch by batch: the number of steps ends in the middle of an epoch, so the order counts as well."""
    from adapterhub.ops.build import build

    recipe, words = project(tmp_path), ["training.max_steps=6", "training.logging_steps=6"]
    built = build(recipe, out=tmp_path / "out", settings=home, device="cpu", overrides=words)
    lines = (built.path / "training_log.jsonl").read_text("utf-8").splitlines()
    plan = plan_training(recipe, settings=home, device="epyc-7763", overrides=words)
    assert plan.written.cost.tokens == json.loads(lines[-1])["tokens"]


@pytest.mark.engine
def test_the_plain_tokenizer_counts_as_transformers_does(base_folder: Path) -> None:
    from adapterhub.engine.data import encode_rows
    from adapterhub.engine.plain_tokenizer import read_plain_tokenizer
    from adapterhub.spec.data import DataSpec
    from tests.engine.tiny import load, rows

    plain, spec = read_plain_tokenizer(base_folder), DataSpec(train="rows.jsonl")
    assert plain is not None
    theirs = encode_rows(rows(), load(base_folder).tokenizer, spec, max_length=512)
    assert encode_rows(rows(), plain, spec, max_length=512) == theirs


def test_without_a_tokenizer_tokens_are_guessed_and_it_says_so(tmp_path: Path, settings: Settings) -> None:
    folder = tiny_llama(tmp_path / "base")
    BaseStore(settings).add(read_base(folder, BaseModelRef(id="tiny-llama"), "folder"))
    recipe = project(tmp_path / "project")
    counted = plan_training(recipe, device="l4", settings=settings)
    (folder / "tokenizer.json").unlink()
    guessed = plan_training(recipe, device="l4", settings=settings)
    assert (counted.counted, guessed.counted) == (True, False)
    assert "guessed" in dict(guessed.facts())["tokens"]
    # The tiny tokenizer knows bytes alone, of which a guessed token has several.
    assert 0 < guessed.written.cost.tokens < counted.written.cost.tokens


# --- what would fit ---------------------------------------------------------------------------------------------------


def test_where_it_does_not_fit_it_says_what_does(
    tmp_path: Path, home: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = project(tmp_path, training={"per_device_train_batch_size": 16})
    plain = plan_training(recipe, device="rtx4090", settings=home)
    by_title = {option.title: option for option in plain.options}
    checkpointed = by_title["checkpointing"].cost.memory.total
    assert checkpointed < plain.written.cost.memory.total
    small = by_title["checkpointing, batch 1 × 16"].cost.memory.total
    assert small <= checkpointed
    _with_memory(monkeypatch, (checkpointed + plain.written.cost.memory.total) / 2 / FIT_SHARE)
    assert main(["plan", str(recipe), "--device", "rtx4090"]) == 0
    out, err = capsys.readouterr()
    assert "as written it does not fit; this does: --set training." in err
    plan = plan_training(recipe, device="rtx4090", settings=home)
    assert plan.written.fits is False and plan.advised is not None and plan.advised.fits
    assert "QLoRA" in out and "cannot be built" not in out and all(option.buildable for option in plan.options)
    again = plan_training(recipe, device="rtx4090", settings=home, overrides=plan.advised.changes)
    assert again.written.fits and again.written.cost.memory == plan.advised.cost.memory


def test_what_fits_and_cannot_be_built_is_marked(
    tmp_path: Path, home: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = project(tmp_path, hyperparameters={"init_lora_weights": "pissa"})
    plan = plan_training(recipe, device="rtx4090", settings=home)
    assert all(option.buildable != ("QLoRA" in option.title) for option in plan.options)
    assert main(["plan", str(recipe), "--device", "rtx4090"]) == 0
    assert "cannot be built" in capsys.readouterr().out
    smallest = min(option.cost.memory.total for option in plan.options if option.buildable)
    _with_memory(monkeypatch, smallest / FIT_SHARE - 1)
    tight = plan_training(recipe, device="rtx4090", settings=home)
    assert tight.advised is None and "cannot be built with these settings" in tight.warnings[-1]


def test_where_nothing_fits_it_says_so(tmp_path: Path, home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_memory(monkeypatch, 1 << 20)
    plan = plan_training(project(tmp_path), device="rtx4090", settings=home)
    assert plan.advised is None and "smaller base model" in plan.warnings[-1]


def test_smaller_batches_keep_the_rows_of_a_step(tmp_path: Path, home: Settings) -> None:
    plan = plan_training(
        project(tmp_path, training={"gradient_accumulation_steps": 2}), device="rtx4090", settings=home
    )
    assert {(o.cost.batch, o.cost.accumulation) for o in plan.options} == {(4, 2), (2, 4), (1, 8)}
    odd = plan_training(
        project(tmp_path / "odd", training={"per_device_train_batch_size": 9}), device="rtx4090", settings=home
    )
    assert {(o.cost.batch, o.cost.accumulation) for o in odd.options} == {(9, 1), (3, 3), (1, 9)}
    assert len({option.title for option in plan.options}) == len(plan.options) == 12


def _with_memory(monkeypatch: pytest.MonkeyPatch, memory: float) -> None:
    from dataclasses import replace

    real = _devices.choose_target
    monkeypatch.setattr("adapterhub.ops.plan.choose_target", lambda name: replace(real(name), memory=round(memory)))


# --- devices ----------------------------------------------------------------------------------------------------------


def test_every_device_has_its_figures_and_a_source() -> None:
    for name, row in DEVICES.items():
        assert row.name == name and row.source.startswith("https://")
        assert row.float32 > 1e11 and row.bandwidth > 1e10 and (row.memory is None) == (row.kind == "cpu")
        assert row.half >= row.float32 or row.half_dtype is None
        assert row.throughput("float32") == row.float32 and row.throughput("bfloat16") == row.half


def test_the_page_of_devices_is_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "planning.md").read_text("utf-8")
    assert page.count("| `") == len(DEVICES)
    for row in DEVICES.values():
        assert f"| `{row.name}` | [{row.title}]({row.source}) |" in page
        assert f"| {row.float32 / 1e12:.4g} TFLOP/s |" in page and f"| {row.bandwidth / 1e9:.5g} GB/s |" in page


def test_devices_are_found_by_name_and_by_what_drivers_call_them() -> None:
    assert device_named("RTX4090") is DEVICES["rtx4090"]
    assert device_titled("NVIDIA GeForce RTX 3090") is DEVICES["rtx3090"]
    assert device_titled("NVIDIA A100-SXM4-80GB") is DEVICES["a100-80"]
    assert device_titled("Apple M1 Max") is DEVICES["m1-max"]
    assert device_titled("NVIDIA GeForce RTX 2060") is None
    with pytest.raises(UsageError) as caught:
        device_named("rtx490")
    assert caught.value.hint == "did you mean rtx4090?"


def test_a_gpu_here_is_found_by_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Settings) -> None:
    driver = tmp_path / "bin" / "nvidia-smi"
    driver.parent.mkdir()
    driver.write_text("#!/bin/sh\necho 'Tesla T4, 15360, 7.5'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(driver.parent))
    target = _devices.choose_target(None)
    assert (target.title, target.kind, target.memory, target.half_dtype) == ("Tesla T4", "cuda", 15360 << 20, "float16")
    assert target.row is DEVICES["t4"]
    plan = plan_training(project(tmp_path / "project"), settings=home)
    assert plan.written.cost.dtype == "float16"
    driver.write_text("#!/bin/sh\necho 'NVIDIA Odd Card, 8192, 8.6'\n")
    odd = plan_training(project(tmp_path / "project"), settings=home)
    assert odd.written.cost.seconds is None and odd.written.fits and "unknown" in dict(odd.facts())["time"]
    driver.write_text("#!/bin/sh\nexit 9\n")
    assert _devices.choose_target(None).kind == "cpu"
    with pytest.raises(UsageError, match="no CUDA device"):
        _devices.choose_target("cuda")


def test_this_processor_is_measured(tmp_path: Path, home: Settings) -> None:
    plan = plan_training(project(tmp_path), device="cpu", settings=home)
    assert plan.target.memory and plan.speed.float32 and plan.speed.float32 > 1e8
    assert "measured" in str(plan.speed) and plan.written.cost.seconds


@pytest.mark.parametrize(
    ("seconds", "words"), [(41.6, "42 s"), (600, "10 min"), (7200, "2.0 h"), (4 * 86400, "4.0 days")]
)
def test_durations_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert human_time(seconds) == words


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_has_no_estimate_is_refused(tmp_path: Path, home: Settings, base_folder: Path) -> None:
    recipe = project(tmp_path / "a")
    with pytest.raises(IncompatibleError, match="hra cannot be planned yet") as caught:
        plan_training(recipe, device="l4", overrides=["method=hra", "hyperparameters={}"], settings=home)
    assert "lora, dora, adalora" in str(caught.value.hint)
    folder = tmp_path / "quantized"
    shutil.copytree(base_folder, folder)
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq"})
    BaseStore(home).add(read_base(folder, BaseModelRef(id="packed"), "folder"))
    with pytest.raises(IncompatibleError, match="stored quantized"):
        plan_training(project(tmp_path / "b", base_model="packed"), device="l4", settings=home)


def test_a_quantized_base_is_estimated(tmp_path: Path, home: Settings) -> None:
    recipe = project(tmp_path, quantization={"load_in_4bit": True})
    plan = plan_training(recipe, device="rtx4090", settings=home)
    bare = plan_training(project(tmp_path / "bare"), device="rtx4090", settings=home)
    assert plan.written.cost.memory.base < bare.written.cost.memory.base
    assert plan.written.buildable and not plan.warnings
    with pytest.raises(UsageError, match="has 4 bits"):
        plan_training(recipe, device="rtx4090", settings=home, overrides=["hyperparameters.init_lora_weights=olora"])


def test_a_base_that_is_nowhere_is_an_error_of_the_network(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(NetworkError):
        plan_training(project(tmp_path, base_model="acme/absent"), device="l4", settings=settings)


# --- what is loaded ---------------------------------------------------------------------------------------------------

PROBE = """
import json, sys
from adapterhub.cli.main import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "peft", "numpy", "safetensors", "accelerate", "bitsandbytes", "huggingface_hub"}
print(json.dumps([code, sorted(heavy & set(sys.modules))]), file=sys.stderr)
"""


@pytest.mark.parametrize("device", ["rtx4090", "cpu"])
def test_neither_torch_nor_numpy_is_loaded(tmp_path: Path, home: Settings, device: str) -> None:
    del home
    command = [sys.executable, "-c", PROBE, "plan", str(project(tmp_path)), "--device", device, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stderr.splitlines()[-1]) == [0, []], done.stderr
    json.loads(done.stdout)


def test_only_headers_of_the_weights_are_read(tmp_path: Path, settings: Settings) -> None:
    """The tensors' bytes are cut off after the base was added: the plan stays the same."""
    folder = tiny_llama(tmp_path / "base")
    BaseStore(settings).add(read_base(folder, BaseModelRef(id="tiny-llama"), "folder"))
    recipe = project(tmp_path / "project")
    before = plan_training(recipe, device="l4", settings=settings).to_data()
    weights = folder / "model.safetensors"
    size, end = weights.stat().st_size, 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    with weights.open("r+b") as stream:
        stream.truncate(end)
        stream.truncate(size)
    assert plan_training(recipe, device="l4", settings=settings).to_data() == before
    write_json(folder / "config.json", {})
