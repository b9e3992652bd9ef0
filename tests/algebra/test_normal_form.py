from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.algebra.delta import StackDelta, concatenate, read_factors
from adapterhub.algebra.normal_form import normal_config, write_normal_form
from adapterhub.errors import UsageError
from adapterhub.package import open_package
from adapterhub.spec.lora import LoraSpec
from tests.factory import edit_tensors, read_tensors, tiny_llama, tiny_lora


def written(delta: StackDelta, folder: Path) -> StackDelta:
    folder.mkdir()
    write_normal_form(delta, folder, base_model="tiny-llama")
    return read_factors(open_package(folder))


def assert_same(one: StackDelta, other: StackDelta) -> None:
    assert one.modules.keys() == other.modules.keys()
    for name, module in one.modules.items():
        np.testing.assert_allclose(module.load().dense(), other.modules[name].load().dense(), rtol=1e-5, atol=1e-6)


@pytest.fixture
def stack(tmp_path: Path) -> StackDelta:
    base = tiny_llama(tmp_path / "base")
    how: list[dict[str, Any]] = [
        {"r": 4, "alpha_pattern": {"v_proj": 3}},
        {"r": 3, "use_rslora": True, "target_modules": ("q_proj", "down_proj"), "seed": 1},
    ]
    folders = [tiny_lora(tmp_path / str(i), base, **one) for i, one in enumerate(how)]
    return concatenate([(open_package(folder), weight) for folder, weight in zip(folders, (1.0, -2.0), strict=True)])


def test_it_is_the_same_sum_with_a_scaling_of_one(tmp_path: Path, stack: StackDelta) -> None:
    again = written(stack, tmp_path / "out")
    assert_same(stack, again)
    spec = again.sources[0].spec
    assert all(spec.scaling_of(name) == 1.0 for name in again.modules)
    assert spec.rank_pattern == spec.alpha_pattern and spec.r == spec.lora_alpha == 7
    assert {spec.rank_of(name) for name in again.modules} == {3, 4, 7}
    plain = LoraSpec(r=spec.r, lora_alpha=spec.lora_alpha)  # an engine that ignores patterns
    assert all(plain.scaling_of(name) == 1.0 for name in again.modules)


def test_bytes_are_the_same_every_time(tmp_path: Path, stack: StackDelta) -> None:
    written(stack, tmp_path / "one")
    written(stack, tmp_path / "two")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_targets_are_the_members_names_where_they_take_every_layer(tmp_path: Path, stack: StackDelta) -> None:
    assert normal_config(stack)["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    base = tiny_llama(tmp_path / "wide")
    narrowed = tiny_lora(
        tmp_path / "n", base, target_modules=("layers.1.self_attn.q_proj",), config={"layers_to_transform": [1]}
    )
    delta = read_factors(open_package(narrowed))
    assert normal_config(delta)["target_modules"] == ["model.layers.1.self_attn.q_proj"]


def test_patterns_of_names_that_end_alike_are_anchored(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", layers=1)
    folder = tiny_lora(tmp_path / "a", base, target_modules=("q_proj",), r=2, manifest=False)
    at, rng = "base_model.model.", np.random.default_rng(0)

    def nested(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for module, rank in (("x.q_proj", 2), ("q_proj", 1), ("y.q_proj", 5)):
            tensors[f"{at}{module}.lora_A.weight"] = rng.normal(size=(rank, 8))
            tensors[f"{at}{module}.lora_B.weight"] = rng.normal(size=(8, rank))
        return tensors

    edit_tensors(folder / "adapter_model.safetensors", nested)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["rank_pattern"] = {"^q_proj": 1, "y.q_proj": 5}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    again = written(read_factors(open_package(folder)), tmp_path / "out")
    assert {name: again.sources[0].spec.rank_of(name) for name in again.modules} == {
        "model.layers.0.self_attn.q_proj": 2,
        "q_proj": 1,
        "x.q_proj": 2,
        "y.q_proj": 5,
    }
    assert set(again.sources[0].spec.rank_pattern) == {
        r"^model\.layers\.0\.self_attn\.q_proj",
        "^q_proj",
        r"^x\.q_proj",
    }


def test_embeddings_dora_and_modules_saved_whole_keep_their_place(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    dora = read_factors(open_package(tiny_lora(tmp_path / "dora", base, use_dora=True)))
    again = written(dora, tmp_path / "dora-out")
    assert_same(dora, again)
    for name, module in dora.modules.items():
        np.testing.assert_array_equal(module.load().magnitude, again.modules[name].load().magnitude)

    saving = tiny_lora(tmp_path / "saving", base, config={"modules_to_save": ["lm_head"]}, manifest=False)
    rng, at = np.random.default_rng(1), "base_model.model.model.embed_tokens.lora_embedding_"
    extra = {f"{at}A": rng.normal(size=(4, 264)), f"{at}B": rng.normal(size=(32, 4))}
    head = {"base_model.model.lm_head.weight": rng.normal(size=(264, 32))}
    edit_tensors(saving / "adapter_model.safetensors", lambda t: t | extra | head)
    delta = read_factors(open_package(saving))
    again = written(delta, tmp_path / "saving-out")
    assert_same(delta, again)
    assert again.modules["model.embed_tokens"].embedding
    stored = read_tensors(tmp_path / "saving-out" / "adapter_model.safetensors")
    np.testing.assert_array_equal(stored["base_model.model.lm_head.weight"], next(iter(head.values())).astype("f4"))


def test_nothing_to_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="changes no module"):
        write_normal_form(StackDelta(modules={}), tmp_path)


@pytest.mark.engine
def test_peft_loads_it_and_finds_every_weight(tmp_path: Path, stack: StackDelta) -> None:
    import warnings

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    written(stack, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # "missing adapter keys"
        peft = PeftModel.from_pretrained(model, tmp_path / "out")
    layers = {name: module for name, module in peft.named_modules() if hasattr(module, "get_delta_weight")}
    assert len(layers) == len(stack.modules) == 6
    for name, layer in layers.items():
        change = stack.modules[name.removeprefix("base_model.model.")].load().dense()
        np.testing.assert_allclose(layer.get_delta_weight("default").numpy(), change, rtol=1e-5, atol=1e-6)
