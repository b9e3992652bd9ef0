"""`adapt build` for classifiers: trained to know what the most frequent class does not, and loaded by PEFT alone."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.cli.main import main
from adapterhub.documents import read_manifest
from adapterhub.engine.data import IGNORED
from adapterhub.engine.tasks._classes import ClassExample
from adapterhub.errors import BuildError, IncompatibleError
from adapterhub.ops._estimate import any_adapter, read_base_shape
from adapterhub.ops._measures import measure_doubts
from adapterhub.ops._plan_cost import memory_of
from adapterhub.ops._recipes import read_recipe_with
from adapterhub.ops.build import BuildResult, build, plan_build
from adapterhub.ops.data import inspect_data
from adapterhub.ops.validate import validate
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.report import Severity
from tests.engine.tasks.tiny_bert import tiny_bert
from tests.factory import edit_json, tiny_llama, write_json

pytestmark = pytest.mark.engine

LONG = json.dumps({"text": "film " * 90, "label": "b"})
BASES = ("tiny-bert", "tiny-llama")
# Without what stands between its body and its head, which is then made anew as well.
BARE = "bare-bert"
# In a fresh process, with nothing of adapterhub: what is in the package, and what the base is, is all there is.
RELOAD = """
import json, sys
import torch, transformers
from peft import PeftModel
found = []
for task, package, base, rows in json.loads(sys.argv[1]):
    labels = json.load(open(package + "/adapter_manifest.json"))["labels"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    kind = "AutoModelForSequenceClassification" if task == "SEQ_CLS" else "AutoModelForTokenClassification"
    model = getattr(transformers, kind).from_pretrained(
        base, num_labels=len(labels), id2label=dict(enumerate(labels)), pad_token_id=tokenizer.pad_token_id
    )
    model = PeftModel.from_pretrained(model, package).eval()
    data = [json.loads(line) for line in open(rows)]
    texts = [row["text"] if task == "SEQ_CLS" else " ".join(row["tokens"]) for row in data]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    with torch.inference_mode():
        logits = model(**batch).logits
    if task == "SEQ_CLS":
        truth = [labels.index(row["label"]) for row in data]
    else:
        truth, picked = [], []
        for index, row in enumerate(data):
            at = 0
            for word, tag in zip(row["tokens"], row["tags"]):
                picked.append(logits[index, batch.char_to_token(index, at)])
                truth.append(labels.index(tag))
                at += len(word) + 1
        logits = torch.stack(picked)
    truth = torch.tensor(truth)
    loss = torch.nn.functional.cross_entropy(logits, truth).item()
    found.append((loss, (logits.argmax(-1) == truth).float().mean().item()))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("home")
    settings = Settings(home=folder, threads=1)
    tiny_bert(folder / "tiny-bert")
    tiny_llama(folder / "tiny-llama")
    tiny_bert(folder / BARE, pooler=False)
    for name in (*BASES, BARE):
        BaseStore(settings).add(read_base(folder / name, BaseModelRef(id=name), "folder"))
    return settings


def texts(count: int, seed: int) -> list[dict[str, object]]:
    """Rows whose class one word tells; numbers make each another."""
    chance = random.Random(seed)
    said = {"pos": "good", "neg": "bad", "none": "the"}
    rows: list[dict[str, object]] = []
    for _ in range(count):
        label = chance.choice(list(said))
        words = [said[label], "film", str(chance.randrange(1000))]
        chance.shuffle(words)
        rows.append({"text": " ".join(words), "label": label})
    return rows


def sentences(count: int, seed: int) -> list[dict[str, object]]:
    """Rows of words with their tags: `anna b c` is a person of three words, `rome` a place."""
    chance = random.Random(seed)
    parts = [(["anna", "b", "c"], ["B-PER", "I-PER", "I-PER"]), (["rome"], ["B-LOC"]), (["met"], ["O"])]
    rows: list[dict[str, object]] = []
    for _ in range(count):
        chosen = [chance.choice(parts) for _ in range(3)] + [([str(chance.randrange(1000))], ["O"])]
        rows.append(
            {"tokens": [w for part, _ in chosen for w in part], "tags": [t for _, part in chosen for t in part]}
        )
    return rows


def project(folder: Path, task: str, base: str, **changes: Any) -> Path:
    make = texts if task == "SEQ_CLS" else sentences
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", 64, 0), ("eval", 24, 1)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make(count, seed)))
    data = {
        "recipe_version": "1.2",
        "name": "tiny",
        "version": "1.0.0",
        "base_model": base,
        "task": task,
        # The pooler that the checkpoint holds is none of TOKEN_CLS's, and the head of both is trained whole.
        "hyperparameters": {"r": 8, "alpha": 16, **({"target_modules": "all-linear"} if task == "TOKEN_CLS" else {})},
        "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
        "training": {
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "num_train_epochs": 9 if task == "SEQ_CLS" else 4,
            "per_device_train_batch_size": 8,
            "seed": 3,
        },
        "evaluation": {"bootstrap_samples": 200},
    }
    for key, value in changes.items():
        data[key] = {**data[key], **value} if key in data and isinstance(value, dict) else value  # type: ignore[dict-item]
    write_json(folder / "recipe.yaml", data)
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def built(home: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], BuildResult]:
    folder = tmp_path_factory.mktemp("built")
    pairs = [*((task, base) for task in ("SEQ_CLS", "TOKEN_CLS") for base in BASES), ("SEQ_CLS", BARE)]
    found = {}
    for task, base in pairs:
        recipe = project(folder / f"{task}-{base}", task, base)
        words = ["training.max_steps=2"] if base == BARE else []
        found[task, base] = build(recipe, out=folder / f"{task}-{base}-out", overrides=words, settings=home)
    return found


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_a_classifier_learns_what_is_to_be_learned(
    built: dict[tuple[str, str], BuildResult], task: str, base: str
) -> None:
    result = built[task, base]
    manifest = read_manifest(result.path)
    metrics, main = manifest.metrics, "accuracy" if task == "SEQ_CLS" else "f1"
    assert manifest.task == task
    assert manifest.labels == (("neg", "none", "pos") if task == "SEQ_CLS" else ("O", "B-LOC", "B-PER", "I-PER"))
    assert metrics[f"eval_{main}"] > metrics[f"eval_{main}_naive"] + 0.3, dict(metrics)
    assert metrics[f"eval_{main}_low"] <= metrics[f"eval_{main}"] <= metrics[f"eval_{main}_high"]
    assert metrics["eval_rows"] == 24
    assert not [f for f in result.report.findings if f.severity is Severity.ERROR], result.report
    assert {"ADP301", "ADP302", "ADP308"} <= set(result.report.passed)
    assert result.warnings == ()


def test_plain_peft_measures_the_same_in_a_fresh_process(
    built: dict[tuple[str, str], BuildResult], home: Settings
) -> None:
    asked = [
        (task, str(result.path), str(home.home / base), str(result.path.parent / f"{task}-{base}" / "eval.jsonl"))
        for (task, base), result in built.items()
    ]
    ran = subprocess.run([sys.executable, "-c", RELOAD, json.dumps(asked)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    for result, (loss, accuracy) in zip(built.values(), json.loads(ran.stdout.splitlines()[-1]), strict=True):
        metrics = read_manifest(result.path).metrics
        assert metrics["eval_loss"] == pytest.approx(loss, abs=2e-5)
        assert metrics["eval_accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_what_is_printed_and_doubted(built: dict[tuple[str, str], BuildResult]) -> None:
    facts = dict(built["SEQ_CLS", "tiny-bert"].facts())
    assert "without a model" in facts["held-out accuracy"] and "95 % interval" in facts["held-out accuracy"]
    assert "held-out F1" in dict(built["TOKEN_CLS", "tiny-bert"].facts())
    assert measure_doubts({"eval_accuracy": 0.6, "eval_accuracy_low": 0.5, "eval_accuracy_naive": 0.5}, "SEQ_CLS")
    assert not measure_doubts({"eval_accuracy": 0.6, "eval_accuracy_low": 0.51, "eval_accuracy_naive": 0.5}, "SEQ_CLS")


def test_a_head_of_another_width_than_the_labels_is_refused(
    built: dict[tuple[str, str], BuildResult], home: Settings, tmp_path: Path
) -> None:
    folder = shutil.copytree(built["SEQ_CLS", "tiny-bert"].path, tmp_path / "copy")
    edit_json(folder / "adapter_manifest.json", labels=["neg", "pos"])
    report = validate(folder, base="tiny-bert", settings=home)
    assert [f.message for f in report.findings if f.code == "ADP308"] == ["has 3 outputs for 2 labels"]


def test_rows_of_one_label_or_of_one_that_is_not_trained(home: Settings, tmp_path: Path) -> None:
    recipe = project(tmp_path, "SEQ_CLS", "tiny-bert")
    (tmp_path / "eval.jsonl").write_text('{"text": "film 1", "label": "new"}\n')
    plan = plan_build(recipe, settings=home)
    assert plan.labels == ("neg", "new", "none", "pos")
    assert any("no training row has the label 'new'" in text and "count as wrong" in text for text in plan.warnings)
    words = ["data.labels=[pos, none, neg, new, other]"]
    plan = plan_build(recipe, overrides=words, settings=home)
    assert plan.labels == ("pos", "none", "neg", "new", "other")
    assert any("'new', 'other'" in text for text in plan.warnings)
    (tmp_path / "train.jsonl").write_text('{"text": "film 2", "label": "new"}\n')
    with pytest.raises(BuildError, match="have the label 'new' alone"):
        plan_build(recipe, settings=home)


def test_rows_that_are_cut_keep_their_end_token_and_are_told(home: Settings, tmp_path: Path) -> None:
    recipe = project(tmp_path, "SEQ_CLS", "tiny-bert")
    (tmp_path / "eval.jsonl").write_text(json.dumps({"text": "film " * 90, "label": "pos"}) + "\n")
    plan = plan_build(recipe, settings=home)
    # The base has 64 positions, fewer than max_length.
    assert plan.held_out.longest == 64
    assert any("1 held-out rows are cut at 64 tokens" in text for text in plan.warnings)


def test_rows_are_shown_with_what_is_learned_of_them(
    home: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = project(tmp_path, "SEQ_CLS", "tiny-bert")
    (tmp_path / "train.jsonl").write_text('{"text": "good film", "text_pair": "goods", "label": "a"}\n' + LONG + "\n")
    (tmp_path / "eval.jsonl").write_text('{"text": "film", "label": "a"}\n')
    found = inspect_data(recipe, rows=9, settings=home)
    assert found.shown[0].pieces == (("[CLS] good film [SEP] goods [SEP] → ", False), ("a", True))
    assert (found.shown[1].tokens, found.shown[1].cut, found.length) == (92, True, 64)
    assert found.labels == (("a", 1, 1), ("b", 1, 0))
    assert (found.train.tokens, found.train.trained, found.train.truncated) == (7 + 64, 2, ("train.jsonl:2",))
    monkeypatch.setenv("ADAPTERHUB_HOME", str(home.home))
    assert main(["data", "inspect", str(recipe)]) == 0
    assert "[CLS] good film [SEP] goods [SEP] → ⟦a⟧" in capsys.readouterr().out
    recipe = project(tmp_path, "TOKEN_CLS", "tiny-llama")
    (tmp_path / "train.jsonl").write_text('{"tokens": ["in", "Rome"], "tags": ["O", "B-LOC"]}\n')
    (row,) = inspect_data(recipe, settings=home).shown
    assert row.pieces == (("in", False), ("/O", True), (" ", False), ("Rome", False), ("/B-LOC", True))


def test_the_memory_of_logits_is_that_of_the_labels(home: Settings, tmp_path: Path) -> None:
    """A row of a classifier has as many logits as labels, and the beginning of two rows is computed for each."""
    recipe = read_recipe_with(project(tmp_path, "SEQ_CLS", "tiny-llama"), ())
    shape = read_base_shape(home.home / "tiny-llama", "llama", task="SEQ_CLS")
    rows = [
        ClassExample(place="", question="", input_ids=(1,) * 9, labels=(*[IGNORED] * 8, label)) for label in (0, 1, 2)
    ]
    kinds = {"dtype": "float32", "device": "cpu", "train": rows, "held_out": ()}
    found, vocabulary = (
        memory_of(recipe, shape, any_adapter(shape, 2), labels=labels, **kinds)  # type: ignore[arg-type]
        for labels in (("a", "b", "c"), ())
    )
    # Logits and their exponentials, in float32.
    assert vocabulary.logits - found.logits == len(rows) * (shape.vocabulary - 3) * 8
    causal = memory_of(replace(recipe, task="CAUSAL_LM"), shape, any_adapter(shape, 2), **kinds)  # type: ignore[arg-type]
    assert causal.activations < found.activations


def test_a_pooler_that_the_base_lacks_is_saved(built: dict[tuple[str, str], BuildResult]) -> None:
    """PEFT would leave it as it was made: another one for whoever loads the adapter."""
    result = built["SEQ_CLS", BARE]
    assert not [f for f in result.report.findings if f.severity is Severity.ERROR], result.report
    config = json.loads((result.path / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["classifier", "pooler", "score"]


def test_a_method_that_leaves_a_new_module_as_it_is_is_refused(home: Settings, tmp_path: Path) -> None:
    recipe = project(tmp_path, "SEQ_CLS", BARE)
    words = ["training.max_steps=2", "method=prompt_tuning", "hyperparameters={}"]
    with pytest.raises(IncompatibleError, match="prompt_tuning does not train"):
        build(recipe, out=tmp_path / "out", overrides=words, settings=home)
