"""LoRA, DoRA and AdaLoRA: their hyperparameters, with PEFT's names and our defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from adapterhub.catalog.hyperparameters.row import (
    ALPHAS,
    EXCLUDED,
    LAYERS,
    RANKS,
    SAVED,
    TARGETS,
    Hyperparameter,
    bias,
    flag,
    number,
    rate,
    whole,
)

# What changes the base's weights first is written as a plain LoRA of the base once trained (engine/adapters.py).
_LORA_START = Hyperparameter(
    name="init_lora_weights",
    kind="any",
    default=True,
    choices=(True, False, "gaussian", "orthogonal", "pissa", "olora", "eva"),
    pattern=r"pissa_niter_[1-9][0-9]{0,3}",
    refused=MappingProxyType(
        {
            "corda": "needs the covariance of data before training, which is not done here",
            "lora_ga": "needs gradients of data before training, which is not done here",
            "loftq": "begins with what rounding the base to 4 bits loses, which is not done here",
            "mica": "is not offered here",
        }
    ),
    help="how A and B begin: true leaves the base's output unchanged; pissa, pissa_niter_N and olora begin with "
    "directions of the base's own weights (https://arxiv.org/abs/2404.02948, https://arxiv.org/abs/2406.01775), eva "
    "with those of what the training rows put into each module (https://arxiv.org/abs/2410.07170)",
)
# PEFT's EvaConfig (peft 0.21.2), with its defaults.
_EVA_CONFIG = Hyperparameter(
    name="eva_config",
    kind="settings",
    default=None,
    parts=(
        number("rho", 2.0, "a module gets at most rho times its rank; with 1, ranks stay as they are", minimum=1.0),
        number("tau", 0.99, "cosine of a direction before and after a batch from which on it is settled", maximum=1.0),
        flag("use_label_mask", True, "only learned tokens count; without effect where labels are not of tokens"),
        flag("whiten", False, "divide each direction by the root of its singular value"),
        flag("adjust_scaling_factors", True, "other ranks get another alpha: the same lora_alpha / r"),
    ),
    refused=MappingProxyType({"label_mask_value": "is the mark in the build's own labels, no choice"}),
    help="settings of init_lora_weights: eva (rho 2, tau 0.99, use_label_mask true, whiten false, "
    "adjust_scaling_factors true)",
)

LORA: tuple[Hyperparameter, ...] = (
    Hyperparameter(name="r", kind="int", default=16, minimum=1, maximum=65536, help="rank of A and B"),
    Hyperparameter(
        name="lora_alpha", kind="float", default=32, minimum=0.0, help="the delta is scaled by lora_alpha / r"
    ),
    rate("lora_dropout", "dropout before A in training"),
    TARGETS,
    EXCLUDED,
    bias("lora_only"),
    flag("use_rslora", False, "scale by lora_alpha / sqrt(r) instead (https://arxiv.org/abs/2312.03732)"),
    flag("use_dora", False, "train magnitudes apart: the method dora"),
    RANKS,
    ALPHAS,
    *LAYERS,
    SAVED,
    _LORA_START,
    _EVA_CONFIG,
)

_NOT_DORA = "is not offered for DoRA"
_DORA_START = replace(
    _LORA_START,
    choices=tuple(word for word in _LORA_START.choices if word != "eva"),
    refused=MappingProxyType({**_LORA_START.refused, "eva": _NOT_DORA}),
)
DORA = tuple(
    {"use_dora": replace(row, default=True), "init_lora_weights": _DORA_START}.get(row.name, row)
    for row in LORA
    if row is not _EVA_CONFIG
)

ADALORA: tuple[Hyperparameter, ...] = (
    whole("init_r", 12, "rank of every module at the start"),
    whole("target_r", 8, "mean rank of the modules at the end; less than init_r"),
    whole("tinit", 0, "steps before ranks are taken away", minimum=0),
    whole("tfinal", 0, "steps at the end with the ranks that are left", minimum=0),
    whole("deltaT", 1, "steps between two rounds of taking ranks away"),
    Hyperparameter(
        name="beta1", kind="float", default=0.85, minimum=1e-6, maximum=1 - 1e-6, help="smoothing of the sensitivity"
    ),
    Hyperparameter(
        name="beta2", kind="float", default=0.85, minimum=1e-6, maximum=1 - 1e-6, help="smoothing of the uncertainty"
    ),
    Hyperparameter(
        name="orth_reg_weight",
        kind="float",
        default=0.5,
        minimum=0.0,
        help="weight of the penalty on A and B not being orthogonal; it is part of the loss that is logged",
    ),
    Hyperparameter(
        name="lora_alpha", kind="float", default=32, minimum=0.0, help="the delta is scaled by lora_alpha / init_r"
    ),
    rate("lora_dropout", "dropout before A in training"),
    TARGETS,
    EXCLUDED,
    *LAYERS,
    SAVED,
)


_NOT_OFFERED = "is not offered here"
_LORA_LEFT_OUT = MappingProxyType(
    {
        "runtime_config": "is of no use in training",
        "corda_config": "needs data before training, which is not done here",
        "lora_ga_config": "needs data before training, which is not done here",
        "loftq_config": "belongs to a start that is not done here",
        **dict.fromkeys(
            (
                "alora_invocation_tokens",
                "arrow_config",
                "ensure_weight_tying",
                "kasa_config",
                "layer_replication",
                "lora_bias",
                "megatron_config",
                "megatron_core",
                "monteclora_config",
                "qalora_group_size",
                "target_parameters",
                "trainable_token_indices",
                "use_bdlora",
                "use_qalora",
                "velora_config",
            ),
            _NOT_OFFERED,
        ),
    }
)

TABLES: Mapping[str, tuple[Hyperparameter, ...]] = {"lora": LORA, "dora": DORA, "adalora": ADALORA}
LEFT_OUT: Mapping[str, Mapping[str, str]] = {
    "lora": _LORA_LEFT_OUT,
    "dora": MappingProxyType({**_LORA_LEFT_OUT, "eva_config": _NOT_DORA}),
    "adalora": MappingProxyType(
        {
            **_LORA_LEFT_OUT,
            **dict.fromkeys(("bias", "use_rslora", "use_dora", "alpha_pattern"), "is not read by AdaLoRA"),
            "r": "is not read by AdaLoRA; write init_r and target_r",
            "init_lora_weights": "has only one sound value in AdaLoRA",
            "eva_config": "is not read by AdaLoRA",
            "rank_pattern": "is what AdaLoRA finds in training",
            "total_step": "is the number of steps the recipe trains",
        }
    ),
}
