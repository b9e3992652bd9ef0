from __future__ import annotations

import pytest

from adapterhub.catalog.adapter_places import PLACES, hidden_width, layer_paths, layers_of, places, top_parameters
from adapterhub.catalog.families import FAMILIES
from adapterhub.catalog.methods import METHODS
from adapterhub.catalog.own_settings import own_method, own_settings, unknown_settings
from adapterhub.errors import IncompatibleError, InvalidFileError

LLAMA = [f"model.layers.{i}.{end}.weight" for i in (0, 1, 10, 2) for end in ("self_attn.o_proj", "mlp.down_proj")]
T5 = [f"{stack}.block.{i}.layer.0.SelfAttention.o.weight" for stack in ("encoder", "decoder") for i in (0, 1)]


def test_every_family_with_attention_has_a_row() -> None:
    known = {model_type for family in FAMILIES for model_type in family.model_types}
    assert set(PLACES) == known - {"mamba"}


def test_layers_are_found_in_the_order_of_their_numbers() -> None:
    names = ["model.embed_tokens.weight", *LLAMA, "model.norm.weight", "lm_head.weight"]
    paths = layer_paths(layers_of("llama")[0], names)
    assert paths == tuple(f"model.layers.{i}" for i in (0, 1, 2, 10))
    found = places("llama", names, ("mh_adapter", "output_adapter"), (1, 3))
    assert [place.path for place in found] == [
        "model.layers.0.mh_adapter",
        "model.layers.0.output_adapter",
        "model.layers.2.mh_adapter",
        "model.layers.2.output_adapter",
    ]
    assert (found[0].sublayer.reads, found[0].sublayer.writes) == ("self_attn", "self_attn.o_proj")
    # Without the prefix of a model with a head.
    assert places("llama", [name.removeprefix("model.") for name in LLAMA], ("output_adapter",))[0].layer == "layers.0"


def test_an_encoder_s_layers_count_before_its_decoder_s() -> None:
    assert [place.path for place in places("t5", T5, ("output_adapter", "cross_adapter"), (0, 3))] == [
        "encoder.block.1.output_adapter",
        "decoder.block.0.output_adapter",
        "decoder.block.0.cross_adapter",
    ]


@pytest.mark.parametrize(
    ("model_type", "names", "slots", "left", "word"),
    [
        ("unheard", LLAMA, ("output_adapter",), (), "of a unheard"),
        (None, LLAMA, ("output_adapter",), (), "without a model_type"),
        ("gpt2", LLAMA, ("output_adapter",), (), "none of the layers of a gpt2"),
        ("llama", LLAMA, ("output_adapter",), (4,), "has 4 layers, none is 4"),
        ("llama", LLAMA, ("output_adapter",), (0, 1, 2, 3), "every layer"),
        ("llama", LLAMA, ("cross_adapter",), (), "place for cross_adapter"),
    ],
)
def test_what_has_no_place_is_refused(model_type, names, slots, left, word) -> None:
    with pytest.raises(IncompatibleError, match=word):
        places(model_type, names, slots, left)


def test_the_last_layers_and_what_comes_after() -> None:
    names = ("model.embed_tokens.weight", *LLAMA, "model.norm.weight", "lm_head.weight")
    chosen = top_parameters("llama", names, 1)
    assert set(chosen) == {name for name in LLAMA if ".10." in name} | {"model.norm.weight", "lm_head.weight"}
    with pytest.raises(IncompatibleError, match="has 4 layers"):
        top_parameters("llama", names, 5)


def test_widths_by_their_many_names() -> None:
    assert [hidden_width({name: 8}) for name in ("hidden_size", "n_embd", "n_embed", "d_model", "dim")] == [8] * 5
    assert hidden_width({"hidden_size": True}) is hidden_width({}) is None


def test_settings_of_our_own_configs() -> None:
    assert own_method({"peft_type": "BITFIT"}) is METHODS["bitfit"]
    assert own_method({"peft_type": "BOTTLENECK"}) is METHODS["bottleneck"]
    assert own_method({"peft_type": "LORA"}) is own_method({}) is own_method({"peft_type": ("BITFIT",)}) is None
    row = METHODS["bottleneck"]
    config = {"peft_type": "BOTTLENECK", "base_model_name_or_path": "x", "reduction_factor": 8, "use_gating": False}
    assert own_settings(config, row, where="x")["reduction_factor"] == 8
    assert unknown_settings({**config, "use_gating": True}, row) == ("use_gating: True",)
    with pytest.raises(IncompatibleError):
        own_settings({**config, "use_gating": True}, row, where="x")
    with pytest.raises(InvalidFileError):
        own_settings({**config, "reduction_factor": "8"}, row, where="x")
