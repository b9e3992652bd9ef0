from __future__ import annotations

import dataclasses

import pytest

from adapterhub.catalog import hyperparameters as rows
from adapterhub.catalog import methods
from adapterhub.catalog.method_targets import with_default_modules
from adapterhub.catalog.methods import METHODS, check_hyperparameters, method_named, method_of_config
from adapterhub.catalog.own_methods import OWN_TYPES
from adapterhub.errors import IncompatibleError, InvalidFileError, UsageError

LORA = METHODS["lora"]


def test_defaults_are_filled_in_and_given_values_kept():
    filled = check_hyperparameters(LORA, {"r": 8, "target_modules": ["q_proj"]}, where="recipe.yaml")
    assert filled["r"] == 8
    assert filled["target_modules"] == ("q_proj",)
    assert filled["lora_alpha"] == 32
    assert filled["use_rslora"] is False
    assert set(filled) == {row.name for row in LORA.hyperparameters} - {"eva_config"}


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
        ({"init_lora_weights": "pissa_niter_0"}, "not known"),
        ({"init_lora_weights": "pizza"}, "not known"),
        ({"init_lora_weights": "corda"}, "covariance of data before training"),
        ({"init_lora_weights": "loftq"}, "begins with what rounding"),
        ({"eva_config": {}}, "belongs to init_lora_weights: eva"),
        ({"corda_config": {}}, "data before training"),
        ({"init_lora_weights": "eva", "eva_config": 2}, "expected a mapping of settings, found a whole number"),
        ({"init_lora_weights": "eva", "eva_config": {"rho": 0.5}}, r"eva_config\.rho: must be at least 1"),
        ({"init_lora_weights": "eva", "eva_config": {"tau": 1.5}}, r"eva_config\.tau: must be at most 1"),
        ({"init_lora_weights": "eva", "eva_config": {"whiten": 1}}, r"eva_config\.whiten: expected true or false"),
        ({"init_lora_weights": "eva", "eva_config": {"roh": 2}}, r"eva_config\.roh: there is no .*mean 'rho'"),
        ({"init_lora_weights": "eva", "eva_config": {"label_mask_value": 0}}, "build's own labels"),
        ({"init_lora_weights": 1}, "not known"),
        ({"use_dora": True}, "dora"),
    ],
)
def test_wrong_values_are_refused(given, word):
    with pytest.raises(InvalidFileError, match=word):
        check_hyperparameters(LORA, given, where="recipe.yaml")


def test_settings_of_a_start_are_there_where_it_is_asked_for():
    defaults = {"rho": 2.0, "tau": 0.99, "use_label_mask": True, "whiten": False, "adjust_scaling_factors": True}
    for given, rho in (({}, 2.0), ({"eva_config": None}, 2.0), ({"eva_config": {"rho": 1}}, 1)):
        found = check_hyperparameters(LORA, {"init_lora_weights": "eva", **given}, where="recipe.yaml")
        assert found["eva_config"] == {**defaults, "rho": rho}
    # All other recipes stay what they were.
    for given in ({}, {"eva_config": None}):
        assert "eva_config" not in check_hyperparameters(LORA, given, where="recipe.yaml")
    for given, word in (({"init_lora_weights": "eva"}, "not offered for DoRA"), ({"eva_config": {}}, "for DoRA")):
        with pytest.raises(InvalidFileError, match=word):
            check_hyperparameters(METHODS["dora"], given, where="recipe.yaml")


@pytest.mark.engine
def test_settings_of_eva_are_pefts():
    from peft import EvaConfig

    filled = check_hyperparameters(LORA, {"init_lora_weights": "eva"}, where="recipe.yaml")["eva_config"]
    theirs = dataclasses.asdict(EvaConfig())
    assert filled == {name: value for name, value in theirs.items() if name != "label_mask_value"}


def test_a_method_that_cannot_be_built_says_so():
    with pytest.raises(UsageError, match="xlora cannot be built: it mixes adapters that exist already") as caught:
        check_hyperparameters(METHODS["xlora"], {}, where="recipe.yaml")
    assert "lora" in (caught.value.hint or "")


def test_every_method_of_peft_is_built_or_says_why_it_is_not():
    not_built = {row.name: row.why_not for row in METHODS.values() if not row.buildable and row.peft_type}
    assert set(not_built) == {"adamss", "frod", "lily", "psoft", "multitask_prompt_tuning", "cpt", "poly", "xlora"}
    assert all(not_built.values())
    assert not any(row.why_not for row in METHODS.values() if row.buildable)


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
        assert all(item.kind in rows.KINDS and item.help for item in row.hyperparameters)
        assert len({item.name for item in row.hyperparameters}) == len(row.hyperparameters)
        assert all(item.fault(item.default) is None for item in row.hyperparameters if item.default != ())


@pytest.mark.parametrize(
    ("method", "given", "word"),
    [
        ("adalora", {"init_r": 8, "target_r": 8}, "target_r: must be less than init_r"),
        ("adalora", {"total_step": 5}, "total_step: is the number of steps"),
        ("adalora", {"r": 5}, "write init_r and target_r"),
        ("adalora", {"targetr": 5}, "did you mean 'target_r'"),
        ("ia3", {"feedforward_modules": []}, "needs target_modules"),
        (
            "ia3",
            {"target_modules": ["k_proj"], "feedforward_modules": ["down_proj"]},
            "down_proj: not in target_modules",
        ),
        ("ia3", {"r": 4}, "no such hyperparameter"),
        ("oft", {"r": 4}, "either r or oft_block_size"),
        ("oft", {"oft_block_size": 0}, "either r or oft_block_size"),
        ("boft", {"boft_block_num": 4}, "either boft_block_num or boft_block_size"),
        ("boft", {"boft_n_butterfly_factor": 2}, "in CUDA"),
        ("dora", {"use_dora": False}, "has to stay true"),
        ("dora", {"init_lora_weights": "pissa"}, "magnitudes are those of the base"),
        ("lokr", {"init_weights": "pissa"}, "not known"),
        ("vera", {"exclude_modules": ["q_proj"]}, "no such hyperparameter"),
        ("prompt_tuning", {"prompt_tuning_init": "TEXT"}, "prompt_tuning_init_text"),
        ("prompt_tuning", {"prompt_tuning_init_text": "In short:"}, "prompt_tuning_init_text"),
        ("prompt_tuning", {"token_dim": 5}, "token_dim: is the base's own"),
        ("prefix_tuning", {"encoder_hidden_size": 5}, "prefix_projection"),
        ("prefix_tuning", {"num_virtual_tokens": 0}, "at least 1"),
        ("trainable_tokens", {}, "token_indices: name at least one"),
        ("trainable_tokens", {"token_indices": [1, 1]}, "names a token twice"),
        ("trainable_tokens", {"token_indices": [-1]}, "whole numbers"),
        ("loha", {"target_modules": []}, "names no module"),
        ("ln_tuning", {"layers_to_transform": [1]}, "no such hyperparameter"),
    ],
)
def test_every_method_has_rules_of_its_own(method, given, word):
    with pytest.raises(InvalidFileError, match=word):
        check_hyperparameters(METHODS[method], given, where="recipe.yaml")


@pytest.mark.parametrize("name", ["pissa", "olora", "pissa_niter_16"])
def test_a_start_that_needs_no_data_is_taken(name):
    assert check_hyperparameters(LORA, {"init_lora_weights": name}, where="x")["init_lora_weights"] == name
    assert methods.changes_base(name)
    assert not any(methods.changes_base(value) for value in (True, False, None, "gaussian", "orthogonal"))


@pytest.mark.parametrize(
    ("method", "given", "word"),
    [
        ("road", {"group_size": 15}, "even"),
        ("road", {"variant": "road_3"}, "road_4"),
        ("hra", {"r": 3}, "even"),
        ("hra", {"apply_GS": True}, "orthogonal"),
        ("gralora", {"r": 5}, "multiple of gralora_k"),
        ("glora", {"config_A_B": "none", "config_C": "none", "config_D_E": "none"}, "nothing would be trained"),
        ("vblora", {"topk": 300}, "num_vectors"),
        ("randlora", {"sparse": True, "very_sparse": True}, "either sparse"),
        ("miss", {"mini_r": 2}, "init_weights: mini"),
        ("miss", {"mini_r": 3, "init_weights": "mini"}, "divide r"),
        ("miss", {"init_weights": "bone"}, "not known"),
        ("osf", {"effective_rank": 1.5}, "share below 1"),
        ("osf", {"rank_pattern": {}}, "not offered"),
        ("supertuning", {"lora_alpha": 2}, "that r asks for"),
        ("cartridge", {"num_virtual_tokens": 2, "num_frozen_tokens": 2}, "leaves none"),
        ("waveft", {"wavelet_family": "db39"}, "not known"),
        ("c3a", {"block_size_pattern": {"v_proj": 1.5}}, "whole number"),
        ("delora", {"lambda_pattern": {"v_proj": -1}}, "at least 0"),
        ("fourierft", {"n_frequencies": 3}, "did you mean 'n_frequency'"),
        ("shadow", {"auxiliary_loss_weight": 0.05}, "at most 0"),
        ("shadow", {"shadow_model": "org/x"}, "loaded from elsewhere"),
        ("adaption_prompt", {"adapter_len": 0}, "at least 1"),
    ],
)
def test_values_that_a_method_cannot_be_trained_with_are_refused(method, given, word):
    with pytest.raises(InvalidFileError, match=word):
        check_hyperparameters(METHODS[method], given, where="x")


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("osf", {"effective_rank": 4}),
        ("osf", {"effective_rank": 0.5}),
        ("delora", {"lambda_pattern": {"v_proj": 1.5}}),
        ("supertuning", {"r": 2, "lora_alpha": 2}),
        ("waveft", {"wavelet_family": "coif17"}),
        ("miss", {"mini_r": 2, "init_weights": "mini"}),
    ],
)
def test_values_that_a_method_can_be_trained_with_are_taken(method, given):
    filled = check_hyperparameters(METHODS[method], given, where="x")
    assert {name: filled[name] for name in given} == given


def test_alpha_is_loha_s_own_name_and_null_is_taken_where_it_is_the_default():
    assert check_hyperparameters(METHODS["loha"], {"lora_alpha": 3}, where="x")["alpha"] == 3
    assert check_hyperparameters(METHODS["loha"], {"alpha": 3}, where="x")["alpha"] == 3
    assert check_hyperparameters(METHODS["p_tuning"], {"encoder_hidden_size": None}, where="x")


def test_modules_by_default():
    def filled(method, given, model_type):
        row = METHODS[method]
        return with_default_modules(row, check_hyperparameters(row, given, where="x"), model_type, where="x")

    assert filled("loha", {}, "llama")["target_modules"] == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert filled("loha", {}, "unheard")["target_modules"] == "all-linear"
    assert filled("loha", {"target_modules": ["x"]}, "llama")["target_modules"] == ("x",)
    assert filled("ia3", {}, "llama")["feedforward_modules"] == ("down_proj",)
    assert filled("ia3", {"target_modules": ["k_proj", "down_proj"]}, "llama")["feedforward_modules"] == ("down_proj",)
    assert filled("ia3", {"target_modules": ["k_proj"]}, "llama")["feedforward_modules"] == ()
    given = {"target_modules": ["k"], "feedforward_modules": []}
    assert filled("ia3", given, "unheard")["feedforward_modules"] == ()
    assert filled("ln_tuning", {}, "gpt2")["target_modules"] == ("ln_1", "ln_2", "ln_f")
    assert filled("trainable_tokens", {"token_indices": [1]}, "unheard")["target_modules"] is None
    assert "target_modules" not in filled("prefix_tuning", {}, "unheard")
    assert filled("beft", {}, "bert")["target_modules"] == ("value",)
    assert filled("beft", {"target_modules": ["x"]}, "unheard")["target_modules"] == ("x",)
    assert filled("adaption_prompt", {}, "mistral")["adapter_layers"] is None
    with pytest.raises(IncompatibleError, match="llama, mistral, gpt2 alone"):
        filled("adaption_prompt", {}, "bloom")
    for method, given, word in (
        ("beft", {}, "value projections"),
        ("ia3", {}, "target_modules and feedforward_modules"),
        ("ia3", {"target_modules": ["k"]}, "feedforward_modules"),
        ("ln_tuning", {}, "the base's norms"),
    ):
        with pytest.raises(IncompatibleError) as caught:
            filled(method, given, "unheard")
        assert word in (caught.value.hint or "")
    with pytest.raises(IncompatibleError):
        filled("ia3", {"target_modules": ".*_proj"}, "llama")


@pytest.mark.engine
def test_the_table_knows_every_method_and_name_that_peft_knows():
    from peft import LoraConfig
    from peft.utils.peft_types import PeftType

    known = {row.peft_type for row in METHODS.values()}
    assert {item.value for item in PeftType} == known - {None} - OWN_TYPES
    fields = set(LoraConfig.__dataclass_fields__)
    assert {row.name for row in LORA.hyperparameters} <= fields
    assert fields == methods.LORA_CONFIG_KEYS
    # Every default of ours is one that PEFT takes.
    LoraConfig(**{row.name: _plain(row.default) for row in LORA.hyperparameters})


def _plain(value):
    return dict(value) if hasattr(value, "keys") else value
