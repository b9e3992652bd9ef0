"""Hyperparameters of the methods that `adapt build` trains: PEFT's names, what values they take, and our defaults.

A test holds every table against the fields of PEFT's config class: a field is here, or is named as left out with the
reason (`LEFT_OUT`), so that no setting is dropped unseen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from adapterhub.spec._decode import Frozen, kind_of

KINDS = ("int", "float", "bool", "str", "names", "mapping", "any")
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameter:
    """One hyperparameter, by PEFT's name.

    kind: `int`, `float`, `bool`, `str`, `names` (a list of texts, one text, or null), `mapping` (text to number) or
    `any` (one of `choices`, or a list of whole numbers where there are none). A default of None allows null. minimum,
    maximum: inclusive. pattern: texts that are taken beside `choices`. refused: words that PEFT knows and that are not
    taken here, each with the reason.
    """

    name: str
    kind: str
    default: Frozen
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Frozen, ...] = ()
    pattern: str | None = None
    refused: Mapping[str, str] = field(default_factory=lambda: _NOTHING)

    def fault(self, value: object) -> str | None:
        """Say what is wrong with a value, None where nothing is."""
        if value is None and self.default is None:
            return None
        if self.kind == "any":
            return _any_fault(self, value)
        if self.kind == "mapping":
            return _mapping_fault(self, value)
        if self.kind == "names":
            return _names_fault(value)
        expected, accept = {
            "int": ("a whole number", (int,)),
            "float": ("a number", (int, float)),
            "bool": ("true or false", (bool,)),
            "str": ("text", (str,)),
        }[self.kind]
        if not isinstance(value, accept) or (isinstance(value, bool) and self.kind != "bool"):
            return f"expected {expected}, found {kind_of(value)}"
        if isinstance(value, int | float) and self.kind != "bool":
            return _range_fault(self, value)
        if self.choices and value not in self.choices:
            return f"{value!r} is not known; known: {', '.join(str(choice) for choice in self.choices)}"
        return None


def _range_fault(row: Hyperparameter, value: float) -> str | None:
    if not math.isfinite(value):
        return f"must be finite, is {value}"
    if row.minimum is not None and value < row.minimum:
        return f"must be at least {row.minimum:g}, is {value:g}"
    if row.maximum is not None and value > row.maximum:
        return f"must be at most {row.maximum:g}, is {value:g}"
    return None


def _names_fault(value: object) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return None
    if isinstance(value, list | tuple) and all(isinstance(item, str) and item for item in value):
        return None
    return f"expected a list of names, one text or null, found {kind_of(value)}"


def _mapping_fault(row: Hyperparameter, value: object) -> str | None:
    if not isinstance(value, Mapping):
        return f"expected a mapping from module names to numbers, found {kind_of(value)}"
    for key, item in value.items():
        whole = row.name == "rank_pattern"
        if isinstance(item, bool) or not isinstance(item, int if whole else (int, float)):
            return f"{key}: expected a {'whole ' if whole else ''}number, found {kind_of(item)}"
        if (fault := _range_fault(row, item)) is not None:
            return f"{key}: {fault}"
    return None


def _any_fault(row: Hyperparameter, value: object) -> str | None:
    if row.choices:
        # 1 == True in Python; in a recipe they are different words.
        if any(type(value) is type(choice) and value == choice for choice in row.choices):
            return None
        if isinstance(value, str):
            if row.pattern is not None and re.fullmatch(row.pattern, value):
                return None
            if value in row.refused:
                return f"{value!r} {row.refused[value]}"
        return f"{value!r} is not known; known: {', '.join(str(choice).lower() for choice in row.choices)}"
    items = value if isinstance(value, list | tuple) else (value,)
    if value is None or all(type(item) is int and item >= 0 for item in items):
        return None
    return f"expected whole numbers from 0, found {kind_of(value)}"


def _rate(name: str, help: str) -> Hyperparameter:
    return Hyperparameter(name=name, kind="float", default=0.0, minimum=0.0, maximum=0.99, help=help)


def _flag(name: str, default: bool, help: str) -> Hyperparameter:
    return Hyperparameter(name=name, kind="bool", default=default, help=help)


def _whole(name: str, default: int | None, help: str, *, minimum: int = 1) -> Hyperparameter:
    return Hyperparameter(name=name, kind="int", default=default, minimum=minimum, maximum=2**31 - 1, help=help)


_TARGETS = Hyperparameter(
    name="target_modules",
    kind="names",
    default=None,
    help="modules to adapt: ends of names, one regular expression, all-linear, or null for the family's default",
)
_EXCLUDED = Hyperparameter(
    name="exclude_modules", kind="names", default=None, help="modules to leave out, written likewise"
)
_LAYERS = (
    Hyperparameter(
        name="layers_to_transform", kind="any", default=None, help="indices of the layers to adapt; null for all"
    ),
    Hyperparameter(
        name="layers_pattern", kind="names", default=None, help="name of the module list that indices count in"
    ),
)
_RANKS = Hyperparameter(
    name="rank_pattern", kind="mapping", default=MappingProxyType({}), minimum=1, help="other ranks, by module name"
)
_ALPHAS = Hyperparameter(
    name="alpha_pattern", kind="mapping", default=MappingProxyType({}), minimum=0.0, help="other alphas, by module name"
)
_SAVED = Hyperparameter(
    name="modules_to_save", kind="names", default=None, help="modules trained in full and saved along (heads)"
)
_START = _flag("init_weights", True, "begin with an adapter that changes nothing; false draws it at random")


def _bias(own: str) -> Hyperparameter:
    return Hyperparameter(
        name="bias", kind="str", default="none", choices=("none", "all", own), help="biases trained along"
    )


# What changes the base's weights first is written as a plain LoRA of the base once trained (engine/adapters.py).
_LORA_START = Hyperparameter(
    name="init_lora_weights",
    kind="any",
    default=True,
    choices=(True, False, "gaussian", "orthogonal", "pissa", "olora"),
    pattern=r"pissa_niter_[1-9][0-9]{0,3}",
    refused=MappingProxyType(
        {
            "eva": "draws A from the activations of data before training, which is not done here",
            "corda": "needs the covariance of data before training, which is not done here",
            "lora_ga": "needs gradients of data before training, which is not done here",
            "loftq": "quantizes the base, and training on a quantized base is not supported yet",
            "mica": "is not offered here",
        }
    ),
    help="how A and B begin: true leaves the base's output unchanged; pissa, pissa_niter_N and olora begin with "
    "directions of the base's own weights (https://arxiv.org/abs/2404.02948, https://arxiv.org/abs/2406.01775)",
)

LORA: tuple[Hyperparameter, ...] = (
    Hyperparameter(name="r", kind="int", default=16, minimum=1, maximum=65536, help="rank of A and B"),
    Hyperparameter(
        name="lora_alpha", kind="float", default=32, minimum=0.0, help="the delta is scaled by lora_alpha / r"
    ),
    _rate("lora_dropout", "dropout before A in training"),
    _TARGETS,
    _EXCLUDED,
    _bias("lora_only"),
    _flag("use_rslora", False, "scale by lora_alpha / sqrt(r) instead (https://arxiv.org/abs/2312.03732)"),
    _flag("use_dora", False, "train magnitudes apart: the method dora"),
    _RANKS,
    _ALPHAS,
    *_LAYERS,
    _SAVED,
    _LORA_START,
)

DORA = tuple(replace(row, default=True) if row.name == "use_dora" else row for row in LORA)

ADALORA: tuple[Hyperparameter, ...] = (
    _whole("init_r", 12, "rank of every module at the start"),
    _whole("target_r", 8, "mean rank of the modules at the end; less than init_r"),
    _whole("tinit", 0, "steps before ranks are taken away", minimum=0),
    _whole("tfinal", 0, "steps at the end with the ranks that are left", minimum=0),
    _whole("deltaT", 1, "steps between two rounds of taking ranks away"),
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
    _rate("lora_dropout", "dropout before A in training"),
    _TARGETS,
    _EXCLUDED,
    *_LAYERS,
    _SAVED,
)

IA3: tuple[Hyperparameter, ...] = (
    replace(_TARGETS, help="modules whose output is scaled, and those of feedforward_modules; null for the family's"),
    Hyperparameter(
        name="feedforward_modules",
        kind="names",
        default=None,
        help="those of target_modules whose input is scaled instead; null for the family's, [] for none",
    ),
    _EXCLUDED,
    _SAVED,
    _flag("init_ia3_weights", True, "begin with vectors of ones, which change nothing; false draws them at random"),
)

LN_TUNING: tuple[Hyperparameter, ...] = (
    replace(_TARGETS, help="norms to train; null for the family's"),
    _EXCLUDED,
    _SAVED,
)

_LYCORIS: tuple[Hyperparameter, ...] = (
    _whole("r", 8, "rank of the factors"),
    Hyperparameter(name="alpha", kind="float", default=8, minimum=0.0, help="the delta is scaled by alpha / r"),
    _rate("rank_dropout", "share of the ranks left out of a step"),
    _rate("module_dropout", "share of the adapted modules left out of a step"),
    _flag("use_effective_conv2d", False, "factor kernels of convolutions wider than one"),
    _TARGETS,
    _EXCLUDED,
    *_LAYERS,
    _RANKS,
    _ALPHAS,
    _SAVED,
)
LOHA = (*_LYCORIS, _START)
LOKR: tuple[Hyperparameter, ...] = (
    *_LYCORIS,
    Hyperparameter(
        name="init_weights",
        kind="any",
        default=True,
        choices=(True, False, "lycoris"),
        help="begin with an adapter that changes nothing (lycoris: as that library does); false draws it at random",
    ),
    _flag("decompose_both", False, "factor the left matrix of the Kronecker product too"),
    _whole("decompose_factor", -1, "size of the left matrix; -1 for the most even one", minimum=-1),
    _flag("rank_dropout_scale", False, "scale what rank_dropout leaves"),
)

OFT: tuple[Hyperparameter, ...] = (
    _whole("r", 0, "blocks a module; 0 where oft_block_size is given", minimum=0),
    _whole("oft_block_size", 32, "width of a block; 0 where r is given", minimum=0),
    _rate("module_dropout", "share of the blocks left out of a step"),
    _TARGETS,
    _EXCLUDED,
    _bias("oft_only"),
    _START,
    *_LAYERS,
    _SAVED,
    _flag("coft", False, "keep every rotation within eps of none"),
    Hyperparameter(name="eps", kind="float", default=6e-5, minimum=0.0, help="how far a rotation may go with coft"),
    _flag("block_share", False, "one block for all of a module"),
    _flag("use_cayley_neumann", True, "invert by a short series instead of exactly"),
    _whole("num_cayley_neumann_terms", 5, "terms of that series"),
)

BOFT: tuple[Hyperparameter, ...] = (
    _whole("boft_block_size", 4, "width of a block; 0 where boft_block_num is given", minimum=0),
    _whole("boft_block_num", 0, "blocks a module; 0 where boft_block_size is given", minimum=0),
    _rate("boft_dropout", "share of the blocks left out of a step"),
    _TARGETS,
    _EXCLUDED,
    _bias("boft_only"),
    _START,
    *_LAYERS,
    _SAVED,
)

VERA: tuple[Hyperparameter, ...] = (
    _whole("r", 256, "rank of the shared random matrices"),
    _whole("projection_prng_key", 0, "seed of the shared random matrices", minimum=0),
    _flag("save_projection", True, "save those matrices along, so that no library has to draw them again"),
    _rate("vera_dropout", "dropout before the first matrix in training"),
    Hyperparameter(name="d_initial", kind="float", default=0.1, help="first value of the vector d"),
    _TARGETS,
    _bias("vera_only"),
    _START,
    *_LAYERS,
    _SAVED,
)

_VIRTUAL = _whole("num_virtual_tokens", 20, "tokens that are trained and put before every text")

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
    _whole("encoder_hidden_size", None, "its width; null for the base's"),
    _whole("encoder_num_layers", 2, "its layers (LSTM)"),
    _rate("encoder_dropout", "its dropout (LSTM)"),
)

PREFIX_TUNING: tuple[Hyperparameter, ...] = (
    _VIRTUAL,
    _flag("prefix_projection", False, "make keys and values with a small network in training; it is not saved"),
    _whole("encoder_hidden_size", None, "its width; null for the base's"),
    Hyperparameter(
        name="init_weights", kind="any", default=None, choices=("zero",), help="zero begins with values of nothing"
    ),
)

TRAINABLE_TOKENS: tuple[Hyperparameter, ...] = (
    Hyperparameter(name="token_indices", kind="any", default=(), help="the ids of the tokens to train"),
    replace(_TARGETS, help="the embedding; null for the base's input embedding"),
    _flag("init_weights", True, "begin with the base's own rows; false draws them at random"),
)

# Fields of every config that say what the adapter is of, and what PEFT fills in itself.
BOOKKEEPING: frozenset[str] = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "fan_in_fan_out",
        "inference_mode",
        "peft_type",
        "peft_version",
        "revision",
        "task_type",
    }
)
_PROMPT = MappingProxyType(
    {
        **dict.fromkeys(
            ("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"), "is the base's own"
        ),
        "modules_to_save": "is not offered with prompts",
    }
)
_LORA_VARIANT = "is not offered here"
_LORA_LEFT_OUT = MappingProxyType(
    {
        "runtime_config": "is of no use in training",
        "eva_config": "needs data before training, which is not done here",
        "corda_config": "needs data before training, which is not done here",
        "lora_ga_config": "needs data before training, which is not done here",
        "loftq_config": "quantizes the base, and training on a quantized base is not supported yet",
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
            _LORA_VARIANT,
        ),
    }
)

# By method: fields of PEFT's config that a recipe cannot set, with the reason.
LEFT_OUT: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "lora": _LORA_LEFT_OUT,
        "dora": _LORA_LEFT_OUT,
        "adalora": MappingProxyType(
            {
                **_LORA_LEFT_OUT,
                **dict.fromkeys(("bias", "use_rslora", "use_dora", "alpha_pattern"), "is not read by AdaLoRA"),
                "r": "is not read by AdaLoRA; write init_r and target_r",
                "init_lora_weights": "has only one sound value in AdaLoRA",
                "rank_pattern": "is what AdaLoRA finds in training",
                "total_step": "is the number of steps the recipe trains",
            }
        ),
        # Without its CUDA extension, which it compiles when it is imported, PEFT takes 1 whatever is asked for.
        "boft": MappingProxyType(
            {"boft_n_butterfly_factor": "needs an extension of PEFT's in CUDA; without it, it is 1"}
        ),
        "prompt_tuning": MappingProxyType(
            {
                **_PROMPT,
                "tokenizer_name_or_path": "is the base's own",
                "tokenizer_kwargs": "is not offered here",
            }
        ),
        "p_tuning": _PROMPT,
        "prefix_tuning": _PROMPT,
    }
)
