"""Bases packed in few bits at the verbs that load and merge: run, evaluated, and merged into the 16-bit original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.cli.main import main
from adapterhub.errors import IncompatibleError
from adapterhub.ops.build import build
from adapterhub.ops.eval import evaluate, plan_eval
from adapterhub.ops.load import load, plan_load
from adapterhub.ops.merge import merge, plan_merge
from adapterhub.ops.run import plan_run, run
from adapterhub.settings import Settings
from adapterhub.spec.generation import Generation
from adapterhub.spec.quantization import Quantization
from tests.engine.peft_reference import difference, logits_of, plain_model
from tests.engine.test_peft_adapter import adapter
from tests.engine.test_quantized import IDS, NF4, TOLERANCE, active_over, stored_in
from tests.factory import tiny_llama
from tests.ops.test_build import project
from tests.ops.world import World

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny", hidden=64)


@pytest.fixture
def world(tmp_path: Path, settings: Settings, base_folder: Path) -> World:
    world = World(root=tmp_path, settings=settings, base=base_folder)
    world.yaml("base_model: tiny-llama\n")
    world.add_base(world.base)
    return world


def options(world: World) -> dict[str, Any]:
    return {"settings": world.settings, "cwd": world.project, "device": "cpu", "dtype": "float32"}


def test_a_stack_runs_over_a_packed_base(world: World) -> None:
    one, two = (world.build(name, seed=seed, lora_alpha=32) for name, seed in (("one", 1), ("two", 2)))
    plan = plan_run(
        "hello",
        stack=f"{one},{two}=0.5",
        quantization=NF4,
        generation=Generation(max_new_tokens=5),
        **options(world),
    )
    told = run(plan)
    assert 0 < told.new_tokens <= 5 and told.loaded.quantization == NF4.computing_in("float32")
    theirs = active_over(world.base, NF4, [(one, 1.0), (two, 0.5)])
    assert difference(logits_of(told.loaded.model, IDS), logits_of(theirs, IDS)) <= TOLERANCE
    assert told.to_data()["quantization"] == NF4.computing_in("float32").to_data()


def test_the_command_packs_as_it_is_told(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.project)
    monkeypatch.setenv("ADAPTERHUB_HOME", str(world.settings.home))
    words = ["--load-in-4bit", "--bnb-4bit-quant-type", "fp4", "--bnb-4bit-use-double-quant"]
    common = ["run", "hello", "--stack", str(world.build("one")), "--device", "cpu", "--json", "--max-new-tokens", "2"]
    assert main([*common, *words]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)["quantization"]
    assert (found["bnb_4bit_quant_type"], found["bnb_4bit_use_double_quant"]) == ("fp4", True)
    assert "bitsandbytes" not in told.err and "Warning" not in told.err
    assert main([*common, "--load-in-8bit"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["quantization"] == {"load_in_8bit": True}
    assert "MatMul8bitLt" not in told.err
    assert main([*common, "--dry-run", "--load-in-4bit"]) == 0
    assert json.loads(capsys.readouterr().out)["quantization"]["load_in_4bit"] is True
    for wrong in (["--load-in-4bit", "--load-in-8bit"], ["--bnb-4bit-quant-type", "nf4"]):
        assert main([*common, *wrong]) == 2
        assert "--load-in-4bit" in capsys.readouterr().err


def test_losses_of_base_members_and_stack_over_packed_weights(world: World) -> None:
    rows = [{"prompt": f"question {n}", "completion": f"answer {n % 3}"} for n in range(8)]
    (world.project / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, two = (world.build(name, seed=seed, lora_alpha=32) for name, seed in (("one", 1), ("two", 2)))
    plan = plan_eval("rows.jsonl", stack=f"{one},{two}", quantization=NF4, **options(world))
    [group] = evaluate(plan).groups
    losses = [score.loss for score in group.scores]
    # Each is what a model of its own gives, loaded for it.
    for stack, loss in zip(("", str(one), str(two), f"{one},{two}"), losses, strict=True):
        alone = evaluate(plan_eval("rows.jsonl", stack=stack, quantization=NF4, **options(world))).groups[0].scores[-1]
        assert alone.loss == pytest.approx(loss, abs=1e-6)
    assert len(set(losses)) == 4
    plain = evaluate(plan_eval("rows.jsonl", stack="", **options(world))).groups[0].scores[0].loss
    assert plain != pytest.approx(losses[0], abs=1e-6)


def test_what_was_trained_over_a_packed_base_is_merged_into_the_original(world: World, tmp_path: Path) -> None:
    recipe = project(tmp_path / "p", quantization=NF4.to_data(), training={"max_steps": 4})
    package = build(recipe, out=tmp_path / "package", settings=world.settings).path
    merge(plan_merge(tmp_path / "merged", stack=str(package), settings=world.settings, cwd=world.project))
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    from tests.engine.peft_reference import active_model

    merged = logits_of(plain_model(tmp_path / "merged"), IDS)
    assert difference(merged, logits_of(active_model(world.base, [(package, 1.0)]), IDS)) <= TOLERANCE
    assert difference(merged, logits_of(plain_model(world.base), IDS)) > 20 * TOLERANCE


def test_nothing_is_merged_into_packed_weights(world: World, tmp_path: Path) -> None:
    world.add_base(stored_in(tmp_path / "stored", world.base, NF4), "stored")
    one = str(world.build("one"))
    with pytest.raises(IncompatibleError):
        merge(plan_merge(tmp_path / "merged", stack=one, base="stored", settings=world.settings, cwd=world.project))
    assert not (tmp_path / "merged").exists()


def test_methods_that_packed_weights_cannot_carry_are_told_before_loading(world: World, tmp_path: Path) -> None:
    lokr, ia3 = (adapter(world.base, case, tmp_path / case) for case in ("lokr", "ia3"))
    with pytest.raises(IncompatibleError) as caught:
        plan_load(str(lokr), quantization=NF4, **options(world))
    assert "lokr cannot be" in caught.value.details[0]
    eight = load(str(lokr), quantization=Quantization(load_in_8bit=True), **options(world))
    assert eight.quantization is not None and eight.quantization.load_in_8bit
    plan = plan_load(str(ia3), quantization=NF4, **options(world))
    assert [step.action for step in plan.steps] == ["load", "activate"]
