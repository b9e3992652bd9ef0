"""`adapt build` for sequences, answers and vectors: learned beyond their rivals, and the same under PEFT alone."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.documents import read_manifest
from adapterhub.errors import IncompatibleError
from adapterhub.ops._base_shape import base_shape
from adapterhub.ops.build import BuildResult, build, plan_build
from adapterhub.ops.data import inspect_data
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.report import Severity
from tests.engine.tasks.tiny_bert import tiny_bert
from tests.engine.tasks.tiny_seq_2_seq import SOURCE, TARGET, tiny_bart, tiny_t5
from tests.factory import write_json

pytestmark = pytest.mark.engine

CASES = (
    ("SEQ_2_SEQ_LM", "tiny-t5"),
    ("SEQ_2_SEQ_LM", "tiny-bart"),
    ("QUESTION_ANS", "tiny-bert"),
    ("FEATURE_EXTRACTION", "tiny-bert"),
)
MAIN = {"SEQ_2_SEQ_LM": "rouge_l", "QUESTION_ANS": "f1", "FEATURE_EXTRACTION": "mrr"}
RIVAL = {"SEQ_2_SEQ_LM": "base", "QUESTION_ANS": "naive", "FEATURE_EXTRACTION": "base"}
# In a fresh process, with nothing of adapterhub: what is in the package, and what the base is, is all there is.
RELOAD = """
import json, sys
import torch, transformers
from peft import PeftModel
found = []
for task, package, base, rows in json.loads(sys.argv[1]):
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    kind = {"SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM", "QUESTION_ANS": "AutoModelForQuestionAnswering"}.get(task)
    model = getattr(transformers, kind or "AutoModel").from_pretrained(base)
    model = PeftModel.from_pretrained(model, package).eval()
    data = [json.loads(line) for line in open(rows)]
    with torch.inference_mode():
        if task == "SEQ_2_SEQ_LM":
            total = count = 0
            for row in data:
                batch = tokenizer(row["source"], text_target=row["target"], return_tensors="pt")
                batch = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
                units = batch["labels"].numel()
                total, count = total + model(**batch).loss.item() * units, count + units
            found.append(total / count)
        elif task == "QUESTION_ANS":
            losses = []
            for row in data:
                batch = tokenizer(row["question"], row["context"], return_tensors="pt")
                answer = row["answers"]
                start = end = 0
                if answer["text"]:
                    at = answer["answer_start"][0]
                    start = batch.char_to_token(0, at, 1)
                    end = batch.char_to_token(0, at + len(answer["text"][0]) - 1, 1)
                ends = dict(start_positions=torch.tensor([start]), end_positions=torch.tensor([end]))
                losses.append(model(**batch, **ends).loss.item())
            found.append(sum(losses) / len(losses))
        else:
            vectors = []
            for side in ("anchor", "positive"):
                batch = tokenizer([row[side] for row in data], return_tensors="pt", padding=True)
                states, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
                vectors.append(torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
            near = vectors[0] @ vectors[1].T
            ranks = (near >= near.diagonal()[:, None]).sum(1)
            found.append((1 / ranks).mean().item())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("home")
    settings = Settings(home=folder, threads=1)
    for name, make in (("tiny-bert", tiny_bert), ("tiny-t5", tiny_t5), ("tiny-bart", tiny_bart)):
        BaseStore(settings).add(read_base(make(folder / name), BaseModelRef(id=name), "folder"))
    return settings


def sequences(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows whose target is the source word by word in another language."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        chosen = [chance.randrange(len(SOURCE)) for _ in range(chance.randint(1, 3))]
        rows.append({"source": " ".join(SOURCE[i] for i in chosen), "target": " ".join(TARGET[i] for i in chosen)})
    return rows


def questions(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows asking for the place: `rome`, or none; the rest of the text is letters."""
    chance = random.Random(seed)
    rows = []
    for index in range(count):
        letters = [chance.choice("bcdefghij") for _ in range(6)]
        answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
        if index % 3:
            place = chance.randrange(6)
            letters[place] = "Rome"
            answers = {"text": ["Rome"], "answer_start": [sum(len(word) + 1 for word in letters[:place])]}
        rows.append({"question": "in ?", "context": " ".join(letters), "answers": answers})
    return rows


def pairs(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows whose positive has the anchor's letters thirteen further on."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        chosen = chance.sample(range(13), 2)
        rows.append(
            {
                "anchor": " ".join(chr(97 + i) for i in chosen),
                "positive": " ".join(chr(110 + i) for i in chosen),
            }
        )
    return rows


ROWS = {"SEQ_2_SEQ_LM": sequences, "QUESTION_ANS": questions, "FEATURE_EXTRACTION": pairs}


def project(folder: Path, task: str, base: str, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    train = ROWS[task](96, 0)
    # None that was trained on; of vectors none with the letters of another.
    fresh = {
        str(sorted(row["anchor"]) if "anchor" in row else row): row for row in ROWS[task](60, 1) if row not in train
    }
    for name, rows in (("train", train), ("eval", list(fresh.values())[:12])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data: dict[str, Any] = {
        "recipe_version": "1.2",
        "name": "tiny",
        "version": "1.0.0",
        "base_model": base,
        "task": task,
        "hyperparameters": {"r": 8, "alpha": 16, "target_modules": "all-linear"},
        "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
        "training": {
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "num_train_epochs": 6,
            "per_device_train_batch_size": 8,
            "seed": 3,
        },
        "evaluation": {"bootstrap_samples": 200},
    }
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    write_json(folder / "recipe.yaml", data)
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def built(home: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], BuildResult]:
    folder = tmp_path_factory.mktemp("built")
    return {
        (task, base): build(
            project(folder / f"{task}-{base}", task, base), out=folder / f"{base}-{task}", settings=home
        )
        for task, base in CASES
    }


@pytest.mark.parametrize(("task", "base"), CASES)
def test_what_is_to_be_learned_is_learned(built: dict[tuple[str, str], BuildResult], task: str, base: str) -> None:
    result = built[task, base]
    manifest = read_manifest(result.path)
    metrics, main = manifest.metrics, MAIN[task]
    assert (manifest.task, manifest.labels) == (task, ())
    assert metrics[f"eval_{main}"] > metrics[f"eval_{main}_{RIVAL[task]}"] + 0.2, dict(metrics)
    assert metrics[f"eval_{main}_low"] <= metrics[f"eval_{main}"] <= metrics[f"eval_{main}_high"]
    assert not [f for f in result.report.findings if f.severity is Severity.ERROR], result.report
    assert {"ADP301", "ADP302"} <= set(result.report.passed)
    assert result.warnings == ()
    assert dict(result.facts())


def test_plain_peft_measures_the_same_in_a_fresh_process(
    built: dict[tuple[str, str], BuildResult], home: Settings
) -> None:
    asked = [
        (task, str(result.path), str(home.home / base), str(result.path.parent / f"{task}-{base}" / "eval.jsonl"))
        for (task, base), result in built.items()
    ]
    ran = subprocess.run([sys.executable, "-c", RELOAD, json.dumps(asked)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    for ((task, _), result), value in zip(built.items(), json.loads(ran.stdout.splitlines()[-1]), strict=True):
        metrics = read_manifest(result.path).metrics
        assert metrics["eval_mrr" if task == "FEATURE_EXTRACTION" else "eval_loss"] == pytest.approx(value, abs=2e-5)


def test_rows_are_shown_with_what_is_learned_of_them(home: Settings, tmp_path: Path) -> None:
    (row,) = inspect_data(project(tmp_path / "s", "SEQ_2_SEQ_LM", "tiny-t5"), rows=1, settings=home).shown
    source, target = sequences(1, 0)[0].values()
    assert row.pieces == ((f"{source} </s> → ", False), (f"{target} </s>", True))
    shown = inspect_data(project(tmp_path / "q", "QUESTION_ANS", "tiny-bert"), rows=96, settings=home).shown
    assert {piece for row in shown for piece, learned in row.pieces if learned} == {" rome", "[CLS]"}
    (row,) = inspect_data(project(tmp_path / "f", "FEATURE_EXTRACTION", "tiny-bert"), rows=1, settings=home).shown
    anchor, positive = pairs(1, 0)[0].values()
    assert row.pieces == ((f"[CLS] {anchor} [SEP] ~ ", False), (f"[CLS] {positive} [SEP]", True))


def test_vectors_of_an_encoder_with_a_decoder_are_refused(home: Settings, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="FEATURE_EXTRACTION needs an encoder"):
        plan_build(project(tmp_path, "FEATURE_EXTRACTION", "tiny-t5"), settings=home)


def test_positions_that_no_text_has_are_no_room() -> None:
    """RoBERTa's first position is behind its padding's id: a text of 514 tokens would have no place in 514."""
    config = {"max_position_embeddings": 514, "pad_token_id": 1, "hidden_size": 8}
    assert base_shape(config, {}, "roberta").context == 512
    assert base_shape(config, {}, "bert").context == 514
