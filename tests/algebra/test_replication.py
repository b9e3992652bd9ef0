"""layer_replication against PEFT's active model: its own merge adds the changes of all copies to one weight."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub.algebra.fuse import plan_fuse
from adapterhub.algebra.read_alone import read_alone
from adapterhub.algebra.replication import config_of, order_of, replicated
from adapterhub.errors import IncompatibleError
from adapterhub.ops.base import add_base
from adapterhub.ops.merge import merge, plan_merge
from adapterhub.package import open_package
from adapterhub.settings import Settings
from adapterhub.weights import open_checkpoint
from tests.algebra.test_read_alone import lora, trained
from tests.factory import edit_json, tiny_llama, tiny_lora

RANGES = [[0, 3], [1, 3], [2, 3]]


def test_a_longer_checkpoint_names_the_same_bytes(tmp_path: Path) -> None:
    base = open_checkpoint(tiny_llama(tmp_path / "base", layers=3))
    longer = replicated(base, [(0, 3), (1, 3)])
    assert order_of([(0, 3), (1, 3)]) == (0, 1, 2, 1, 2)
    assert len(longer.tensors) == 3 + 5 * 9
    name = "mlp.up_proj.weight"
    assert longer.tensors[f"model.layers.4.{name}"] == base.tensors[f"model.layers.2.{name}"]
    assert longer.tensors["lm_head.weight"] == base.tensors["lm_head.weight"]
    for wrong in ([(0, 4)], [(2, 2)], [(-1, 2)]):
        with pytest.raises(IncompatibleError, match="has not"):
            replicated(base, wrong)


def test_the_config_follows() -> None:
    config = config_of({"num_hidden_layers": 3, "layer_types": ["a", "b", "c"]}, [(0, 3), (1, 3)])
    assert config == {"num_hidden_layers": 5, "layer_types": ["a", "b", "c", "b", "c"]}
    assert config_of({"n_layer": 2}, [(0, 2), (0, 2)]) == {"n_layer": 4}
    with pytest.raises(IncompatibleError) as caught:
        config_of({"num_hidden_layers": 3, "first_k_dense_replace": 1}, [(0, 3)])
    assert "first_k_dense_replace" in (caught.value.where or "")


def test_what_the_base_has_not_is_refused(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", layers=3)
    folder = tiny_lora(tmp_path / "a", base, manifest=False)
    edit_json(folder / "adapter_config.json", layer_replication=[[0, 2], [1, 4]])
    with pytest.raises(IncompatibleError) as caught:
        plan_fuse(base, read_alone(open_package(folder)), json.loads((base / "config.json").read_text()))
    assert "wanted: [1, 4]" in caught.value.details


@pytest.mark.engine
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_agrees_with_peft(tmp_path: Path, settings: Settings, dtype: str) -> None:
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM

    def logits(model: object) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(torch.arange(1, 41)[None]).logits  # type: ignore[attr-defined, no-any-return]

    base = tiny_llama(tmp_path / "base", layers=3, shards=2, dtype=dtype)
    add_base("tiny-llama", str(base), settings=settings)
    adapter = trained(base, lora("llama", layer_replication=RANGES), tmp_path / "a", base_id="tiny-llama")
    plan = plan_merge(tmp_path / "out", stack=str(adapter), verify=True, link=True, settings=settings)
    assert dict(plan.facts())["layers"] == "0 to 2, 1 to 2, 2 to 2"
    result = merge(plan)
    agreed = result.agreement
    assert agreed is not None and agreed.difference <= agreed.bound < agreed.effect / 10
    assert agreed.bound == (1e-4 if dtype == "float32" else 2e-3)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert merged.config.num_hidden_layers == 6
    active = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    if dtype == "float32":
        expected = logits(active)
        assert float((logits(merged) - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    # merge_and_unload() would add every copy's delta to the weights that they share; each layer's own is asked for.
    wanted = {
        name: module.get_base_layer().weight + module.get_delta_weight("default")
        for name, module in active.base_model.model.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert len(wanted) == 6 * 3
    for name, weight in wanted.items():
        rounded = weight.detach().to(getattr(torch, dtype)).float()
        step = torch.finfo(getattr(torch, dtype)).eps * rounded.abs()
        apart = (merged.get_parameter(f"{name}.weight") - rounded).abs()
        assert (apart <= step + 1e-6 * rounded.abs().max()).all(), name
    assert result.report is not None and len(result.report.modules) == 6 * 3
