"""Trained beginnings of every text, or of what every layer makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from adapterhub.catalog.hyperparameters.row import Hyperparameter, flag, rate, whole

_VIRTUAL = whole("num_virtual_tokens", 20, "tokens that are trained and put before every text")

PROMPT_TUNING: tuple[Hyperparameter, ...] = (
    _VIRTUAL,
    Hyperparameter(
        name="prompt_tuning_init",
        kind="str",
        default="RANDOM",
        choices=("RANDOM", "SAMPLE_VOCAB", "TEXT"),
        help="how they begin: at random, as tokens of the vocabulary, or as prompt_tuning_init_text",
    ),
    Hyperparameter(name="prompt_tuning_init_text", kind="str", default=None, help="the text to begin with, for TEXT"),
)

P_TUNING: tuple[Hyperparameter, ...] = (
    _VIRTUAL,
    Hyperparameter(
        name="encoder_reparameterization_type",
        kind="str",
        default="MLP",
        choices=("MLP", "LSTM"),
        help="the network that makes the tokens in training; it is not saved",
    ),
    whole("encoder_hidden_size", None, "its width; null for the base's"),
    whole("encoder_num_layers", 2, "its layers (LSTM)"),
    rate("encoder_dropout", "its dropout (LSTM)"),
)

PREFIX_TUNING: tuple[Hyperparameter, ...] = (
    _VIRTUAL,
    flag("prefix_projection", False, "make keys and values with a small network in training; it is not saved"),
    whole("encoder_hidden_size", None, "its width; null for the base's"),
    Hyperparameter(
        name="init_weights", kind="any", default=None, choices=("zero",), help="zero begins with values of nothing"
    ),
)

CARTRIDGE: tuple[Hyperparameter, ...] = (
    _VIRTUAL,
    whole("num_frozen_tokens", 1, "the first of them stay as they were drawn", minimum=0),
)

ADAPTION_PROMPT: tuple[Hyperparameter, ...] = (
    whole("adapter_len", 10, "tokens that are trained in every adapted layer"),
    whole("adapter_layers", None, "layers that are adapted, from the last one; null for all"),
)

_PROMPT = MappingProxyType(
    {
        **dict.fromkeys(
            ("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"), "is the base's own"
        ),
        "modules_to_save": "is not offered with prompts",
    }
)

TABLES: Mapping[str, tuple[Hyperparameter, ...]] = {
    "prompt_tuning": PROMPT_TUNING,
    "p_tuning": P_TUNING,
    "prefix_tuning": PREFIX_TUNING,
    "cartridge": CARTRIDGE,
    "adaption_prompt": ADAPTION_PROMPT,
}
LEFT_OUT: Mapping[str, Mapping[str, str]] = {
    "prompt_tuning": MappingProxyType(
        {**_PROMPT, "tokenizer_name_or_path": "is the base's own", "tokenizer_kwargs": "is not offered here"}
    ),
    "p_tuning": _PROMPT,
    "prefix_tuning": _PROMPT,
    "cartridge": _PROMPT,
    "adaption_prompt": MappingProxyType({"target_modules": "is the attention of the base's family"}),
}
