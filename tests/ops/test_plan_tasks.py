"""`adapt plan` of classifiers, answers and vectors: the same numbers as the build's own, without transformers."""

from __future__ import annotations

import json
import random
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.errors import IncompatibleError
from adapterhub.ops import _devices
from adapterhub.ops.build import plan_build
from adapterhub.ops.plan import plan_training
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from tests.engine.tasks.tiny_bert import tiny_bert
from tests.engine.tasks.tiny_seq_2_seq import SOURCE, TARGET, tiny_bart, tiny_t5
from tests.factory import tiny_llama, write_json

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    made = {"tiny-bert": tiny_bert(folder / "bert"), "tiny-llama": tiny_llama(folder / "llama")}
    return made | {"tiny-t5": tiny_t5(folder / "t5"), "tiny-bart": tiny_bart(folder / "bart")}


@pytest.fixture
def home(settings: Settings, folders: dict[str, Path]) -> Settings:
    for name, folder in folders.items():
        BaseStore(settings).add(read_base(folder, BaseModelRef(id=name), "folder"))
    return settings


def row_of(task: str, chance: random.Random) -> dict[str, object]:
    words = [chance.choice(("good", "bad", "film", "the", "rome")) for _ in range(chance.randint(2, 12))]
    text = " ".join(words)
    if task == "SEQ_2_SEQ_LM":
        told = [chance.choice(TARGET) for _ in range(chance.randint(1, 20))]
        return {"source": " ".join(chance.choice(SOURCE) for _ in words), "target": " ".join(told)}
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


@pytest.mark.parametrize(
    ("task", "base"),
    [
        *product(("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"), ("tiny-bert", "tiny-llama")),
        *(("SEQ_2_SEQ_LM", base) for base in ("tiny-t5", "tiny-bart")),
    ],
)
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


def test_of_sources_and_targets_both_widths_count_and_are_guessed_without_a_tokenizer(
    tmp_path: Path, home: Settings, folders: dict[str, Path]
) -> None:
    def memory(name: str, base: str, **rows: str) -> Any:
        data = {"train": "train.jsonl", "max_length": 48, "eval_split": 0}
        recipe = project(tmp_path / name, "SEQ_2_SEQ_LM", base, data=data)
        if rows:
            (recipe.parent / "train.jsonl").write_text(f"{json.dumps(rows)}\n" * 24)
        plan = plan_training(recipe, device="epyc-7763", settings=home)
        return plan.counted, plan.written.cost

    short, long = "one two", "one two three four " * 8
    wide = {"source": long, "target": "uno dos tres cuatro " * 8}
    (_, small), (_, of_sources), (_, of_both) = (
        memory("a", "tiny-t5", source=short, target="uno"),
        memory("b", "tiny-t5", source=long, target="uno"),
        memory("c", "tiny-t5", **wide),
    )
    found = [cost.memory.activations for cost in (small, of_sources, of_both)]
    assert found == sorted(set(found))
    assert small.operations < of_sources.operations < of_both.operations
    shutil.copytree(folders["tiny-t5"], tmp_path / "unread")
    (tmp_path / "unread/tokenizer.json").unlink()
    BaseStore(home).add(read_base(tmp_path / "unread", BaseModelRef(id="unread"), "folder"))
    counted, guessed = memory("d", "unread", **wide)
    # 152 characters at 3.5 bytes a token, and the token that ends them: more than its words are.
    assert (counted, guessed.width, of_both.width) == (False, 44, 33)
    assert guessed.memory.activations > of_both.memory.activations


def test_what_is_not_known_of_an_encoder_with_a_decoder_is_refused(tmp_path: Path, home: Settings) -> None:
    for number, (task, more) in enumerate(
        (("SEQ_CLS", {}), ("SEQ_2_SEQ_LM", {"quantization": {"load_in_4bit": True}}))
    ):
        recipe = project(tmp_path / str(number), task, "tiny-bart", **more)
        with pytest.raises(IncompatibleError, match="an encoder with a decoder"):
            plan_training(recipe, device="l4", settings=home)
    recipe = project(tmp_path / "plain", "SEQ_2_SEQ_LM", "tiny-bart")
    titles = [option.title for option in plan_training(recipe, device="l4", settings=home).options]
    assert "checkpointing" in titles and not any("QLoRA" in title for title in titles)
