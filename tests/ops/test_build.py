"""`adapt build`: what is planned, what lies there afterwards, what is refused; equal inputs give equal bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.cli.main import main
from adapterhub.documents import read_manifest, read_provenance
from adapterhub.errors import (
    BuildError,
    IncompatibleError,
    InvalidFileError,
    LocalIOError,
    UnsatisfiedError,
    UsageError,
)
from adapterhub.ops._estimate import read_base_shape, trainable_parameters
from adapterhub.ops._recipes import read_recipe_with
from adapterhub.ops.build import build, plan_build
from adapterhub.package import open_package, require_intact
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.digest import digest_file
from tests.engine.tiny import ANSWERS, Recorder, hyperparameters
from tests.factory import tiny_gpt2, tiny_llama, write_json

WORDS = ("red", "green", "blue", "black", "white", "yellow", "orange", "pink")


def chat(index: int) -> dict[str, object]:
    return {
        "messages": [
            {"role": "user", "content": f"Question {index} about {WORDS[index % len(WORDS)]}?"},
            {"role": "assistant", "content": ANSWERS[index % len(ANSWERS)]},
        ]
    }


def recipe_data(**changes: Any) -> dict[str, Any]:
    """Return a recipe for the tiny base; a mapping among the changes is merged into the recipe's own."""
    data: dict[str, Any] = {
        "recipe_version": "1.0",
        "name": "tiny-lora",
        "version": "1.0.0",
        "summary": "Answers in few words.",
        "license": "Apache-2.0",
        "domains": ["testing"],
        "languages": ["en"],
        "base_model": "tiny-llama",
        "hyperparameters": {"r": 4, "alpha": 8},
        "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
        "training": {
            "learning_rate": 1e-2,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "seed": 3,
            "logging_steps": 2,
        },
        "evaluation": {"bootstrap_samples": 200},
        "extra": {"note": "kept"},
    }
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(value, Mapping) and key in data else value
    return data


def project(folder: Path, **changes: Any) -> Path:
    """Write a recipe with 16 training rows and 5 held-out ones; return the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(chat(i)) + "\n" for i in range(16)))
    (folder / "eval.jsonl").write_text("".join(json.dumps(chat(i)) + "\n" for i in range(16, 21)))
    write_json(folder / "recipe.yaml", recipe_data(**changes))  # JSON is YAML
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def home(settings: Settings, base_folder: Path) -> Settings:
    """Settings whose base store knows the tiny Llama."""
    BaseStore(settings).add(read_base(base_folder, BaseModelRef(id="tiny-llama"), "folder"))
    return settings


# --- the recipe as it will be built -----------------------------------------------------------------------------------


def test_overrides_are_yaml_values_at_dotted_fields(tmp_path: Path) -> None:
    path = project(tmp_path)
    recipe = read_recipe_with(
        path,
        [
            "training.max_steps=5",
            "training.learning_rate=3e-4",
            "hyperparameters.target_modules=[q_proj, k_proj]",
            'version="2.0.0"',
            "evaluation.max_rows=",
            "summary=a=b",
        ],
    )
    assert (recipe.training.max_steps, recipe.training.learning_rate) == (5, 3e-4)
    assert recipe.hyperparameters["target_modules"] == ("q_proj", "k_proj")
    assert (str(recipe.version), recipe.summary) == ("2.0.0", "a=b")
    assert read_recipe_with(path, []).digest != recipe.digest
    assert read_recipe_with(path, ["training.seed=3"]).digest == read_recipe_with(path, []).digest


@pytest.mark.parametrize("text", ["training.max_steps", "=5", "training..seed=1", "name.first=x", "training=[", ""])
def test_an_override_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        read_recipe_with(project(tmp_path), [text])


def test_an_override_is_checked_like_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError, match="did you mean 'max_steps'"):
        read_recipe_with(project(tmp_path), ["training.max_step=5"])


@pytest.mark.parametrize(
    ("changes", "field", "word"),
    [
        ({"method": "xlora"}, "method", "cannot be built"),
        ({"method": "ia3"}, "hyperparameters", "ia3 has no such hyperparameter"),
        ({"method": "lroa"}, "method", "not a method"),
        ({"task": "causal_lm"}, "task", "not a task"),
        ({"method": "lokr", "quantization": {"load_in_4bit": True}}, "method", "over a 4-bit base"),
        ({"hyperparameters": {"lora_aplha": 3}}, "hyperparameters: lora_aplha", "did you mean 'lora_alpha'"),
        ({"hyperparameters": {"r": 0}}, "hyperparameters: r", "at least 1"),
        ({"data": {"train": "../rows.jsonl"}}, "data.train", "segment"),
    ],
)
def test_what_cannot_be_built_names_its_field(
    tmp_path: Path, home: Settings, changes: dict[str, Any], field: str, word: str
) -> None:
    with pytest.raises(UsageError) as caught:
        plan_build(project(tmp_path, **changes), settings=home)
    text = f"{caught.value} {caught.value.hint}"
    assert f"recipe.yaml: {field}" in text
    assert word in text


def test_a_base_that_is_not_here_and_another_revision(tmp_path: Path, home: Settings) -> None:
    with pytest.raises(UnsatisfiedError) as caught:
        plan_build(project(tmp_path, base_model="other"), settings=home)
    assert "adapt base add" in str(caught.value.hint)
    with pytest.raises(UnsatisfiedError, match="wants revision v9"):
        plan_build(project(tmp_path, base_model="tiny-llama#v9"), settings=home)


def test_malformed_rows_come_before_anything_heavy(tmp_path: Path, home: Settings) -> None:
    """Every row of both files is named, and torch is not loaded to say so."""
    path = project(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"text": 1}\n{"prompt": "a"}\n' + json.dumps(chat(1)) + "\n{\n")
    (tmp_path / "eval.jsonl").write_text("[]\n")
    body = (
        "import sys; from adapterhub.cli.main import main\n"
        f"code = main(['build', {str(path)!r}])\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & sys.modules.keys())); sys.exit(code)"
    )
    env = {**os.environ, "ADAPTERHUB_HOME": str(home.home)}
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 2
    assert done.stdout.strip() == "[]"
    for place in ("train.jsonl:1", "train.jsonl:2", "train.jsonl:4", "eval.jsonl:1"):
        assert place in done.stderr
    assert "train.jsonl:3" not in done.stderr


def test_a_target_that_is_not_there_is_found_in_the_headers(tmp_path: Path, home: Settings) -> None:
    with pytest.raises(IncompatibleError, match="qproj") as caught:
        plan_build(project(tmp_path, hyperparameters={"target_modules": ["q_proj", "qproj"]}), settings=home)
    assert "gate_proj" in str(caught.value.hint)


# --- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.engine
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": "all-linear"},
        {"rank_pattern": {"q_proj": 2}, "use_rslora": True},
        {"target_modules": ["v_proj", "embed_tokens", "lm_head"]},
        {"modules_to_save": ["lm_head"]},
        {"layers_to_transform": [1], "exclude_modules": ["v_proj"], "target_modules": ["q_proj", "k_proj", "v_proj"]},
        {"target_modules": r".*layers\.0.*proj"},
    ],
)
def test_trainable_parameters_are_those_of_the_built_model(base_folder: Path, settings: dict[str, Any]) -> None:
    from adapterhub.engine import adapters
    from tests.engine.tiny import load

    given = hyperparameters(**settings)
    model = adapters.attach(load(base_folder), given, task="CAUSAL_LM", seed=0)
    counted = trainable_parameters(read_base_shape(base_folder, "llama"), given, where="test")
    assert counted == adapters.trainable_parameters(model)


@pytest.mark.engine
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["c_attn"]},
        {"target_modules": "all-linear"},
        {"target_modules": ["c_fc"], "bias": "lora_only"},
    ],
)
def test_trainable_parameters_of_a_gpt2(tmp_path: Path, settings: dict[str, Any]) -> None:
    from adapterhub.engine import adapters
    from tests.engine.tiny import load

    folder, given = tiny_gpt2(tmp_path / "base"), hyperparameters(**settings)
    model = adapters.attach(load(folder), given, task="CAUSAL_LM", seed=0)
    counted = trainable_parameters(read_base_shape(folder, "gpt2"), given, where="test")
    assert counted == adapters.trainable_parameters(model)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.engine
def test_the_plan_counts_by_hand_and_writes_nothing(tmp_path: Path, home: Settings, monkeypatch: Any) -> None:
    path = project(tmp_path / "p")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path), tree(home.home)
    plan = plan_build(path, settings=home, device="cpu")
    assert (tree(tmp_path), tree(home.home)) == before
    # A byte is a token, and so is each of the four marks of a row's two turns, here written as one character.
    rows = [(f"Question {i} about {WORDS[i % 8]}?", ANSWERS[i % 7]) for i in range(16)]
    texts = [f"[user\n{question}]\n[assistant\n{answer}]\n" for question, answer in rows]
    assert plan.train.rows == 16
    assert plan.train.tokens == sum(len(text) for text in texts)
    assert plan.train.trained == sum(len(ANSWERS[i % 7]) + 1 for i in range(16))
    assert plan.train.longest == max(len(text) for text in texts)
    assert plan.held_out.rows == 5
    assert plan.training_steps == 2 * 4
    # Llama's default targets are q, k, v, o: (32, 32), (16, 32), (16, 32), (32, 32) in each of two layers.
    assert plan.trainable == 2 * 4 * (64 + 48 + 48 + 64)
    assert plan.out == Path("dist/tiny-lora-1.0.0")
    assert plan.hyperparameters["lora_alpha"] == 8
    data = json.loads(json.dumps(plan.to_data()))
    assert data["train"]["tokens"] == plan.train.tokens
    assert data["memory_bytes"] == plan.memory > 400_000_000
    assert dict(plan.facts())["steps"] == "8 of 4 rows"


@pytest.mark.engine
def test_the_plan_warns_of_what_flatters_or_is_lost(tmp_path: Path, home: Settings) -> None:
    path = project(tmp_path, data={"max_length": 60})
    with (tmp_path / "eval.jsonl").open("a") as stream:
        stream.write(json.dumps(chat(2)) + "\n")
    plan = plan_build(path, settings=home)
    assert any("held-out rows are trained on as well, eval.jsonl:6" in text for text in plan.warnings)
    assert any("training rows are cut at 60 tokens" in text for text in plan.warnings)
    none = project(tmp_path / "b", data={"eval": None, "eval_split": 0.0})
    assert any("no row is held out" in text for text in plan_build(none, settings=home).warnings)
    share = plan_build(project(tmp_path / "c", data={"eval": None, "eval_split": 0.25}), settings=home)
    assert (share.train.rows, share.held_out.rows) == (12, 4)
    few = plan_build(project(tmp_path / "d", evaluation={"max_rows": 2}), settings=home)
    assert few.held_out.rows == 2


@pytest.mark.engine
def test_rows_longer_than_the_base_s_context_are_cut_there(tmp_path: Path, home: Settings) -> None:
    path = project(tmp_path, data={"max_length": 4096})
    with (tmp_path / "train.jsonl").open("a") as stream:
        stream.write(json.dumps({"text": "x" * 900}) + "\n")
    plan = plan_build(path, settings=home)
    assert plan.train.longest == 512


# --- the package ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One build, which the tests below look at."""
    root = tmp_path_factory.mktemp("built")
    settings = Settings(home=root / "home", threads=1)
    BaseStore(settings).add(read_base(base_folder, BaseModelRef(id="tiny-llama"), "folder"))
    recorder = Recorder.new()
    result = build(project(root / "p"), out=root / "out", settings=settings, progress=recorder, device="cpu")
    return result, settings, recorder, root


@pytest.mark.engine
def test_a_built_package_is_complete_and_valid(built: Any) -> None:
    result, settings, recorder, root = built
    assert result.report.ok, result.report
    assert {path.name for path in result.path.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_manifest.json", "adapter_model.safetensors",
        "adapter_provenance.json", "loss.svg", "training_log.jsonl",
    }  # fmt: skip
    package = open_package(result.path)
    require_intact(package)
    manifest = package.manifest
    assert manifest == result.manifest == read_manifest(result.path)
    assert {entry.path for entry in manifest.files} == {"adapter_config.json", "adapter_model.safetensors"}
    assert (manifest.name, str(manifest.version), manifest.license) == ("tiny-lora", "1.0.0", "Apache-2.0")
    assert manifest.base_model == BaseStore(settings).get("tiny-llama").ref
    assert manifest.hyperparameters["target_modules"] == ("k_proj", "o_proj", "q_proj", "v_proj")
    assert manifest.built_from.recipe == read_recipe_with(root / "p" / "recipe.yaml", []).digest
    assert [(source.name, source.rows) for source in manifest.built_from.data] == [
        ("train.jsonl", 16), ("eval.jsonl", 5)
    ]  # fmt: skip
    assert manifest.built_from.seed == 3
    assert set(manifest.built_from.tools) == {"adapterhub", "peft", "torch", "transformers"}
    assert manifest.extra == {"note": "kept"}
    assert manifest.metrics["train_steps"] == 8
    assert any(label.startswith("training (8 steps") for label in recorder.tasks)


@pytest.mark.engine
def test_the_provenance_is_about_this_manifest(built: Any, base_folder: Path) -> None:
    result, settings, _, root = built
    provenance = read_provenance(result.path)
    assert provenance.manifest == result.manifest.digest
    names = {dependency.name: dependency.digest for dependency in provenance.dependencies}
    base = BaseStore(settings).get("tiny-llama").ref.fingerprints
    assert names["recipe"] == result.manifest.built_from.recipe
    assert names["base model tiny-llama"] == base.weights
    assert names["base model tiny-llama: tokenizer"] == base.tokenizer
    assert names["base model tiny-llama: model.safetensors"] == digest_file(base_folder / "model.safetensors")[0]
    assert {source.name: names[source.name] for source in result.manifest.built_from.data} == {
        name: digest_file(root / "p" / name)[0] for name in ("train.jsonl", "eval.jsonl")
    }
    assert [(left.name, left.digest) for left in provenance.byproducts] == [
        ("training_log.jsonl", digest_file(result.path / "training_log.jsonl")[0])
    ]
    given: Any = provenance.parameters["recipe"]
    assert (given["training"]["seed"], provenance.parameters["device"]) == (3, "cpu")
    assert str(provenance.invocation).startswith("urn:uuid:")
    assert provenance.environment["threads"] == 1
    assert "torch" in dict(provenance.environment["packages"])  # type: ignore[call-overload]
    assert provenance.started <= provenance.finished


@pytest.mark.engine
def test_the_recorded_losses_are_those_of_the_package_in_plain_peft(built: Any, base_folder: Path) -> None:
    """Both losses of the manifest, measured again by PEFT and transformers alone, on prompts rendered here."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result, _, _, root = built
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), str(result.path)).eval()

    def mean_loss() -> float:
        total, count = 0.0, 0
        for line in (root / "p" / "eval.jsonl").read_text().splitlines():
            question, answer = (turn["content"] for turn in json.loads(line)["messages"])
            head = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            ids = tokenizer(head + answer + "<|im_end|>", return_tensors="pt", add_special_tokens=False).input_ids
            labels = ids.clone()
            labels[:, : len(tokenizer(head, add_special_tokens=False).input_ids)] = -100
            learned = int((labels != -100).sum())
            with torch.no_grad():
                total += model(input_ids=ids, labels=labels).loss.item() * learned
            count += learned
        return total / count

    metrics = result.manifest.metrics
    assert mean_loss() == pytest.approx(metrics["eval_loss"], rel=1e-5)
    with model.disable_adapter():
        assert mean_loss() == pytest.approx(metrics["eval_loss_base"], rel=1e-5)
    assert metrics["eval_loss"] < metrics["eval_loss_base"]
    assert metrics["eval_loss_reduction"] == pytest.approx(
        1 - metrics["eval_loss"] / metrics["eval_loss_base"], abs=1e-5
    )
    assert metrics["eval_loss_reduction_low"] < metrics["eval_loss_reduction"] < metrics["eval_loss_reduction_high"]


@pytest.mark.engine
def test_the_card_tells_what_was_built(built: Any) -> None:
    card = (built[0].path / "README.md").read_text()
    assert card.startswith("---\nbase_model: tiny-llama\nbase_model_relation: adapter\nlibrary_name: peft\n")
    assert ElementTree.fromstring((built[0].path / "loss.svg").read_text()).tag.endswith("svg")
    for text in ("(loss.svg)", "# tiny-lora 1.0.0", "| lora_alpha | 8 |", "| learning_rate | 0.01 |", "95 % interval"):
        assert text in card
    assert f"{built[0].manifest.metrics['eval_loss']:.4f}" in card
    assert str(built[3]) not in card


@pytest.mark.engine
def test_equal_inputs_give_equal_bytes_and_another_seed_does_not(built: Any) -> None:
    result, settings, _, root = built
    reproducible = ("adapter_config.json", "adapter_manifest.json", "adapter_model.safetensors", "README.md")
    again = build(root / "p" / "recipe.yaml", out=root / "again", settings=settings, device="cpu")
    for name in (*reproducible, "loss.svg"):
        assert (again.path / name).read_bytes() == (result.path / name).read_bytes(), name
    assert again.manifest.digest == result.manifest.digest
    other = build(
        root / "p" / "recipe.yaml", out=root / "other", overrides=["training.seed=4"], settings=settings, device="cpu"
    )
    name = "adapter_model.safetensors"
    assert (other.path / name).read_bytes() != (result.path / name).read_bytes()


def test_a_taken_folder_is_refused_before_the_work(tmp_path: Path, home: Settings) -> None:
    path = project(tmp_path / "p")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("notes")
    before = tree(tmp_path)
    for force in (False, True):
        with pytest.raises(LocalIOError, match="already exists"):
            build(path, out=tmp_path / "out", settings=home, force=force)
    assert tree(tmp_path) == before


@pytest.mark.engine
def test_an_adapter_that_may_not_help_says_so(tmp_path: Path, home: Settings) -> None:
    path = project(tmp_path, training={"learning_rate": 0.0})
    result = build(path, out=tmp_path / "out", settings=home, device="cpu")
    assert result.manifest.metrics["eval_loss_reduction"] == 0
    assert any("may not help" in text for text in result.warnings)


@pytest.mark.engine
def test_a_build_that_fails_leaves_nothing(tmp_path: Path, home: Settings) -> None:
    (tmp_path / "out").mkdir()
    path = project(tmp_path / "p")

    class Interrupting(Recorder):
        def advance(self, amount: int = 1) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(path, out=tmp_path / "out" / "tiny", settings=home, progress=Interrupting.new())
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.engine
def test_a_row_with_nothing_to_learn_fails_the_build(tmp_path: Path, home: Settings) -> None:
    path = project(tmp_path / "p", data={"max_length": 8})
    with pytest.raises(BuildError, match="no row has a token to learn") as caught:
        build(path, out=tmp_path / "out", settings=home)
    assert "Question 0 about red?" in caught.value.details[0]
    assert not (tmp_path / "out").exists()


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.engine
def test_the_dry_run_prints_the_plan_and_writes_nothing(
    tmp_path: Path, home: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project(tmp_path / "p")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    assert main(["build", str(path), "--dry-run", "--set", "training.max_steps=5", "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    for text in ("tiny-lora 1.0.0", "tiny-llama", "16 rows", "5 of 4 rows", "parameters", "GB", "dist/tiny-lora-1.0.0"):
        assert text in shown.out
    assert "nothing was done" in shown.err
    assert main(["build", str(path), "--dry-run", "--json", "--seed", "9"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["recipe"]["training"]["seed"] == 9
    assert tree(tmp_path) == before


@pytest.mark.engine
def test_the_command_builds_in_a_process_of_its_own(tmp_path: Path, home: Settings) -> None:
    path = project(tmp_path / "p")
    env = {**os.environ, "ADAPTERHUB_HOME": str(home.home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "adapterhub.cli.main", "build", str(path), "--device", "cpu", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["path"] == "dist/tiny-lora-1.0.0"
    assert data["digest"] == str(read_manifest(tmp_path / data["path"]).digest)
    assert data["metrics"]["eval_loss"] < data["metrics"]["eval_loss_base"]
    assert data["report"]["ok"] is True
    assert "Warning" not in done.stderr
    assert [item.name for item in (tmp_path / "dist").iterdir()] == ["tiny-lora-1.0.0"]


@pytest.mark.engine
def test_ctrl_c_keeps_what_was_trained_and_the_same_command_goes_on(tmp_path: Path, home: Settings) -> None:
    path = project(tmp_path / "p", training={"max_steps": 300, "logging_steps": 1, "save_steps": 5})
    env = {
        **os.environ,
        "ADAPTERHUB_HOME": str(home.home),
        "ADAPTERHUB_THREADS": "1",
        "TMPDIR": str(tmp_path / "tmp"),
    }
    (tmp_path / "tmp").mkdir()
    words = ["build", str(path), "--out", "out/tiny", "--device", "cpu"]
    command = [sys.executable, "-m", "adapterhub.cli.main", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            if any((tmp_path / "out").glob(".tiny.building/*/step-*")):
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "run the same command again to go on" in errors
    assert "what was trained is kept in out/.tiny.building" in errors
    assert [item.name for item in (tmp_path / "out").iterdir()] == [".tiny.building"]
    assert not (tmp_path / "p" / "recipe.lock").exists()
    assert list((tmp_path / "tmp").iterdir()) == []
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert 0 < data["resumed_at"] < data["steps"] == 300
    assert "going on from the checkpoint" in done.stderr
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["tiny"]
    whole = build(path, out=tmp_path / "whole", settings=Settings(home=home.home, threads=1), device="cpu")
    assert (whole.resumed_at, str(whole.manifest.digest)) == (None, data["digest"])


# --- the real model ---------------------------------------------------------------------------------------------------


@pytest.mark.real_model
@pytest.mark.parametrize("name", ["medical", "spanish"])
def test_a_shipped_recipe_learns_on_the_real_model(name: str, smollm2_home: Path, tmp_path: Path) -> None:
    """A few steps of each: the held-out loss falls, and the estimate of memory is of the right size."""
    settings = Settings(home=smollm2_home, threads=2)
    shutil.copytree(Path(__file__).parents[2] / "recipes" / name, tmp_path / "recipe")
    recipe = tmp_path / "recipe" / "recipe.yaml"
    overrides = ["training.max_steps=6", "evaluation.max_rows=24"]
    plan = plan_build(recipe, settings=settings, overrides=overrides, device="cpu")
    assert plan.warnings == ()
    assert 1.5e9 < plan.memory < 4e9
    result = build(recipe, out=tmp_path / name, settings=settings, overrides=overrides, device="cpu")
    assert result.report.ok, result.report
    assert result.manifest.metrics["eval_rows"] == 24
    assert result.manifest.metrics["eval_loss_reduction_low"] > 0
    assert result.manifest.base_model.fingerprints.weights is not None
