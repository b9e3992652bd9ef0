"""Losses of base, members and stack against transformers' own; what a gate lets pass, fails, and cannot tell."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from adapterhub.cli.main import main
from adapterhub.engine import rows as row_reader
from adapterhub.engine.data import Example
from adapterhub.engine.evaluate import RowLosses
from adapterhub.errors import (
    ExitCode,
    IncompatibleError,
    InvalidFileError,
    LocalIOError,
    UndecidedError,
    UnsatisfiedError,
    UsageError,
)
from adapterhub.ops import eval as ops_eval
from adapterhub.ops._eval_measure import models_of
from adapterhub.ops._eval_result import GateResult, Measured, judge, perplexity
from adapterhub.ops._eval_rows import NO_VALUE
from adapterhub.ops._recipes import read_recipe_with
from adapterhub.ops._rows import read_rows
from adapterhub.ops.eval import EvalPlan, evaluate, plan_eval
from adapterhub.settings import Settings
from adapterhub.spec.stack import Parameters
from tests.engine.tiny import ANSWERS, Recorder
from tests.factory import edit_tensors, tiny_llama, tiny_lora, write_json, write_tokenizer
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
    assert "tiny-llama (base)" in lines[1] and "× 0.5 by sum" in lines[4]
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
        ({"gate": "medical", "parameters": Parameters(rank=2)}, "a gate compares two versions"),
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


def recipe(world: World, *, task: str = "CAUSAL_LM", name: str = "recipe.yaml", **data: object) -> str:
    """Write rows and a recipe over them, without what is None; return its name."""
    rows = [{"question": f"Q{n}?", "answer": "yes" * (n % 5 + 1), "colour": SLICES[n % 2]} for n in range(40)]
    write_rows(world, rows, "questions.jsonl")
    said = {
        "train": "questions.jsonl",
        "template": {"user": "{question}", "assistant": "{answer}"},
        "eval_split": 0.5,
        **data,
    }
    write_json(
        world.project / name,
        {
            "recipe_version": "1.1",
            "name": "x",
            "version": "1.0.0",
            "base_model": "tiny-llama",
            "task": task,
            "data": {key: value for key, value in said.items() if value is not None},
            "evaluation": {"per_device_eval_batch_size": 3, "bootstrap_samples": 150},
        },
    )
    return name


def test_the_rows_of_a_recipe_are_those_that_it_holds_out(world: World) -> None:
    path = recipe(world)
    read = read_recipe_with(world.project / path, ())
    train, held_out, _ = read_rows(world.project, read)
    found = plan(world, path, stack="", slice_by="colour")
    assert found.rows.rows == held_out and 10 < len(held_out) < 30
    assert not {row.place for row in train} & {row.place for row in found.rows.rows}
    numbers = [int(row.place.rpartition(":")[2]) - 1 for row in held_out]
    assert found.rows.slices == tuple(SLICES[n % 2] for n in numbers)
    assert (found.batch_size, found.rows.evaluation.bootstrap_samples) == (3, 150)
    assert found.rows.warnings == ()
    assert plan(world, path, stack="", batch_size=2).batch_size == 2
    shared = recipe(world, eval="questions.jsonl", eval_split=None, name="shared.yaml")
    assert "40 held-out rows are trained on as well" in plan(world, shared, stack="").warnings[0]


def test_a_file_is_read_as_a_recipe_reads_its_own(world: World) -> None:
    path = recipe(world, max_length=33)
    write_rows(world, [{"question": "¿Qué?", "answer": "sí", "colour": "red"}], "more.jsonl")
    found = plan(world, "more.jsonl", stack="", recipe=Path(path)).rows
    (row,) = found.rows
    assert [message.content for message in row.messages] == ["¿Qué?", "sí"]
    assert found.spec.max_length == 33
    with pytest.raises(InvalidFileError, match="has none of"):
        plan(world, "more.jsonl", stack="")
    with pytest.raises(UsageError, match="says itself"):
        plan(world, path, stack="", recipe=Path(path))
    sources = [{"path": "questions.jsonl", "template": "{question}"}, {"path": "questions.jsonl"}]
    other = recipe(world, train=sources, name="other.yaml")
    with pytest.raises(UsageError, match="in different ways"):
        plan(world, "more.jsonl", stack="", recipe=Path(other))


def test_recipes_that_have_no_rows_to_measure_on(world: World) -> None:
    with pytest.raises(UsageError, match="holds no row out"):
        plan(world, recipe(world, eval_split=0), stack="")
    with pytest.raises(UsageError, match="a bare base has no head for SEQ_CLS"):
        columns = {"text": "question", "label": "colour"}
        plan(world, recipe(world, task="SEQ_CLS", template=None, columns=columns), stack="")


def test_a_file_that_changes_between_its_two_readings_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = row_reader.read_row_files

    def read_then_write(*args: Any, **options: Any) -> Any:
        found = plain(*args, **options)
        write_rows(world, chats(13))
        return found

    monkeypatch.setattr(row_reader, "read_row_files", read_then_write)
    with pytest.raises(LocalIOError, match="changed while it was read"):
        plan(world, slice_by="colour", stack="")


def test_a_plan_imports_no_torch(world: World) -> None:
    code = (
        "import sys; from pathlib import Path; from adapterhub.ops.eval import plan_eval\n"
        f"plan_eval({FILE!r}, stack={str(world.build('one'))!r}, slice_by='colour', "
        f"cwd=Path({str(world.project)!r}))\n"
        "print(sorted({'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_which_locked_version_a_folder_is_compared_with(world: World) -> None:
    folder = world.build("new", version="2.0.0")
    with pytest.raises(UsageError, match="'tiny' has no locked version here"):
        plan(world, gate=str(folder))
    lock(world, "acme/medical-lora", seed=1)
    gate = plan(world, gate=str(folder)).gate
    assert gate is not None and (gate.label, str(gate.entry.ref)) == ("medical 1.0.0", "acme/medical-lora@1.0.0")
    lock(world, "acme/spanish-lora", seed=2)
    with pytest.raises(UsageError, match="of acme/medical-lora or of acme/spanish-lora"):
        plan(world, gate=str(folder))
    gate = plan(world, gate=str(folder), against="spanish").gate
    assert gate is not None and gate.label == "spanish 1.0.0"
    named = tiny_lora(world.root / "named", world.base, version="2.0.0", name="Spanish-LoRA")
    gate = plan(world, gate=str(named)).gate
    assert gate is not None and gate.label == "spanish 1.0.0"
    with pytest.raises(UsageError, match="is not locked"):
        plan(world, gate=str(folder), against=str(named))
    with pytest.raises(UsageError, match="is what is locked"):
        plan(world, gate="medical", against="spanish")
    world.yaml(f"base_model: tiny-llama\nadapters:\n  medical: acme/medical-lora<1\n  spanish: acme/spanish-lora\n"
               f"stacks:\n  both: 'medical,spanish,{folder}'\n")  # fmt: skip
    with pytest.raises(UsageError, match="neither an adapter nor a stack"):
        plan(world, gate="both")
    with pytest.raises(UnsatisfiedError, match="acme/medical-lora"):
        plan(world, gate="medical")


def test_what_adapters_yaml_allows_is_the_newest(world: World) -> None:
    lock(world)
    for version in ("1.4.0", "2.0.0"):
        world.publish("acme/medical-lora", version, seed=3)
    world.yaml("base_model: tiny-llama\nadapters:\n  medical: acme/medical-lora<2\n")
    for word in ("medical", "acme/medical-lora"):
        gate = plan(world, gate=word).gate
        assert gate is not None and gate.candidate is not None and gate.candidate.label == "acme/medical-lora@1.4.0"
    gate = plan(world, gate="acme/medical-lora>=2").gate
    assert gate is not None and gate.candidate is not None and gate.candidate.label == "acme/medical-lora@2.0.0"
    world.publish("acme/rival-lora", "3.0.0", seed=4)
    gate = plan(world, gate="acme/rival-lora@3.0.0", against="medical").gate
    assert gate is not None and gate.candidate is not None and gate.candidate.label == "acme/rival-lora@3.0.0"
    assert gate.label == "medical 1.0.0"
    with pytest.raises(UsageError, match="not installed"):
        plan(world, gate="acme/rival-lora@3.0.0")


def test_stack_packages_and_other_bases_are_refused(world: World, tmp_path: Path) -> None:
    lock(world)
    world.publish_stack("acme/clinic", {"acme/medical-lora": 1.0})
    world.install("acme/clinic")
    with pytest.raises(UsageError, match="of kind 'stack'"):
        plan(world, gate="clinic")
    with pytest.raises(UsageError, match="of kind 'stack'"):
        plan(world, gate=str(tmp_path / "built" / "acme-clinic-1.0.0"), against="medical")
    other = tiny_llama(tmp_path / "other", seed=9)
    foreign = tiny_lora(tmp_path / "foreign", other, base_id="other-llama", version="1.1.0")
    with pytest.raises(IncompatibleError, match="another base model"):
        evaluate(plan(world, gate=str(foreign), against="medical"))


def test_versions_that_read_text_differently_are_not_compared(world: World) -> None:
    lock(world)
    own = world.build("own", seed=1, manifest=False)
    write_tokenizer(own, chat_template="{{ messages[0].content }}")
    with pytest.raises(IncompatibleError, match="losses are of different tokens"):
        evaluate(plan(world, gate=str(own), against="medical"))


@pytest.mark.engine
def test_nothing_is_left_of_a_candidate_that_was_fetched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = world.root / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    lock(world)
    world.publish("acme/medical-lora", "1.1.0", seed=5)
    seen: list[list[str]] = []
    plain = ops_eval.measure

    def measure(*args: Any, **options: Any) -> Any:
        seen.append([path.name for path in temporary.glob("*/*.safetensors")])
        return plain(*args, **options)

    monkeypatch.setattr(ops_eval, "measure", measure)
    assert evaluate(plan(world, gate="medical")).gate is not None
    assert seen == [["adapter_model.safetensors"]]
    assert list(temporary.iterdir()) == []


@pytest.mark.engine
def test_rows_that_are_cut_keep_their_slices(world: World) -> None:
    from adapterhub.engine.base import load_tokenizer
    from adapterhub.engine.data import encode_rows

    rows = chats()
    rows[3]["messages"][0]["content"] = "long " * 30  # nothing of the answer is left of it
    write_rows(world, rows)
    path = Path(recipe(world, max_length=60, template=None))
    planned = plan(world, stack="", slice_by="colour", recipe=path)
    found = evaluate(planned)
    assert "first; 1 of them have no labelled token left" in found.warnings[0]
    kept = encode_rows(planned.rows.rows, load_tokenizer(planned.load.base), planned.rows.spec, max_length=60)
    assert len(kept.items) == 11 and kept.truncated
    of = {item.place: item.trained for item in kept.items}
    counted = {name: sum(of.get(f"{FILE}:{i + 1}", 0) for i in range(12) if SLICES[i % 2] == name) for name in SLICES}
    assert {group.slice: group.tokens for group in found.groups if group.slice} == counted
    assert {group.slice: group.rows for group in found.groups} == {None: 11, "green": 5, "red": 6}
    recipe(world, max_length=8, template=None)
    with pytest.raises(UndecidedError, match="within its first 8 tokens"):
        evaluate(plan(world, stack="", recipe=path))


@pytest.mark.engine
def test_a_loss_that_is_not_finite_is_no_measure(world: World) -> None:
    def overflow(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors["lm_head.weight"][:] = 3e38
        return tensors

    broken = tiny_llama(world.root / "broken")
    edit_tensors(broken / "model.safetensors", overflow)
    world.add_base(broken, "broken")
    with pytest.raises(UnsatisfiedError, match="the loss of 12 of 12 rows is not finite") as caught:
        evaluate(plan(world, stack="", base="broken"))
    assert caught.value.details[0] == f"{FILE}:1"


@pytest.mark.engine
def test_a_combination_that_cuts_says_what_it_lost_and_is_a_stack_of_its_own(world: World) -> None:
    first, second = world.build("one", lora_alpha=64, seed=1), world.build("two", lora_alpha=64, seed=2)
    recorder = Recorder.new()
    planned = plan(world, stack=f"{first},{second}", combination="svd", parameters=Parameters(rank=2))
    (group,) = evaluate(planned, progress=recorder).groups
    assert group.scores[-1].label.endswith(" by svd (rank 2)")
    assert len(recorder.notes) == 1 and "leaves out" in recorder.notes[0]
    exact = evaluate(plan(world, stack=f"{first},{second}")).groups[0]
    assert exact.scores[-1].loss != group.scores[-1].loss
    assert [score.loss for score in exact.scores[:-1]] == [score.loss for score in group.scores[:-1]]


def test_a_perplexity_that_is_no_number_is_none() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(1000.0) is None


def test_a_slice_on_which_nothing_is_lost_has_no_shares() -> None:
    slices = ["sure"] * 6 + ["unsure"] * 6
    found = judge(measured([0.0] * 6 + [1.0] * 6, [0.0] * 6 + [1.0] * 6, slices), max_regression=0.0, samples=1000)
    assert verdicts(found) == ["passed"] * 3
    assert [item.change is None for item in found.verdicts] == [False, True, False]
    worse = judge(measured([0.0] * 6 + [1.0] * 6, [1e-4] * 6 + [1.0] * 6, slices), max_regression=0.5, samples=1000)
    assert verdicts(worse) == ["passed", "regressed", "passed"]
    assert {row.slice for row in worse.rows} == {"sure"}
    json.dumps(worse.to_data(), allow_nan=False)
