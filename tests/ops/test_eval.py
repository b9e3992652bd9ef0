"""Losses of base, members and stack against transformers' own; what a gate lets pass, fails, and cannot tell."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from adapterhub.cli.main import main
from adapterhub.engine.data import Example
from adapterhub.engine.evaluate import RowLosses
from adapterhub.errors import (
    ExitCode,
    InvalidFileError,
    UnsatisfiedError,
    UsageError,
)
from adapterhub.ops._eval_result import GateResult, Measured, judge
from adapterhub.ops._eval_rows import NO_VALUE
from adapterhub.ops.eval import EvalPlan, evaluate, models_of, plan_eval
from adapterhub.settings import Settings
from tests.engine.tiny import ANSWERS
from tests.factory import tiny_llama
from tests.ops.world import World

FILE = "rows.jsonl"
SLICES = ("red", "green")


def chats(count: int = 12) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"Question {'very ' * (i % 4)}{i}?"},
                {"role": "assistant", "content": ANSWERS[i % len(ANSWERS)]},
            ],
            "colour": SLICES[i % 2],
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def world(tmp_path: Path, settings: Settings, base_folder: Path) -> World:
    world = World(root=tmp_path, settings=settings, base=base_folder)
    world.yaml("base_model: tiny-llama\n")
    world.add_base(world.base)
    write_rows(world, chats())
    return world


def write_rows(world: World, rows: list[dict[str, Any]], name: str = FILE) -> Path:
    path = world.project / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plan(world: World, rows: str = FILE, **options: Any) -> EvalPlan:
    return plan_eval(rows, settings=world.settings, cwd=world.project, device="cpu", dtype="float32", **options)


@pytest.mark.engine
def test_losses_are_those_of_models_loaded_one_by_one(world: World) -> None:
    """Each model is loaded anew by load(), and each row's loss is the one that transformers computes of its labels."""
    from adapterhub.engine.data import encode_rows, pad
    from adapterhub.ops.load import load

    first, second = world.build("one", lora_alpha=64, seed=1), world.build("two", lora_alpha=64, seed=2)
    planned = plan(world, stack=f"{first},{second}=0.5", slice_by="colour")
    found = evaluate(planned)
    assert [group.slice for group in found.groups] == [None, "green", "red"]
    assert [score.kind for score in found.groups[0].scores] == ["base", "adapter", "adapter", "stack"]
    for index, stack in enumerate(("", str(first), str(second), f"{first},{second}=0.5")):
        model, tokenizer = load(
            stack, base="tiny-llama", settings=world.settings, cwd=world.project, device="cpu", dtype="float32"
        )
        examples = encode_rows(planned.rows.rows, tokenizer, planned.rows.spec, max_length=512).items
        losses = [model(**pad([example], pad_id=0)).loss.item() * example.trained for example in examples]
        for group in found.groups:
            rows = [i for i in range(12) if group.slice in (None, SLICES[i % 2])]
            mean = sum(losses[i] for i in rows) / sum(examples[i].trained for i in rows)
            score = group.scores[index]
            assert score.loss == pytest.approx(mean, rel=1e-5)
            assert score.perplexity == pytest.approx(math.exp(mean), rel=1e-4)
            assert group.tokens == sum(examples[i].trained for i in rows)
            assert group.rows == group.questions == len(rows)
    for group in found.groups:
        base, *alone, stack = (score.loss for score in group.scores)
        changes = [score.against_base.relative for score in group.scores if score.against_base is not None]
        assert changes == pytest.approx([loss / base - 1 for loss in (*alone, stack)], abs=1e-9)
        costs = [score.stack_against for score in group.scores]
        assert costs[-1] is None
        assert [cost.relative for cost in costs if cost] == pytest.approx([stack / x - 1 for x in (base, *alone)])
        assert all(cost.low <= cost.relative <= cost.high and cost.low < cost.high for cost in costs if cost)


def lock(world: World, name: str = "acme/medical-lora", seed: int = 1) -> None:
    world.publish(name, seed=seed)
    world.install(name)


@pytest.mark.engine
def test_a_worse_candidate_in_a_folder_fails_with_its_rows(world: World) -> None:
    lock(world)
    worse = world.build("worse", version="1.1.0", target_modules=("lm_head",), lora_alpha=3000, seed=2)
    found = evaluate(plan(world, gate=str(worse), against="medical", slice_by="colour"))
    gate = found.gate
    assert gate is not None and found.exit_code is ExitCode.UNSATISFIED
    assert [(item.slice, item.verdict) for item in gate.verdicts] == [
        (None, "regressed"), ("green", "regressed"), ("red", "regressed"),
    ]  # fmt: skip
    assert gate.locked == "medical 1.0.0" and gate.candidate == f"{worse} 1.1.0"
    assert all(item.change.low > 0 and item.change.relative > 0.01 for item in gate.verdicts)
    added = [row.added for row in gate.rows]
    assert added == sorted(added, reverse=True) and added[0] > 0
    assert {row.place.partition(":")[0] for row in gate.rows} == {FILE}
    of_all = gate.verdicts[0]
    assert sum(added) <= (of_all.candidate - of_all.locked) * of_all.tokens + 1e-6 or len(gate.rows) < of_all.rows
    data = json.loads(json.dumps(found.to_data(), allow_nan=False))
    assert data["gate"]["passed"] is False and len(data["gate"]["rows"]) == len(gate.rows)


@pytest.mark.engine
def test_the_same_adapter_passes_with_no_difference_to_the_bit(world: World) -> None:
    lock(world)
    same = world.build("same", version="1.1.0", seed=1)
    found = evaluate(plan(world, gate=str(same), max_regression=0.0))
    assert found.gate is not None and found.exit_code is ExitCode.OK
    (verdict,) = found.gate.verdicts
    assert verdict.verdict == "passed" and verdict.locked == verdict.candidate
    assert (verdict.change.relative, verdict.change.low, verdict.change.high) == (0, 0, 0)
    assert found.gate.rows == ()


@pytest.mark.engine
def test_the_newest_version_of_an_alias_is_fetched_and_nothing_else_changes(world: World) -> None:
    lock(world)
    before = (world.project / "adapters.lock").read_bytes()
    none = plan(world, gate="medical")
    assert [step.action for step in none.steps] == ["keep"]
    found = evaluate(none)
    assert found.exit_code is ExitCode.OK and found.gate is not None and "no other version" in str(found.gate.missing)
    world.publish("acme/medical-lora", "1.2.0", seed=1)
    planned = plan(world, gate="medical")
    assert [step.action for step in planned.steps] == ["fetch", "load", "measure", "measure"]
    gate = evaluate(planned).gate
    assert gate is not None and gate.candidate == "acme/medical-lora@1.2.0" and gate.exit_code is ExitCode.OK
    world.publish("acme/medical-lora", "1.3.0", seed=3)
    assert plan(world, gate="acme/medical-lora@1.2.0").gate.candidate.label == "acme/medical-lora@1.2.0"
    assert plan(world, gate="acme/medical-lora").gate.candidate.label == "acme/medical-lora@1.3.0"
    assert (world.project / "adapters.lock").read_bytes() == before
    assert json.loads((world.adapter("medical") / "adapter_manifest.json").read_text())["version"] == "1.0.0"


def test_a_dry_run_needs_no_torch_and_says_what_is_measured(world: World) -> None:
    first, second = world.build("one", seed=1), world.build("two", seed=2)
    planned = plan(world, stack=f"{first},{second}=0.5", slice_by="colour", limit=4)
    assert [model.kind for model in models_of(planned.load)] == ["base", "adapter", "adapter", "stack"]
    facts = dict(planned.facts())
    assert facts["rows"] == f"4 of 12 from {FILE}"
    assert facts["slices"] == "colour: green, red"
    data = json.loads(json.dumps(planned.to_data()))
    assert (data["rows"], data["slices"]) == (4, {"green": 2, "red": 2})
    assert [row.place for row in planned.rows.rows] == [f"{FILE}:{n}" for n in (1, 5, 8, 12)]
    assert [model.kind for model in models_of(plan(world, stack=str(first)).load)] == ["base", "adapter"]
    assert [model.kind for model in models_of(plan(world, stack=f"{first}=0.5").load)] == ["base", "adapter", "stack"]
    assert [model.kind for model in models_of(plan(world, stack="").load)] == ["base"]


@pytest.mark.engine
def test_the_command(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.project)
    plain = ["--device", "cpu", "--dtype", "float32"]
    lock(world)
    worse = world.build("worse", version="1.1.0", target_modules=("lm_head",), lora_alpha=3000, seed=2)
    assert main(["eval", FILE, "--stack", f"medical,{worse}=0.5", "--slice", "colour", *plain]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "SLICE" and "THE STACK AGAINST IT" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["all"] * 4 + ["green"] * 4 + ["red"] * 4
    assert "tiny-llama (base)" in lines[1] and "× 0.5 (sum)" in lines[4]
    gate = ["eval", FILE, "--gate", str(worse), "--slice", "colour", *plain]
    assert main(gate) == 1
    out, err = capsys.readouterr()
    assert out.count("regressed") == 3 and f"{FILE}:" in out
    assert "failed: the loss is more than 1.00% higher, beyond chance: all, green, red" in err
    assert main([*gate, "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert [item["slice"] for item in data["gate"]["verdicts"]] == [None, "green", "red"]
    assert main([*gate, "--max-regression", "1e9"]) == 0
    assert "no regression found" in capsys.readouterr().err
    assert main(["eval", FILE, "--gate", "medical", *plain]) == 0
    assert "nothing to compare" in capsys.readouterr().err
    assert main([*gate, "--limit", "4"]) == 8
    assert "too few different questions to judge: all, green, red" in capsys.readouterr().err
    assert main(["eval", FILE, "--gate", "medical", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gate"]["candidate"] is None


def measured(
    locked: list[float], candidate: list[float], slices: list[str] | None = None, tokens: int = 10
) -> Measured:
    """Return losses a token of rows that ask different questions, each row of `tokens` labelled tokens."""
    import numpy as np

    names = tuple(str(i) for i in range(len(locked)))
    examples = [
        Example(place=f"{FILE}:{i + 1}", question=name, input_ids=(), labels=()) for i, name in enumerate(names)
    ]
    counts = np.full(len(locked), float(tokens))
    losses = [RowLosses(sums=np.array(x) * tokens, counts=counts, questions=names) for x in (locked, candidate)]
    models = [("locked", "medical 1.0.0"), ("candidate", "medical 1.1.0")]
    return Measured(examples=examples, slices=slices or [], models=models, losses=losses)


def verdicts(found: GateResult) -> list[str]:
    return [item.verdict for item in found.verdicts]


def test_a_slice_that_regresses_fails_though_all_rows_improve() -> None:
    before = [2.0] * 40
    after = [1.5] * 30 + [2.1, 2.3, 1.9, 2.2, 2.1, 2.2, 2.15, 2.2, 2.0, 2.4]
    found = judge(measured(before, after, ["common"] * 30 + ["rare"] * 10), max_regression=0.01, samples=1000)
    assert [(item.slice, item.verdict) for item in found.verdicts] == [
        (None, "passed"), ("common", "passed"), ("rare", "regressed"),
    ]  # fmt: skip
    assert found.exit_code is ExitCode.UNSATISFIED
    assert [row.place for row in found.rows][:2] == [f"{FILE}:40", f"{FILE}:32"]
    assert {row.place for row in found.rows} == {f"{FILE}:{i}" for i in (31, 32, 34, 35, 36, 37, 38, 40)}
    assert found.rows[0].added == pytest.approx(0.4 * 10)
    assert {row.slice for row in found.rows} == {"rare"}


def test_what_chance_may_have_done_passes_and_so_does_what_is_allowed() -> None:
    before = [2.0] * 10
    noisy = [1.0, 3.5, 1.2, 3.1, 1.5, 2.9, 1.4, 3.0, 1.1, 3.3]  # +10 % on the mean, in both directions
    assert verdicts(judge(measured(before, noisy), max_regression=0.01, samples=1000)) == ["passed"]
    sure = [2.019] * 10
    assert verdicts(judge(measured(before, sure), max_regression=0.01, samples=1000)) == ["passed"]
    assert verdicts(judge(measured(before, sure), max_regression=0.009, samples=1000)) == ["regressed"]
    assert verdicts(judge(measured(before, before), max_regression=0.0, samples=1000)) == ["passed"]


def test_too_few_questions_are_not_judged() -> None:
    worse = [3.0] * 4
    found = judge(measured([2.0] * 4, worse), max_regression=0.01, samples=100)
    assert (verdicts(found), found.rows, found.exit_code) == (["too few rows"], (), ExitCode.UNDECIDED)
    found = judge(measured([2.0] * 9, [1.9] * 5 + worse, ["many"] * 5 + ["few"] * 4), max_regression=0.5, samples=100)
    assert verdicts(found) == ["passed", "too few rows", "passed"]
    assert found.exit_code is ExitCode.OK


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"slice_by": "color"}, "no row has a column 'color'"),
        ({"slice_by": "messages"}, "12 rows have no slice"),
        ({"limit": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"gate": "medical", "stack": "medical"}, "a gate compares two versions"),
        ({"gate": "medical", "max_regression": -0.1}, "is no share"),
        ({"gate": "medical", "max_regression": float("nan")}, "is no share"),
        ({"against": "medical"}, "there is none"),
        ({"gate": "nobody"}, "neither an adapter nor a stack"),
        ({"gate": "nobody/here"}, "is not installed"),
    ],
)
def test_what_makes_no_sense_is_refused(world: World, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan(world, **options)


def test_rows_that_are_none_and_files_that_are_not_there(world: World) -> None:
    with pytest.raises(UnsatisfiedError, match="no such file of rows"):
        plan(world, "other.jsonl")
    write_rows(world, [{"messages": []}, {"nothing": 1}], "bad.jsonl")
    with pytest.raises(InvalidFileError, match="2 malformed rows"):
        plan(world, "bad.jsonl")


def test_slices_of_many_kinds(world: World) -> None:
    values = ["a", " a ", 1, 1.5, True, None, "", "b"]
    rows = [{"text": f"row {i}", "kind": value} for i, value in enumerate(values)] + [{"text": "without"}]
    write_rows(world, rows, "kinds.jsonl")
    found = plan(world, "kinds.jsonl", slice_by="kind").rows
    assert found.slices == ("a", "a", "1", "1.5", "true", NO_VALUE, NO_VALUE, "b", NO_VALUE)
    assert found.groups["a"] == (0, 1)
    (world.project / "kinds.json").write_text(json.dumps([{"text": "x", "kind": n % 3} for n in range(6)]))
    assert plan(world, "kinds.json", slice_by="kind").rows.slices == ("0", "1", "2") * 2
    write_rows(world, [{"text": f"row {i}", "kind": i} for i in range(101)], "many.jsonl")
    with pytest.raises(UsageError, match="101 values"):
        plan(world, "many.jsonl", slice_by="kind")
