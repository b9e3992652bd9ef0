"""`adapt plan` of classifiers, answers and vectors: the same numbers as the build's own, without transformers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.ops import _devices
from adapterhub.ops.build import plan_build
from adapterhub.ops.plan import plan_training
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from tests.engine.tasks.tiny_bert import tiny_bert
from tests.factory import tiny_llama, write_json

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {"tiny-bert": tiny_bert(folder / "bert"), "tiny-llama": tiny_llama(folder / "llama")}


@pytest.fixture
def home(settings: Settings, folders: dict[str, Path]) -> Settings:
    for name, folder in folders.items():
        BaseStore(settings).add(read_base(folder, BaseModelRef(id=name), "folder"))
    return settings


def row_of(task: str, chance: random.Random) -> dict[str, object]:
    words = [chance.choice(("good", "bad", "film", "the", "rome")) for _ in range(chance.randint(2, 12))]
    text = " ".join(words)
    if task == "SEQ_CLS":
        return {"text": text, "text_pair": "the film " * chance.randint(1, 30), "label": chance.choice("ab")}
    if task == "TOKEN_CLS":
        return {"tokens": words, "tags": [chance.choice(("O", "B-X")) for _ in words]}
    if task == "QUESTION_ANS":
        context = f"{text} anna {'good ' * chance.randint(1, 90)}"
        return {
            "question": "the film?",
            "context": context,
            "answers": {"text": ["anna"], "answer_start": [context.index("anna")]},
        }
    return {"anchor": text, "positive": f"{text} met", "negative": "the film " * chance.randint(1, 9)}


def project(folder: Path, task: str, base: str, **more: object) -> Path:
    chance = random.Random(0)
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row_of(task, chance)) + "\n" for _ in range(24)))
    data = {
        "recipe_version": "1.2",
        "name": "x",
        "version": "1.0.0",
        "base_model": base,
        "method": "lora",
        "hyperparameters": {"r": 4},
        "task": task,
        "data": {"train": "train.jsonl", "max_length": 48, "eval_split": 0.2},
        "training": {"num_train_epochs": 1, "per_device_train_batch_size": 4, "dtype": "float32"},
        **more,
    }
    write_json(folder / "recipe.yaml", data)
    return folder / "recipe.yaml"


@pytest.mark.parametrize("base", ["tiny-bert", "tiny-llama"])
@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"])
def test_it_is_the_build_s_own_estimate(
    tmp_path: Path, home: Settings, monkeypatch: pytest.MonkeyPatch, base: str, task: str
) -> None:
    monkeypatch.setattr(_devices, "_nvidia", lambda: None)
    recipe = project(tmp_path / "project", task, base)
    planned = plan_training(recipe, device="epyc-7763", settings=home)
    built = plan_build(recipe, settings=home, device="cpu", out=tmp_path / "out")
    assert planned.counted
    assert planned.written.cost.memory.total == built.memory
    assert (planned.trainable, planned.written.cost.steps) == (built.trainable, built.training_steps)
    assert planned.rows == built.train.rows and planned.held_out == built.held_out.rows


def test_full_fine_tuning_is_planned_and_told_to_be_no_package(tmp_path: Path, home: Settings) -> None:
    recipe = project(tmp_path / "project", "SEQ_CLS", "tiny-bert", method="full", hyperparameters={})
    full = plan_training(recipe, device="l4", settings=home)
    lora = plan_training(project(tmp_path / "lora", "SEQ_CLS", "tiny-bert"), device="l4", settings=home)
    memory = full.written.cost.memory
    assert full.trainable > 10 * lora.trainable and memory.optimizer == 8 * full.trainable
    # All of the base is trained: it is held once, in float32; 16-bit products take a copy.
    dtype = full.written.cost.dtype
    assert memory.base + memory.adapter == (4 if dtype == "float32" else 6) * full.trainable
    assert not full.written.buildable and full.advised is None
    assert any("approximate" in warning for warning in full.warnings)
    assert all("QLoRA" not in option.title for option in full.options)
