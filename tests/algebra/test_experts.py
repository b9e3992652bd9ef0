"""Adapters of experts against PEFT: fused or one by one in the adapter, and either way in the checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.algebra.fuse import fuse, plan_fuse
from adapterhub.algebra.read_alone import read_alone, read_stack
from adapterhub.errors import IncompatibleError
from adapterhub.package import open_package
from tests.algebra.test_read_alone import assert_equal, merged_by_peft, merged_here, trained
from tests.factory import adapter_config, edit_json, read_tensors, write_json, write_tensors

pytestmark = pytest.mark.engine

EXPERTS, WIDTH, R = 4, 32, 2
SIZES = {
    "vocab_size": 264,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": EXPERTS,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "head_dim": 8,
}
# Of each family: transformers' config class, the path of a layer's experts in checkpoints, and their matrices there.
FAMILIES = {
    "mixtral": ("MixtralConfig", "block_sparse_moe", ("w1", "w3", "w2")),
    "qwen3_moe": ("Qwen3MoeConfig", "mlp", ("gate_proj", "up_proj", "down_proj")),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny mixtures as transformers saves them, one tensor an expert, and the same fused."""
    import torch
    import transformers

    folder, found = tmp_path_factory.mktemp("mixtures"), {}
    for name, (config, block, _) in FAMILIES.items():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**SIZES))
        model.save_pretrained(folder / name)
        assert f"model.layers.0.{block}.experts.3.{FAMILIES[name][2][0]}.weight" in read_tensors(folder / name)
        found[name] = folder / name
        fused = folder / f"{name}-fused"
        fused.mkdir()
        shutil.copyfile(folder / name / "config.json", fused / "config.json")
        write_tensors(fused / "model.safetensors", {key: value.numpy() for key, value in model.state_dict().items()})
        found[f"{name}-fused"] = fused
    return found


def fused_adapter(folder: Path, base: Path, **how: Any) -> Path:
    from peft import LoraConfig

    given: dict[str, Any] = {
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        "target_modules": ["q_proj"],
        "rank_pattern": {"experts.down_proj": 3},
        "alpha_pattern": {"experts.down_proj": 5},
        **how,
    }
    return trained(base, LoraConfig(r=R, lora_alpha=3, task_type="CAUSAL_LM", **given), folder)


def single_adapter(folder: Path, name: str, *, layers: int = 2) -> Path:
    """Write an adapter as PEFT did with transformers 4: a pair of factors for every matrix of every expert."""
    _, block, names = FAMILIES[name]
    inner = SIZES["intermediate_size"] if name == "mixtral" else SIZES["moe_intermediate_size"]
    rng, tensors = np.random.default_rng(1), {}
    for layer in range(layers):
        for expert in range(EXPERTS):
            for own in names:
                out, width = (WIDTH, inner) if own == names[2] else (inner, WIDTH)
                at = f"base_model.model.model.layers.{layer}.{block}.experts.{expert}.{own}"
                tensors[f"{at}.lora_A.weight"] = rng.normal(0, 0.3, (R, width))
                tensors[f"{at}.lora_B.weight"] = rng.normal(0, 0.3, (out, R))
    folder.mkdir()
    write_tensors(folder / "adapter_model.safetensors", tensors)
    config = adapter_config(r=R, lora_alpha=3, target_modules=sorted(names), base_model_name_or_path="tiny-mixture")
    write_json(folder / "adapter_config.json", config)
    return folder


@pytest.mark.parametrize("form", ["", "-fused"], ids=["one-by-one", "fused"])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_fused_adapter_agrees_with_peft(tmp_path: Path, bases: dict[str, Path], name: str, form: str) -> None:
    base = bases[name + form]
    adapter = fused_adapter(tmp_path / "a", base)
    ours, report = merged_here(base, adapter, tmp_path / "out")
    assert_equal(ours, merged_by_peft(base, adapter))
    changed = {
        key
        for key, value in read_tensors(tmp_path / "out").items()
        if not np.array_equal(value, read_tensors(base)[key])
    }
    assert changed == {module.tensor for module in report.modules}
    # Two layers of q_proj, and of each expert's matrices: gate and up are one tensor where they are fused.
    assert len(report.modules) == 2 * (1 + EXPERTS * (2 if form else 3))


@pytest.mark.parametrize("form", ["", "-fused"], ids=["one-by-one", "fused"])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_an_adapter_of_single_experts_agrees_with_peft(
    tmp_path: Path, bases: dict[str, Path], name: str, form: str
) -> None:
    base = bases[name + form]
    adapter = single_adapter(tmp_path / "a", name)
    ours, report = merged_here(base, adapter, tmp_path / "out")
    assert_equal(ours, merged_by_peft(base, adapter))
    assert len(report.modules) == 2 * EXPERTS * 3


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_router_is_found_under_its_names(tmp_path: Path, bases: dict[str, Path], name: str) -> None:
    base = bases[name]
    adapter = fused_adapter(
        tmp_path / "a", base, target_parameters=["mlp.gate.weight"], rank_pattern={}, alpha_pattern={}
    )
    ours, report = merged_here(base, adapter, tmp_path / "out")
    assert_equal(ours, merged_by_peft(base, adapter))
    assert {module.tensor.split(".")[-2] for module in report.modules} == {"gate", "q_proj"}


def test_experts_stored_in_out_agree_with_peft(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GptOssConfig

    torch.manual_seed(0)
    base = tmp_path / "base"
    config = GptOssConfig(**SIZES | {"intermediate_size": WIDTH})  # down_proj is square: told by the architecture
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    adapter = fused_adapter(tmp_path / "a", base)
    ours, _ = merged_here(base, adapter, tmp_path / "out")
    assert_equal(ours, merged_by_peft(base, adapter))


def test_one_parameter_of_two(tmp_path: Path, bases: dict[str, Path]) -> None:
    base = bases["qwen3_moe"]
    adapter = fused_adapter(tmp_path / "a", base, target_parameters=["mlp.experts.down_proj"])
    ours, _ = merged_here(base, adapter, tmp_path / "out")
    assert_equal(ours, merged_by_peft(base, adapter))


def test_what_does_not_fit_is_refused(tmp_path: Path, bases: dict[str, Path]) -> None:
    def plan(base: Path, adapter: Path) -> None:
        plan_fuse(base, read_alone(open_package(adapter)), json.loads((base / "config.json").read_text()))

    adapter = fused_adapter(tmp_path / "a", bases["qwen3_moe"])
    with pytest.raises(IncompatibleError) as caught:
        plan(bases["mixtral"], adapter)
    assert "no down_proj or gate_up_proj of [32, 24] an expert" in " ".join(caught.value.details)
    edit_json(adapter / "adapter_config.json", rank_pattern={})
    with pytest.raises(IncompatibleError) as caught:
        plan(bases["qwen3_moe"], adapter)
    assert "have 12 and 12 ranks; 4 experts of rank 2 have 8" in " ".join(caught.value.details)
    other = single_adapter(tmp_path / "b", "qwen3_moe", layers=3)
    with pytest.raises(IncompatibleError, match="12 of its 36 modules"):
        plan(bases["qwen3_moe"], other)
    with pytest.raises(IncompatibleError) as caught:
        read_stack([(open_package(adapter), 1.0), (open_package(other), 1.0)])
    assert "fused experts are changed by one adapter alone" in " ".join(caught.value.details)


def test_a_fused_checkpoint_is_merged_in_row_ranges_too(
    tmp_path: Path, bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = bases["mixtral-fused"]
    adapter = fused_adapter(tmp_path / "a", base)
    config = json.loads((base / "config.json").read_text())
    for name, elements in (("whole", 1 << 18), ("ranges", 200)):
        monkeypatch.setattr("adapterhub.algebra.rows.CHUNK_ELEMENTS", elements)
        (tmp_path / name).mkdir()
        fuse(plan_fuse(base, read_alone(open_package(adapter)), config), tmp_path / name, workers=2)
    ranges = read_tensors(tmp_path / "ranges")
    for key, value in read_tensors(tmp_path / "whole").items():
        np.testing.assert_allclose(ranges[key], value, rtol=0, atol=1e-6)
