"""Adapters of other methods than LoRA at the verbs that load and merge: run alone, else refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.errors import IncompatibleError
from adapterhub.ops.load import plan_load
from adapterhub.ops.merge import plan_merge
from adapterhub.ops.run import plan_run, run
from adapterhub.settings import Settings
from adapterhub.spec.generation import Generation
from adapterhub.spec.stack import Parameters
from tests.engine.peft_reference import logits_of
from tests.engine.test_peft_adapter import adapter
from tests.factory import tiny_llama
from tests.ops.world import World

pytestmark = pytest.mark.engine


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    world = World(root=tmp_path, settings=settings, base=tiny_llama(tmp_path / "base"))
    world.yaml("base_model: tiny-llama\n")
    world.add_base(world.base)
    return world


@pytest.mark.parametrize(
    ("case", "action"), [("ia3", "fold"), ("prefix_tuning", "activate"), ("c3a", "fold"), ("shadow", "activate")]
)
def test_one_adapter_of_another_method_runs(world: World, tmp_path: Path, case: str, action: str) -> None:
    out = adapter(world.base, case, tmp_path / "adapter")
    options = {"settings": world.settings, "cwd": world.project, "device": "cpu", "dtype": "float32"}
    plan = plan_run("hello", stack=str(out), generation=Generation(max_new_tokens=6), **options)
    assert [step.action for step in plan.steps] == ["load", action, "generate"]
    bare = plan_run("hello", stack="", generation=Generation(max_new_tokens=6), **options)
    told, plain = run(plan), run(bare)
    assert 0 < told.new_tokens <= 6
    ids = [72, 101, 108, 108, 111]
    moved = logits_of(told.loaded.model, ids)[-len(ids) :] - logits_of(plain.loaded.model, ids)
    assert moved.abs().max() > 1e-3


def test_what_has_no_meaning_in_a_stack_is_refused_with_the_reason(world: World, tmp_path: Path) -> None:
    ia3 = adapter(world.base, "ia3", tmp_path / "ia3")
    prompt = adapter(world.base, "prompt_tuning", tmp_path / "prompt")
    prefix = adapter(world.base, "prefix_tuning", tmp_path / "prefix")
    oft = adapter(world.base, "oft", tmp_path / "oft")
    lora = world.build("lora")
    options = {"settings": world.settings, "cwd": world.project}
    for stack, parameters, words in (
        (f"{lora},{prompt}=0.5", None, "prompt_tuning goes before the text"),
        (f"{oft}=0.5,{lora}", None, "no coefficient but 1"),
        (f"{oft},{lora}", Parameters(normalize=True), "no coefficient but 1 (given 0.5)"),
        (f"{prompt},{prefix}", None, "they do not go into one prompt"),
        (f"{lora},{ia3}", Parameters(rank=2), "which sum (rank 2) takes"),
        (f"{ia3}", Parameters(rank=2), "which sum (rank 2) takes"),
    ):
        with pytest.raises(IncompatibleError) as caught:
            plan_load(stack, parameters=parameters, **options)
        assert any(words in text for text in caught.value.details), (stack, caught.value.details)
    shadow = adapter(world.base, "shadow", tmp_path / "shadow")
    for folder, word in ((prompt, "PROMPT_TUNING cannot be merged"), (shadow, "SHADOW cannot be merged")):
        with pytest.raises(IncompatibleError, match=word):
            plan_merge(tmp_path / "merged", stack=str(folder), **options)
    assert not (tmp_path / "merged").exists()
