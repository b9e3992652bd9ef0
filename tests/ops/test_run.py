"""A run planned, and carried out: its text is transformers' own over the same stack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub.errors import UsageError
from adapterhub.ops.load import load_planned
from adapterhub.ops.run import RunPlan, plan_run, run
from adapterhub.settings import Settings
from adapterhub.spec.generation import Generation
from tests.factory import tiny_llama
from tests.ops.world import World

GREEDY = Generation(max_new_tokens=12)


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    world = World(root=tmp_path, settings=settings, base=tiny_llama(tmp_path / "base"))
    world.yaml("base_model: tiny-llama\n")
    world.add_base(world.base)
    return world


def plan(world: World, prompt: str = "hello", **options) -> RunPlan:
    return plan_run(prompt, settings=world.settings, cwd=world.project, device="cpu", dtype="float32", **options)


def test_the_plan_says_what_will_be_asked(world: World) -> None:
    folder = world.build("one")
    found = plan(world, "x" * 100, stack=f"{folder}=0.5", system="be brief", generation=GREEDY)
    facts = dict(found.facts())
    assert facts["stack"] == f"{folder} 1.0.0 × 0.5"
    assert facts["system"] == "be brief"
    assert facts["prompt"].startswith("'" + "x" * 60 + "…'")
    assert [step.action for step in found.steps] == ["load", "fold", "generate"]
    data = json.loads(json.dumps(found.to_data()))
    assert (data["verb"], data["prompt"], data["system"], data["raw"]) == ("run", "x" * 100, "be brief", False)
    assert (data["generation"]["max_new_tokens"], data["device"], data["dtype"]) == (12, "cpu", "float32")


def test_an_empty_prompt_is_refused_before_anything_is_looked_for(world: World) -> None:
    with pytest.raises(UsageError, match="empty"):
        plan(world, "", stack="no-such-adapter")


def test_a_system_prompt_without_a_template_is_refused(world: World) -> None:
    with pytest.raises(UsageError, match="--raw"):
        plan(world, raw=True, system="be brief")


@pytest.mark.engine
def test_text_is_what_transformers_generates_over_the_same_stack(world: World) -> None:
    import torch

    found = plan(world, "hello", stack=str(world.build("one", lora_alpha=64)), generation=GREEDY)
    pieces: list[str] = []
    result = run(found, write=pieces.append)
    model, tokenizer = load_planned(found.load)
    ids = torch.tensor([[257, *b"user\nhello", 258, *b"\n", 257, *b"assistant\n"]])
    plain = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert result.text == "".join(pieces) == tokenizer.decode(plain, skip_special_tokens=True)
    assert result.text != run(plan(world, "hello", generation=GREEDY)).text
    assert (result.prompt_tokens, result.new_tokens) == (ids.shape[1], len(plain))
    data = json.loads(json.dumps(result.to_data()))
    assert (data["base"], data["stack"][0]["weight"], data["device"], data["dtype"]) == (
        "tiny-llama",
        1.0,
        "cpu",
        "float32",
    )


@pytest.mark.engine
def test_one_loaded_stack_answers_more_than_once(world: World) -> None:
    found = plan(world, generation=GREEDY)
    loaded = load_planned(found.load)
    assert run(found, loaded=loaded).text == run(found, loaded=loaded).text == run(found).text


@pytest.mark.engine
def test_what_the_writer_raises_ends_the_run(world: World) -> None:
    class NobodyReads(Exception):
        pass

    def write(piece: str) -> None:
        raise NobodyReads

    with pytest.raises(NobodyReads):
        run(plan(world, generation=GREEDY), write=write)
