"""What a stack tells of texts, for each task: as PEFT alone tells it of the same package, and with the right places."""

from __future__ import annotations

import io
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.cli.main import main
from adapterhub.documents import read_manifest
from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.ops.build import build
from adapterhub.ops.load import load
from adapterhub.ops.predict import predict
from adapterhub.ops.run import plan_run, run
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.generation import Generation
from adapterhub.spec.manifest import MANIFEST_FILE, WEIGHTS_FILE
from adapterhub.spec.predictions import Answered, Classified, Embedded, Tagged, Written
from tests.engine.tasks.tiny_bert import tiny_bert
from tests.engine.tasks.tiny_seq_2_seq import tiny_bart, tiny_t5
from tests.factory import edit_tensors, write_json

pytestmark = pytest.mark.engine

CONTEXT = "bad film in rome. anna met the good"
ROWS: dict[str, list[dict[str, Any]]] = {
    "SEQ_CLS": [{"text": "good film", "label": "pos"}, {"text": "bad film", "label": "neg"}],
    "TOKEN_CLS": [
        {"tokens": ["anna", "met", "rome"], "tags": ["B-PER", "O", "B-LOC"]},
        {"tokens": ["in", "rome"], "tags": ["O", "B-LOC"]},
    ],
    "QUESTION_ANS": [
        {"question": "in ?", "context": CONTEXT, "answers": {"text": ["rome"], "answer_start": [12]}},
        {"question": "good ?", "context": "bad film", "answers": {"text": [], "answer_start": []}},
        {
            "question": "in ?",
            "context": "bad film " * 40 + CONTEXT,
            "answers": {"text": ["rome"], "answer_start": [372]},
        },
    ],
    "SEQ_2_SEQ_LM": [{"source": "one two", "target": "uno dos"}, {"source": "two", "target": "dos"}],
    "FEATURE_EXTRACTION": [{"anchor": "good", "positive": "film"}, {"anchor": "bad", "positive": "rome"}],
}
STEPS = {"SEQ_CLS": 12, "TOKEN_CLS": 25, "QUESTION_ANS": 100, "SEQ_2_SEQ_LM": 40, "FEATURE_EXTRACTION": 10}
RATES = {"QUESTION_ANS": 3e-3}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("home")
    settings = Settings(home=folder, threads=1)
    for name, make in (("tiny-bert", tiny_bert), ("tiny-t5", tiny_t5), ("tiny-bart", tiny_bart)):
        BaseStore(settings).add(read_base(make(folder / name), BaseModelRef(id=name), "folder"))
    return settings


def made(folder: Path, task: str, home: Settings, name: str = "tiny", **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]))
    data = {
        "recipe_version": "1.2",
        "name": name,
        "version": "1.0.0",
        "base_model": "tiny-bart" if task == "SEQ_2_SEQ_LM" else "tiny-bert",
        "task": task,
        "method": "lora",
        "hyperparameters": {"r": 8, "alpha": 16, "target_modules": "all-linear"},
        "data": {"train": "train.jsonl", "eval_split": 0},
        "training": {
            "learning_rate": RATES.get(task, 1e-2),
            "lr_scheduler_type": "constant",
            "max_steps": STEPS[task],
            "per_device_train_batch_size": 16,
        },
        **changes,
    }
    write_json(folder / "recipe.yaml", data)
    build(folder / "recipe.yaml", out=folder / "out", settings=home)
    return folder / "out"


@pytest.fixture(scope="module")
def packages(home: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packages")
    return {task: made(folder / task, task, home) for task in ROWS}


def by_peft(package: Path, base: Path, auto: str, **options: Any) -> Any:
    """The same package, by PEFT alone."""
    import transformers
    from peft import PeftModel

    return PeftModel.from_pretrained(getattr(transformers, auto).from_pretrained(base, **options), package).eval()


def batch(home: Settings, *texts: str, base: str = "tiny-bert", **options: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(home.home / base)(*texts, return_tensors="pt", **options)


def test_labels_are_the_manifests_and_probabilities_pefts(packages: dict[str, Path], home: Settings) -> None:
    import torch

    found = predict(["good film", "bad film is in rome"], stack=str(packages["SEQ_CLS"]), settings=home)
    model = by_peft(packages["SEQ_CLS"], home.home / "tiny-bert", "AutoModelForSequenceClassification", num_labels=2)
    for item in found.items:
        assert isinstance(item, Classified)
        with torch.inference_mode():
            shares = model(**batch(home, item.text)).logits.softmax(-1)[0]
        assert dict(item.labels) == pytest.approx({"neg": float(shares[0]), "pos": float(shares[1])}, abs=1e-5)
        assert item.labels[0][1] >= item.labels[1][1]
    assert [item.label for item in found.items if isinstance(item, Classified)] == ["pos", "neg"]
    data = found.to_data()
    assert data["task"] == "SEQ_CLS" and json.dumps(data)
    (pair,) = predict("good", context="bad", stack=str(packages["SEQ_CLS"]), settings=home).items
    assert isinstance(pair, Classified)
    with torch.inference_mode():
        shares = model(**batch(home, "good", "bad")).logits.softmax(-1)[0]
    assert dict(pair.labels)["neg"] == pytest.approx(float(shares[0]), abs=1e-5)


def test_entities_stand_where_they_stand_in_the_text(packages: dict[str, Path], home: Settings) -> None:
    text = "  Anna,\tmet Rome."
    (item,) = predict(text, stack=str(packages["TOKEN_CLS"]), settings=home).items
    assert isinstance(item, Tagged)
    told = {(entity.label, entity.text, entity.start, entity.end) for entity in item.entities}
    assert {("PER", "Anna", 2, 6), ("LOC", "Rome", 12, 16)} <= told
    assert all(text[entity.start : entity.end] == entity.text for entity in item.entities)
    assert all(0 < entity.probability <= 1 for entity in item.entities)


def test_a_text_longer_than_the_context_is_tagged_to_its_end(packages: dict[str, Path], home: Settings) -> None:
    text = "in " * 150 + "rome"
    (item,) = predict(text, stack=str(packages["TOKEN_CLS"]), settings=home).items
    assert isinstance(item, Tagged)
    assert ("LOC", 450, 454) in {(entity.label, entity.start, entity.end) for entity in item.entities}


def test_an_answer_is_a_stretch_of_the_text_or_none(packages: dict[str, Path], home: Settings) -> None:
    import torch

    stack = str(packages["QUESTION_ANS"])
    (item,) = predict("in ?", context=CONTEXT, stack=stack, settings=home).items
    assert isinstance(item, Answered)
    assert (item.answer, item.start, item.end) == ("rome", 12, 16)
    model = by_peft(packages["QUESTION_ANS"], home.home / "tiny-bert", "AutoModelForQuestionAnswering")
    inputs = batch(home, "in ?", CONTEXT)
    with torch.inference_mode():
        found = model(**inputs)
    token = inputs.char_to_token(0, 12, 1)
    allowed = [0, *(i for i, side in enumerate(inputs.sequence_ids(0)) if side == 1)]
    shares = [logits[0, allowed].softmax(-1)[allowed.index(token)] for logits in (found.start_logits, found.end_logits)]
    assert item.probability == pytest.approx(float(shares[0] * shares[1]), abs=1e-5)
    assert item.probability > 0.5
    nothing, again = predict(["good ?", "in ?"], context="bad film", stack=stack, settings=home).items
    assert isinstance(nothing, Answered) and nothing.answer is None and isinstance(again, Answered)
    # Farther on than one window reaches, and counted in the whole text.
    (late,) = predict("in ?", context="bad film " * 60 + CONTEXT, stack=stack, settings=home).items
    assert isinstance(late, Answered)
    assert (late.answer, late.start, late.end) == ("rome", 552, 556)
    with pytest.raises(UsageError, match="needs a text"):
        predict("in ?", stack=stack, settings=home)


def test_vectors_are_the_mean_of_the_real_tokens(packages: dict[str, Path], home: Settings) -> None:
    import torch

    found = predict(["good", "bad film in rome"], stack=str(packages["FEATURE_EXTRACTION"]), settings=home)
    model = by_peft(packages["FEATURE_EXTRACTION"], home.home / "tiny-bert", "AutoModel")
    for item in found.items:
        assert isinstance(item, Embedded)
        with torch.inference_mode():
            states = model(**batch(home, item.text)).last_hidden_state[0].mean(0)
        assert item.vector == pytest.approx((states / states.norm()).tolist(), abs=1e-5)
    bare = predict("good", base="tiny-bert", settings=home).items
    assert isinstance(bare[0], Embedded) and bare[0].vector != pytest.approx(found.items[0].vector, abs=1e-3)  # type: ignore[union-attr]


def test_a_sum_of_two_adapters_of_vectors(packages: dict[str, Path], home: Settings, tmp_path: Path) -> None:
    one, other = packages["FEATURE_EXTRACTION"], shutil.copytree(packages["FEATURE_EXTRACTION"], tmp_path / "other")
    (whole,) = predict("good", stack=str(one), settings=home).items
    (halves,) = predict("good", stack=f"{one}=0.4,{other}=0.6", settings=home).items
    assert isinstance(whole, Embedded) and isinstance(halves, Embedded)
    assert halves.vector == pytest.approx(whole.vector, abs=1e-5)


def test_text_is_what_peft_generates(packages: dict[str, Path], home: Settings) -> None:
    stack = str(packages["SEQ_2_SEQ_LM"])
    greedy = Generation(max_new_tokens=8)
    found = predict(["one two", "two"], stack=stack, generation=greedy, settings=home)
    model = by_peft(packages["SEQ_2_SEQ_LM"], home.home / "tiny-bart", "AutoModelForSeq2SeqLM")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(home.home / "tiny-bart")
    for item in found.items:
        assert isinstance(item, Written)
        inputs = {name: value for name, value in tokenizer(item.text, return_tensors="pt").items() if "ids" in name}
        inputs.pop("token_type_ids", None)
        told = model.generate(**inputs, max_new_tokens=8, num_beams=1, do_sample=False)[0]
        assert item.written == tokenizer.decode(told, skip_special_tokens=True)
    assert [item.written for item in found.items if isinstance(item, Written)] == ["uno dos", "dos"]
    pieces: list[str] = []
    plan = plan_run("one two", stack=stack, generation=greedy, settings=home)
    result = run(plan, write=pieces.append)
    assert (result.text, "".join(pieces), result.finish_reason) == ("uno dos", "uno dos", "stop")


@pytest.mark.parametrize("method", ["ia3", "bitfit", "prefix_tuning"])
def test_methods_that_are_no_sum_tell_what_was_measured_of_them(home: Settings, tmp_path: Path, method: str) -> None:
    given = {"num_virtual_tokens": 3} if method == "prefix_tuning" else {}
    data = {"train": "train.jsonl", "eval": "train.jsonl"}
    package = made(tmp_path, "SEQ_CLS", home, method=method, hyperparameters=given, data=data)
    found = predict([row["text"] for row in ROWS["SEQ_CLS"]], stack=str(package), settings=home)
    shares = [dict(item.labels) for item in found.items if isinstance(item, Classified)]
    loss = -(math.log(shares[0]["pos"]) + math.log(shares[1]["neg"])) / 2
    assert loss == pytest.approx(read_manifest(package).metrics["eval_loss"], abs=1e-5)


def test_what_cannot_be_stacked_or_asked_is_refused(packages: dict[str, Path], home: Settings, tmp_path: Path) -> None:
    twin = shutil.copytree(packages["SEQ_CLS"], tmp_path / "twin")
    edit_tensors(
        twin / WEIGHTS_FILE,
        lambda all: {name: value + ("classifier" in name or "score" in name) for name, value in all.items()},
    )
    (twin / MANIFEST_FILE).unlink()
    one, other = str(packages["SEQ_CLS"]), str(packages["FEATURE_EXTRACTION"])
    for stack, reason in (
        (f"{one},{twin}", "heads cannot be summed"),
        (f"{one}=0.5", "no coefficient but 1"),
        (f"{other},{one}", "was trained for SEQ_CLS"),
    ):
        with pytest.raises(IncompatibleError) as caught:
            plan_run("good", stack=stack, settings=home)
        assert reason in " ".join(caught.value.details), stack
    for options, reason in (
        ({"system": "x"}, "no turns of a chat"),
        ({"raw": True}, "no turns of a chat"),
        ({"generation": Generation(max_new_tokens=3)}, "no text is drawn"),
    ):
        with pytest.raises(UsageError) as told:
            plan_run("good", stack=one, settings=home, **options)
        assert reason in " ".join(told.value.details)
    with pytest.raises(UsageError, match="has no place"):
        plan_run("good", stack=other, context="x", settings=home)
    with pytest.raises(UsageError, match="writes no text"):
        run(plan_run("good", stack=one, settings=home))


def test_a_head_that_nobody_brings_is_refused(packages: dict[str, Path], home: Settings, tmp_path: Path) -> None:
    """PEFT would make one of random values."""
    from safetensors.numpy import load_file, save_file

    from adapterhub.package import open_package

    folder = shutil.copytree(packages["SEQ_CLS"], tmp_path / "headless")
    weights = folder / "adapter_model.safetensors"
    save_file({name: item for name, item in load_file(weights).items() if "lora_" in name}, weights)
    (folder / "adapter_manifest.json").unlink()
    assert open_package(folder).manifest.task == "SEQ_CLS"
    with pytest.raises(IncompatibleError, match="neither its manifest nor its weights"):
        predict("good", stack=str(folder), base="tiny-bert", settings=home)


def test_a_plain_peft_folder_has_numbered_labels(packages: dict[str, Path], home: Settings, tmp_path: Path) -> None:
    folder = shutil.copytree(packages["SEQ_CLS"], tmp_path / "plain")
    (folder / "adapter_manifest.json").unlink()
    (item,) = predict("good film", stack=str(folder), base="tiny-bert", settings=home).items
    assert isinstance(item, Classified) and item.label == "LABEL_1"


def test_loaded_is_a_model_of_the_tasks_class(packages: dict[str, Path], home: Settings) -> None:
    loaded = load(str(packages["SEQ_CLS"]), settings=home)
    assert type(loaded.model).__name__ == "BertForSequenceClassification"
    assert (loaded.task, loaded.labels, loaded.model.config.id2label[1]) == ("SEQ_CLS", ("neg", "pos"), "pos")


def test_the_command_prints_what_it_is_asked(
    packages: dict[str, Path],
    home: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(home.home))
    monkeypatch.chdir(tmp_path)

    def printed(*arguments: str, piped: str = "") -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped.encode())))
        assert main(["run", "--device", "cpu", "--dtype", "float32", *arguments]) == 0
        return capsys.readouterr().out

    told = printed("--stack", str(packages["SEQ_CLS"]), piped="good film\n\nbad film\n").splitlines()
    assert told[0] == "good film" and told[1].endswith("  pos") and told[3] == "bad film"
    (tmp_path / "text.txt").write_text(CONTEXT)
    answer = printed("--stack", str(packages["QUESTION_ANS"]), "in ?", "--context-file", "text.txt")
    assert answer.startswith("rome  12:16  0.")
    data = json.loads(printed("--stack", str(packages["FEATURE_EXTRACTION"]), "good", "bad", "--json"))
    assert [len(row["vector"]) for row in data["results"]] == [32, 32]
    assert printed("--stack", str(packages["SEQ_2_SEQ_LM"]), "--max-new-tokens", "8", "one two") == "uno dos\n"
    lines = printed("--stack", str(packages["SEQ_2_SEQ_LM"]), "--max-new-tokens", "8", piped="one two\ntwo\n")
    assert lines == "uno dos\ndos\n"
    assert "classify" in printed("--stack", str(packages["SEQ_CLS"]), "good", "--dry-run")
