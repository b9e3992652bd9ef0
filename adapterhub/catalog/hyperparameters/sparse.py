"""Sparse changes: of a transform of the weights (FourierFT, WaveFT, C3A), of the weights, of the embedding's rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from adapterhub.catalog.hyperparameters.row import (
    LAYERS,
    SAVED,
    START,
    TARGETS,
    WHERE,
    Hyperparameter,
    bias,
    by_module,
    choice,
    flag,
    number,
    rate,
    whole,
)

_FREQUENCIES = by_module("n_frequency_pattern", "other numbers of them, by module name", minimum=1, whole=True)

FOURIERFT: tuple[Hyperparameter, ...] = (
    whole("n_frequency", 1000, "coefficients a module; at most the numbers of its matrix"),
    number("scaling", 150.0, "the change is multiplied by it"),
    whole("random_loc_seed", 777, "seed of which coefficients are trained", minimum=0),
    _FREQUENCIES,
    flag("init_weights", False, "begin with zeros, which change nothing; false draws the coefficients at random"),
    bias("fourier_only"),
    *WHERE,
)

WAVEFT: tuple[Hyperparameter, ...] = (
    whole("n_frequency", 2592, "coefficients a module; at most the numbers of its matrix"),
    number("scaling", 25.0, "the change is multiplied by it"),
    Hyperparameter(
        name="wavelet_family",
        kind="any",
        default="db1",
        choices=("db1", "db2", "sym2", "coif1"),
        pattern=r"db([1-9]|[12][0-9]|3[0-8])|sym([2-9]|1[0-9]|20)|coif([1-9]|1[0-7])",
        help="the wavelet: db1 to db38, sym2 to sym20, coif1 to coif17",
    ),
    flag("use_idwt", True, "transform the coefficients back; false takes them for the change itself"),
    whole("random_loc_seed", 777, "seed of which coefficients are trained", minimum=0),
    _FREQUENCIES,
    flag("proportional_parameters", False, "share the coefficients out by the sizes of the modules"),
    flag("init_weights", True, "begin with zeros, which change nothing; false draws the coefficients at random"),
    bias("waveft_only"),
    *WHERE,
)

C3A: tuple[Hyperparameter, ...] = (
    whole("block_size", 256, "side of the circulant blocks; divides every input and output of the modules"),
    by_module("block_size_pattern", "other sizes, by module name", minimum=1, whole=True),
    choice(
        "init_weights",
        "xavier_uniform",
        (True, False, "gaussian", "kaiming_uniform", "xavier_uniform"),
        "how the kernels begin; true leaves the base's output unchanged, false is xavier_uniform",
    ),
    bias("c3a_only"),
    TARGETS,
    *LAYERS,
    SAVED,
)

SHIRA: tuple[Hyperparameter, ...] = (
    whole("r", 32, "as many numbers of a matrix are trained as a LoRA of this rank has"),
    whole("random_seed", None, "seed of which numbers they are; null for the training's", minimum=0),
    flag("init_weights", True, "begin with a change of nothing; false draws it at random"),
    TARGETS,
    SAVED,
)

SUPERTUNING: tuple[Hyperparameter, ...] = (
    number("sparsity", 0.99, "share of a matrix that is not trained", maximum=1 - 1e-6),
    flag("select_top", True, "train the largest numbers; false trains the smallest"),
    whole("r", None, "rank of a LoRA beside them; null for none"),
    number("lora_alpha", None, "that LoRA is scaled by lora_alpha / r; null for 2 r"),
    rate("lora_dropout", "dropout before that LoRA in training"),
    START,
    TARGETS,
    SAVED,
)

TRAINABLE_TOKENS: tuple[Hyperparameter, ...] = (
    Hyperparameter(name="token_indices", kind="any", default=(), help="the ids of the tokens to train"),
    replace(TARGETS, help="the embedding; null for the base's input embedding"),
    flag("init_weights", True, "begin with the base's own rows; false draws them at random"),
)

TABLES: Mapping[str, tuple[Hyperparameter, ...]] = {
    "fourierft": FOURIERFT,
    "waveft": WAVEFT,
    "c3a": C3A,
    "shira": SHIRA,
    "supertuning": SUPERTUNING,
    "trainable_tokens": TRAINABLE_TOKENS,
}
LEFT_OUT: Mapping[str, Mapping[str, str]] = {
    "shira": MappingProxyType({"mask_type": "has one value, random; another is Python code"}),
    "supertuning": MappingProxyType(
        {"save_precomputed_indices": "stays true: which numbers are the largest depends on the dtype they are read in"}
    ),
}
