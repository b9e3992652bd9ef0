from __future__ import annotations

import pytest

from adapterhub.catalog import methods
from adapterhub.catalog.methods import METHODS, check_hyperparameters, method_named, method_of_config
from adapterhub.errors import InvalidFileError, UsageError

LORA = METHODS["lora"]


def test_defaults_are_filled_in_and_given_values_kept():
    filled = check_hyperparameters(LORA, {"r": 8, "target_modules": ["q_proj"]}, where="recipe.yaml")
    assert filled["r"] == 8
    assert filled["target_modules"] == ("q_proj",)
    assert filled["lora_alpha"] == 32
    assert filled["use_rslora"] is False
    assert set(filled) == {row.name for row in LORA.hyperparameters}


def test_no_target_modules_stays_none_for_the_family_to_decide():
    assert check_hyperparameters(LORA, {}, where="x")["target_modules"] is None


def test_every_fault_is_told_at_once():
    given = {"rr": 8, "lora_alpha": "16", "lora_dropout": 2, "bias": "some", "rank_pattern": {"q": 1.5}}
    with pytest.raises(InvalidFileError) as caught:
        check_hyperparameters(LORA, given, where="recipe.yaml")
    assert len(caught.value.details) == 5
    text = str(caught.value)
    for name in given:
        assert name in text


def test_an_unknown_hyperparameter_names_the_nearest():
    with pytest.raises(InvalidFileError, match="did you mean 'lora_dropout'"):
        check_hyperparameters(LORA, {"lora_dropuot": 0.1}, where="recipe.yaml")


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"r": 0}, "at least 1"),
        ({"r": True}, "whole number"),
        ({"r": 8.0}, "whole number"),
        ({"lora_alpha": float("nan")}, "finite"),
        ({"use_rslora": 1}, "true or false"),
        ({"target_modules": 5}, "list of names"),
        ({"target_modules": []}, "names no module"),
        ({"target_modules": [""]}, "list of names"),
        ({"rank_pattern": {"q_proj": 0}}, "at least 1"),
        ({"alpha_pattern": ["q_proj"]}, "mapping"),
        ({"layers_to_transform": [0, "1"]}, "whole numbers"),
        ({"layers_to_transform": -1}, "whole numbers"),
        ({"layers_pattern": "layers"}, "layers_to_transform"),
        ({"target_modules": "all-linear", "layers_to_transform": [0]}, "list of names"),
        ({"init_lora_weights": "pissa"}, "not known"),
        ({"init_lora_weights": 1}, "not known"),
        ({"use_dora": True}, "dora"),
    ],
)
def test_wrong_values_are_refused(given, word):
    with pytest.raises(InvalidFileError, match=word):
        check_hyperparameters(LORA, given, where="recipe.yaml")


def test_a_method_that_cannot_be_built_says_so():
    with pytest.raises(UsageError, match="ia3 cannot be built yet") as caught:
        check_hyperparameters(METHODS["ia3"], {}, where="recipe.yaml")
    assert "lora" in (caught.value.hint or "")


def test_method_named_suggests():
    assert method_named("lora") is LORA
    with pytest.raises(UsageError) as caught:
        method_named("lorra")
    assert caught.value.hint == "did you mean lora?"
    with pytest.raises(UsageError) as caught:
        method_named("QLoRA")
    assert "load_in_4bit" in (caught.value.hint or "")


def test_a_config_is_of_its_method():
    assert method_of_config({"peft_type": "LORA"}) is LORA
    assert method_of_config({"peft_type": "LORA", "use_dora": True}) is METHODS["dora"]
    assert method_of_config({"peft_type": "IA3"}) is METHODS["ia3"]
    assert method_of_config({"peft_type": "NOVEL"}) is None
    assert method_of_config({}) is None
    assert methods.method_of_peft_type("LORA") is LORA


def test_rows_are_whole():
    for name, row in METHODS.items():
        assert name == row.name and name == name.lower()
        assert row.paper.startswith("https://") and row.title and row.group
        assert row.buildable <= bool(row.hyperparameters)
        assert all(item.kind in methods.KINDS and item.help for item in row.hyperparameters)
    assert [row.name for row in METHODS.values() if row.buildable] == ["lora"]


@pytest.mark.engine
def test_the_table_knows_every_method_and_name_that_peft_knows():
    from peft import LoraConfig
    from peft.utils.peft_types import PeftType

    known = {row.peft_type for row in METHODS.values()}
    assert {item.value for item in PeftType} == known - {None}
    fields = set(LoraConfig.__dataclass_fields__)
    assert {row.name for row in LORA.hyperparameters} <= fields
    assert fields == methods.LORA_CONFIG_KEYS
    # Every default of ours is one that PEFT takes.
    LoraConfig(**{row.name: _plain(row.default) for row in LORA.hyperparameters})


def _plain(value):
    return dict(value) if hasattr(value, "keys") else value
