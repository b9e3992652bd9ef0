"""On a real model: a stack of LoRAs, a DoRA and an (IA)³, each used in every way, against PEFT's active adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from adapterhub import load
from adapterhub.errors import IncompatibleError
from adapterhub.ops.merge import merge, plan_merge
from adapterhub.settings import Settings
from tests.conftest import SMOLLM2
from tests.engine.peft_reference import active_model, difference, logits_of, plain_model
from tests.equivalence.worlds import spread

pytestmark = [pytest.mark.engine, pytest.mark.real_model, pytest.mark.exhaustive, pytest.mark.timeout(1500)]

BOUND = 1e-4
TARGETS = ["q_proj", "v_proj", "down_proj"]
TEXT = "The capital of France is Paris, and gout has the code"
# Adapters, with their weights.
STACKS: Mapping[str, tuple[tuple[str, float], ...]] = {
    "lora": (("lora-0", 0.7), ("lora-1", -0.4)),
    "dora": (("dora-0", 1.0),),
    "ia3": (("ia3-0", 1.0),),
}


def save(base: Path, out: Path) -> Path:
    """Save an adapter by plain PEFT, its values drawn at random."""
    from peft import IA3Config, LoraConfig, get_peft_model

    method, _, seed = out.name.partition("-")
    config: Any = (
        IA3Config(task_type="CAUSAL_LM", target_modules=TARGETS, feedforward_modules=["down_proj"])
        if method == "ia3"
        else LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, r=8, use_dora=method == "dora")
    )
    model: Any = get_peft_model(plain_model(base), config)
    config.base_model_name_or_path = SMOLLM2
    spread([item for item in model.parameters() if item.requires_grad], int(seed), 0.02)
    model.save_pretrained(str(out), save_embedding_layers=False)
    return out


@pytest.mark.parametrize("method", list(STACKS))
def test_every_way_gives_what_the_active_adapters_give(smollm2_home: Path, tmp_path: Path, method: str) -> None:
    from transformers import AutoTokenizer

    base, settings = smollm2_home / "bases" / "models" / SMOLLM2, Settings(home=smollm2_home)
    layers = [(save(base, tmp_path / name), weight) for name, weight in STACKS[method]]
    ids = AutoTokenizer.from_pretrained(str(base), local_files_only=True)(TEXT)["input_ids"]
    active = logits_of(active_model(base, layers), ids)
    assert difference(logits_of(plain_model(base), ids), active) > 1e-2
    stack = ",".join(f"{folder}={weight}" for folder, weight in layers)

    def apart(model: Any) -> float:
        return difference(logits_of(model, ids), active)

    assert apart(load(stack, dtype="float32", device="cpu", settings=settings, cwd=tmp_path).model) <= BOUND
    options: dict[str, Any] = {"stack": stack, "settings": settings, "cwd": tmp_path}
    merge(plan_merge(tmp_path / "merged", dtype="float32", **options))
    assert apart(plain_model(tmp_path / "merged")) <= BOUND
    if method == "ia3":
        with pytest.raises(IncompatibleError, match="sum of low-rank changes"):
            plan_merge(tmp_path / "one", as_adapter=True, **options)
        return
    merge(plan_merge(tmp_path / "one", as_adapter=True, **options))
    assert apart(active_model(base, [(tmp_path / "one", 1.0)])) <= BOUND
