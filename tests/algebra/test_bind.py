from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.algebra.bind import TIED_BY_DEFAULT, Binding, bind
from adapterhub.algebra.delta import read_factors
from adapterhub.errors import IncompatibleError
from adapterhub.package import open_package
from adapterhub.weights import open_checkpoint
from tests.factory import edit_json, edit_tensors, read_tensors, tiny_gpt2, tiny_llama, tiny_lora, write_tensors


def bound(adapter: Path, base: Path, **config: Any) -> Binding:
    found = json.loads((base / "config.json").read_text()) | config
    return bind(read_factors(open_package(adapter)), open_checkpoint(base), found)


def test_modules_find_their_tensors(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    binding = bound(tiny_lora(tmp_path / "a", base), base)
    assert len(binding.edits) == 4 and not binding.added and not binding.untied
    assert "model.layers.1.self_attn.v_proj.weight" in binding.edits


def test_a_prefix_the_checkpoint_lacks_or_has_is_bridged(tmp_path: Path) -> None:
    base = tiny_gpt2(tmp_path / "base")
    binding = bound(tiny_lora(tmp_path / "a", base, target_modules=("c_attn",), prefix="transformer."), base)
    assert set(binding.edits) == {"h.0.attn.c_attn.weight", "h.1.attn.c_attn.weight"}
    longer = tmp_path / "longer"
    longer.mkdir()
    (longer / "config.json").write_text((base / "config.json").read_text())
    write_tensors(longer / "model.safetensors", {f"transformer.{n}": t for n, t in read_tensors(base).items()})
    binding = bound(tiny_lora(tmp_path / "b", base, target_modules=("c_attn",)), longer)
    assert set(binding.edits) == {"transformer.h.0.attn.c_attn.weight", "transformer.h.1.attn.c_attn.weight"}


def test_conv1d_is_told_by_shape_and_where_square_by_family(tmp_path: Path) -> None:
    base = tiny_gpt2(tmp_path / "base")
    binding = bound(tiny_lora(tmp_path / "a", base, target_modules=("c_attn", "c_proj"), prefix="transformer."), base)
    assert len(binding.edits) == 6 and all(edit.transposed for edit in binding.edits.values())
    square = tiny_llama(tmp_path / "llama")
    binding = bound(tiny_lora(tmp_path / "b", square, target_modules=("q_proj",)), square)
    assert not any(edit.transposed for edit in binding.edits.values())


def test_no_module_of_the_base_is_an_error_that_lists_them(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = tiny_lora(tmp_path / "a", base, prefix="language_model.")
    with pytest.raises(IncompatibleError, match="none of its modules") as caught:
        bound(adapter, base)
    assert "language_model.model.layers.0.self_attn.q_proj" in caught.value.details
    assert (caught.value.hint or "").endswith("such as model.layers.0.self_attn.q_proj.weight")
    fewer = tiny_llama(tmp_path / "fewer", layers=1)
    with pytest.raises(IncompatibleError, match="2 of its 4 modules are") as caught:
        bound(tiny_lora(tmp_path / "b", base), fewer)
    assert caught.value.details == ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj")


def test_other_shapes_are_told_all_at_once(tmp_path: Path) -> None:
    base, wider = tiny_llama(tmp_path / "base"), tiny_llama(tmp_path / "wider", hidden=64)
    with pytest.raises(IncompatibleError, match="does not fit") as caught:
        bound(tiny_lora(tmp_path / "a", base), wider)
    assert len(caught.value.details) == 4


def test_a_quantized_base_is_refused(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    with pytest.raises(IncompatibleError, match="quantized \\(bitsandbytes\\)") as caught:
        bound(tiny_lora(tmp_path / "a", base), base, quantization_config={"quant_method": "bitsandbytes"})
    assert "16-bit" in (caught.value.hint or "")


def test_tied_embeddings_are_parted_when_either_changes(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", tie=True)
    untouched = bound(tiny_lora(tmp_path / "q", base), base)
    assert not untouched.untied and not untouched.added

    head = tiny_lora(tmp_path / "head", base, manifest=False)
    at, rng = "base_model.model.lm_head.lora_", np.random.default_rng(0)
    factors = {f"{at}A.weight": rng.normal(size=(4, 32)), f"{at}B.weight": rng.normal(size=(264, 4))}
    edit_tensors(head / "adapter_model.safetensors", lambda t: t | factors)
    binding = bound(head, base)
    assert binding.untied and binding.added == ("lm_head.weight",)
    assert binding.edits["lm_head.weight"].source.name == "model.embed_tokens.weight"

    embedding = tiny_lora(tmp_path / "embed", base, manifest=False)
    at = "base_model.model.model.embed_tokens.lora_embedding_"
    factors = {f"{at}A": rng.normal(size=(4, 264)), f"{at}B": rng.normal(size=(32, 4))}
    edit_tensors(embedding / "adapter_model.safetensors", lambda t: t | factors)
    binding = bound(embedding, base)
    assert binding.untied and binding.added == ("lm_head.weight",) and binding.edits["lm_head.weight"].delta is None


def test_an_untied_base_without_a_head_is_missing_it(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", tie=True)
    head = tiny_lora(tmp_path / "head", base, target_modules=("embed_tokens",), manifest=False)
    rename = {"model.embed_tokens": "lm_head"}
    edit_tensors(
        head / "adapter_model.safetensors",
        lambda t: {k.replace("model.embed_tokens", rename["model.embed_tokens"]): v for k, v in t.items()},
    )
    with pytest.raises(IncompatibleError, match="none of its modules"):
        bound(head, base, tie_word_embeddings=False)


def test_a_vocabulary_that_was_resized_in_one_place_alone_is_refused(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = tiny_lora(tmp_path / "a", base, manifest=False)
    longer = {"base_model.model.model.embed_tokens.weight": np.zeros((300, 32))}
    edit_tensors(adapter / "adapter_model.safetensors", lambda t: t | longer)
    with pytest.raises(IncompatibleError, match="does not fit") as caught:
        bound(adapter, base)
    assert caught.value.details == (
        "the vocabulary was resized, and not everywhere alike: model.embed_tokens.weight 300; "
        "lm_head.weight keeps the base's",
    )


def test_a_base_without_a_family_is_matched_by_its_names(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", tie=True)
    edit_json(base / "config.json", model_type="something-new")
    head = tiny_lora(tmp_path / "a", base, target_modules=("q_proj", "embed_tokens"), manifest=False)
    edit_tensors(
        head / "adapter_model.safetensors",
        lambda t: {k.replace("model.embed_tokens", "lm_head"): v for k, v in t.items()},
    )
    assert bound(head, base).added == ("lm_head.weight",)


@pytest.mark.engine
def test_what_is_tied_by_default_agrees_with_transformers() -> None:
    from transformers import CONFIG_MAPPING

    from adapterhub.catalog.families import FAMILIES

    words = {word for family in FAMILIES if family.head for word in family.model_types} | set(TIED_BY_DEFAULT)
    assert {word for word in words if CONFIG_MAPPING[word]().tie_word_embeddings} == set(TIED_BY_DEFAULT)
