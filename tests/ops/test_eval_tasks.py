"""`adapt eval` of other tasks: what `adapt build` measured, what plain PEFT says, and what a gate does."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.cli.main import main
from adapterhub.documents import read_manifest
from adapterhub.engine.evaluate import parts_change
from adapterhub.errors import ExitCode, IncompatibleError, InvalidFileError, UsageError
from adapterhub.ops._eval_result import GateResult
from adapterhub.ops.build import build
from adapterhub.ops.eval import EvalPlan, evaluate, plan_eval
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from tests.engine.tasks.tiny_bert import tiny_bert
from tests.engine.tasks.tiny_seq_2_seq import tiny_t5
from tests.factory import edit_json, edit_tensors
from tests.ops import test_build_more_tasks as more
from tests.ops import test_build_tasks as classes

pytestmark = pytest.mark.engine

CASES = {
    "SEQ_CLS": "tiny-bert",
    "TOKEN_CLS": "tiny-bert",
    "QUESTION_ANS": "tiny-bert",
    "FEATURE_EXTRACTION": "tiny-bert",
    "SEQ_2_SEQ_LM": "tiny-t5",
}
MAIN = {"SEQ_CLS": "accuracy", "TOKEN_CLS": "f1", **more.MAIN}
HEADED = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
# Enough for numbers; the classifier alone has to know something that it can lose.
FEW_STEPS = ("training.max_steps=12",)


class Shelf:
    """A home with the tiny bases, and a folder with a recipe and a package a task."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = Settings(home=folder / "home", threads=1)
        for name, make in (("tiny-bert", tiny_bert), ("tiny-t5", tiny_t5)):
            BaseStore(self.settings).add(read_base(make(folder / name), BaseModelRef(id=name), "folder"))
        for task, base in CASES.items():
            make_project = classes.project if task in ("SEQ_CLS", "TOKEN_CLS") else more.project
            recipe = make_project(folder / task, task, base)
            build(
                recipe, overrides=() if task == "SEQ_CLS" else FEW_STEPS, out=self.package(task), settings=self.settings
            )

    def package(self, task: str) -> Path:
        return self.folder / f"{task}-out"

    def plan(self, task: str, rows: str = "recipe.yaml", **options: Any) -> EvalPlan:
        given = {"stack": str(self.package(task))} if "gate" not in options else {}
        return plan_eval(
            self.folder / task / rows,
            **{**given, **options},
            settings=self.settings,
            cwd=self.folder,
            device="cpu",
            dtype="float32",
        )

    def rows(self, task: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / task / "eval.jsonl").read_text().splitlines()]

    def write(self, task: str, rows: list[dict[str, Any]], name: str = "more.jsonl") -> str:
        (self.folder / task / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


@pytest.mark.parametrize("task", CASES)
def test_the_numbers_are_those_that_the_build_measured(shelf: Shelf, task: str) -> None:
    metrics = read_manifest(shelf.package(task)).metrics
    (group,) = evaluate(shelf.plan(task)).groups
    first, adapter = group.scores
    rival = "naive" if task in HEADED else "base"
    assert (first.kind, adapter.kind, group.measure) == (rival, "adapter", MAIN[task])
    assert group.rows == metrics["eval_rows"]
    assert adapter.loss == pytest.approx(metrics["eval_loss"], abs=1e-5)
    for name, value in adapter.measures.items():
        assert value == pytest.approx(metrics[f"eval_{name}"], abs=1e-6), name
        assert first.measures[name] == pytest.approx(metrics[f"eval_{name}_{rival}"], abs=1e-6), name
    assert {f"eval_{name}" for name in adapter.measures} <= set(metrics) and MAIN[task] in adapter.measures
    assert adapter.low is not None and adapter.high is not None
    assert adapter.low <= adapter.measures[MAIN[task]] <= adapter.high
    assert (first.loss is None) == (task in HEADED)
    if task not in HEADED:
        change = adapter.against_base
        base, own = first.measures[MAIN[task]], adapter.measures[MAIN[task]]
        assert change is None if not base else change is not None and change.relative == pytest.approx(own / base - 1)


def test_plain_peft_says_the_same_of_a_file_of_rows(shelf: Shelf) -> None:
    names = {"SEQ_CLS": "accuracy", "TOKEN_CLS": "accuracy"}
    asked = [
        (task, str(shelf.package(task)), str(shelf.folder / CASES[task]), str(shelf.folder / task / "eval.jsonl"))
        for task in names
    ]
    ran = subprocess.run(
        [sys.executable, "-c", classes.RELOAD, json.dumps(asked)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    for task, (loss, accuracy) in zip(names, json.loads(ran.stdout.splitlines()[-1]), strict=True):
        (group,) = evaluate(shelf.plan(task, "eval.jsonl")).groups
        naive, adapter = group.scores
        assert adapter.loss == pytest.approx(loss, abs=2e-5)
        assert adapter.measures["accuracy"] == pytest.approx(accuracy, abs=1e-6)
        assert naive.label.endswith("of these rows")


def test_slices_are_measured_by_themselves(shelf: Shelf) -> None:
    rows = [{**row, "kind": "ab"[index % 3 == 0]} for index, row in enumerate(shelf.rows("SEQ_CLS"))]
    name = shelf.write("SEQ_CLS", rows)
    every, *parts = evaluate(shelf.plan("SEQ_CLS", name, slice_by="kind")).groups
    assert [(group.slice, group.rows) for group in parts] == [("a", 16), ("b", 8)]
    for index in range(2):
        accuracies = [group.scores[index].measures["accuracy"] for group in (every, *parts)]
        if index:
            assert accuracies[0] * 24 == pytest.approx(accuracies[1] * 16 + accuracies[2] * 8)
    asked = [{**row, "kind": "far" if row["answers"]["text"] else "none"} for row in shelf.rows("QUESTION_ANS")]
    # Longer than the model reads at once: several windows, one row.
    asked[1]["context"] += " b c" * 60
    groups = evaluate(shelf.plan("QUESTION_ANS", shelf.write("QUESTION_ANS", asked), slice_by="kind")).groups
    counted = {kind: sum(row["kind"] == kind for row in asked) for kind in ("far", "none")}
    assert {group.slice: group.rows for group in groups} == {None: len(asked), **counted}
    assert groups[0].tokens > 2 * len(asked)


@pytest.fixture(scope="module")
def project(shelf: Shelf) -> Path:
    """A project that has the classifier locked."""
    folder = shelf.folder / "project"
    folder.mkdir()
    (folder / "adapters.yaml").write_text(
        "project_version: '1.0'\nbase_model: tiny-bert\nstacks: {}\nregistries:\n  '*': ../registry\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPTERHUB_HOME", str(shelf.settings.home))
        patch.chdir(folder)
        assert main(["publish", str(shelf.package("SEQ_CLS")), "--to", "acme/tiny-lora"]) == 0
        assert main(["install", "acme/tiny-lora@1.0.0"]) == 0
    return folder


def candidate(shelf: Shelf, name: str, change: Any, **manifest: Any) -> Path:
    """Return a copy of the classifier with other weights of its head, as a package of a newer version."""
    folder = shutil.copytree(shelf.package("SEQ_CLS"), shelf.folder / name)
    weights = folder / "adapter_model.safetensors"
    edit_tensors(weights, lambda found: {n: change(v) if "classifier" in n else v for n, v in found.items()})
    data = weights.read_bytes()
    files = json.loads((folder / "adapter_manifest.json").read_text())["files"]
    for entry in files:
        if entry["path"] == weights.name:
            entry |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    edit_json(folder / "adapter_manifest.json", files=files, version="1.1.0", **manifest)
    return folder


def gate_of(shelf: Shelf, project: Path, folder: Path, **options: Any) -> GateResult:
    rows = shelf.folder / "SEQ_CLS" / "eval.jsonl"
    place: dict[str, Any] = {"settings": shelf.settings, "cwd": project, "device": "cpu", "dtype": "float32"}
    found = evaluate(plan_eval(rows, gate=str(folder), **options, **place)).gate
    assert found is not None
    return found


def test_a_worse_classifier_regresses_with_the_rows_that_it_lost(shelf: Shelf, project: Path) -> None:
    worse = candidate(shelf, "worse", lambda values: -values)
    gate = gate_of(shelf, project, worse)
    assert gate.measure == "accuracy" and gate.exit_code is ExitCode.UNSATISFIED
    (verdict,) = gate.verdicts
    assert verdict.verdict == "regressed" and verdict.candidate < verdict.locked
    assert verdict.change is not None and verdict.change.high < 0
    # A row that was right and is wrong now, and no other.
    assert len(gate.rows) >= round((verdict.locked - verdict.candidate) * verdict.rows)
    assert all((row.locked, row.candidate, row.added) == (1.0, 0.0, 1.0) for row in gate.rows)
    data = gate.to_data()
    assert data["measure"] == "accuracy" and data["verdicts"][0]["accuracy_locked"] == round(verdict.locked, 6)
    assert {row["place"] for row in data["rows"]} <= {f"eval.jsonl:{n}" for n in range(1, 25)}
    allowed = gate_of(shelf, project, worse, max_regression=1.0)
    assert (allowed.exit_code, allowed.rows) == (ExitCode.OK, ())


def test_a_head_that_numbers_the_same_labels_otherwise_is_compared_by_their_names(shelf: Shelf, project: Path) -> None:
    labels = list(reversed(read_manifest(shelf.package("SEQ_CLS")).labels))
    gate = gate_of(shelf, project, candidate(shelf, "turned", lambda values: values[::-1].copy(), labels=labels))
    (verdict,) = gate.verdicts
    assert (gate.exit_code, gate.rows) == (ExitCode.OK, ())
    assert verdict.locked == verdict.candidate and verdict.change is not None and verdict.change.relative == 0


def test_a_candidate_for_another_task_is_refused(shelf: Shelf, project: Path) -> None:
    with pytest.raises(IncompatibleError, match="for TOKEN_CLS, and the locked version for SEQ_CLS"):
        gate_of(shelf, project, shelf.package("TOKEN_CLS"), against="tiny")


def test_the_command_of_a_gate(
    shelf: Shelf, project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(shelf.settings.home))
    monkeypatch.chdir(project)
    worse = candidate(shelf, "lost", lambda values: -values)
    words = ["eval", "../SEQ_CLS/eval.jsonl", "--gate", str(worse), "--device", "cpu", "--dtype", "float32"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert "ACCURACY, LOCKED" in out and "regressed" in out and "eval.jsonl:" in out and "LOST" in out
    assert "failed: the accuracy is more than 1.00% lower, beyond chance: all" in err


def test_a_change_is_that_of_two_quotients_drawn_together() -> None:
    import numpy as np

    chance = np.random.default_rng(1)
    one, other = ([(float(a), float(b)) for a, b in chance.integers(1, 9, size=(40, 2))] for _ in range(2))
    questions = [f"q{n // 2}" for n in range(40)]
    found = parts_change(questions, one, other, samples=4000, seed=0)
    assert found is not None

    def value(parts: list[tuple[float, float]], rows: list[int]) -> float:
        return sum(parts[i][0] for i in rows) / sum(parts[i][1] for i in rows)

    every = list(range(40))
    assert found[0] == pytest.approx(value(other, every) / value(one, every) - 1)
    drawn = []
    for _ in range(4000):
        rows = [i for pair in chance.integers(0, 20, size=20) for i in (2 * int(pair), 2 * int(pair) + 1)]
        drawn.append(value(other, rows) / value(one, rows) - 1)
    assert found[1:] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.05)
    assert parts_change(questions, [(0.0, 1.0)] * 40, other, samples=10, seed=0) is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "good film"}, "more.jsonl:2"),
        ({"text": "good film", "label": "sideways"}, "1 rows have a label that"),
    ],
)
def test_rows_of_the_wrong_shape_are_named(shelf: Shelf, row: dict[str, Any], words: str) -> None:
    name = shelf.write("SEQ_CLS", [shelf.rows("SEQ_CLS")[0], row], "more.jsonl")
    with pytest.raises(InvalidFileError) as caught:
        evaluate(shelf.plan("SEQ_CLS", name))
    told = " ".join((caught.value.message, caught.value.where or "", *caught.value.details))
    assert words in told and "more.jsonl:2" in told


def test_what_cannot_be_measured_is_refused(shelf: Shelf) -> None:
    with pytest.raises(UsageError, match="a bare base has no head for SEQ_CLS"):
        shelf.plan("SEQ_CLS", stack="", base="tiny-bert")
    with pytest.raises(UsageError, match="for TOKEN_CLS, and what is to be measured does SEQ_CLS"):
        shelf.plan("TOKEN_CLS", stack=str(shelf.package("SEQ_CLS")))
    with pytest.raises(IncompatibleError):
        shelf.plan("SEQ_CLS", stack=f"{shelf.package('SEQ_CLS')},{shelf.package('TOKEN_CLS')}")


def test_a_bare_base_does_what_needs_no_head(shelf: Shelf) -> None:
    (group,) = evaluate(shelf.plan("FEATURE_EXTRACTION", stack="", base="tiny-bert")).groups
    assert [score.kind for score in group.scores] == ["base"]
    assert "mrr" in group.scores[0].measures


def test_a_stack_of_what_needs_no_head_has_a_line_of_its_own(shelf: Shelf) -> None:
    package = shelf.package("SEQ_2_SEQ_LM")
    (group,) = evaluate(shelf.plan("SEQ_2_SEQ_LM", stack=f"{package}=0.5")).groups
    assert [score.kind for score in group.scores] == ["base", "adapter", "stack"]
    assert group.scores[2].loss != group.scores[1].loss


def test_the_command(shelf: Shelf, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(shelf.settings.home))
    monkeypatch.chdir(shelf.folder)
    words = ["eval", "SEQ_CLS/recipe.yaml", "--stack", "./SEQ_CLS-out", "--device", "cpu", "--dtype", "float32"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ACCURACY" in lines[0] and "F1, MEAN OF CLASSES" in lines[0] and "LOSS" in lines[0]
    assert "the most frequent class of the training rows" in lines[1] and "% (" in lines[2]
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["task"] == "SEQ_CLS" and data["groups"][0]["measure"] == "accuracy"
    naive, adapter = data["groups"][0]["models"]
    assert (
        naive["loss"] is None and adapter["perplexity"] is None and set(naive["measures"]) == set(adapter["measures"])
    )
    assert main([*words, "--dry-run", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [step["detail"] for step in steps if step["action"] == "measure"] == ["naive", "adapter"]
