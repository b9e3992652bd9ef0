"""Which modules a method adapts where a recipe names none, by the base's family.

Those of IA3, of LayerNorm tuning and of BEFT are PEFT's own (peft 0.21.2, utils/constants.py), by model type.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from adapterhub.catalog.families import default_targets
from adapterhub.catalog.methods import Method
from adapterhub.errors import IncompatibleError
from adapterhub.spec._decode import Frozen

_Names = tuple[str, ...]
_GATED: tuple[_Names, _Names] = (("q_proj", "v_proj", "down_proj"), ("down_proj",))
_LLAMA: tuple[_Names, _Names] = (("k_proj", "v_proj", "down_proj"), ("down_proj",))
_PHI: tuple[_Names, _Names] = (("q_proj", "v_proj", "fc2"), ("fc2",))
_FUSED: tuple[_Names, _Names] = (("query_key_value", "dense_4h_to_h"), ("dense_4h_to_h",))
_ENCODER: tuple[_Names, _Names] = (("key", "value", "output.dense"), ("output.dense",))

# target_modules, feedforward_modules.
IA3_MODULES: Mapping[str, tuple[_Names, _Names]] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": _LLAMA,
        **dict.fromkeys(("qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _GATED),
        "phi": _PHI,
        "opt": (("q_proj", "k_proj", "fc2"), ("fc2",)),
        "gpt2": (("c_attn", "mlp.c_proj"), ("mlp.c_proj",)),
        "gpt_neox": _FUSED,
        "falcon": _FUSED,
        "bloom": (("query_key_value", "mlp.dense_4h_to_h"), ("mlp.dense_4h_to_h",)),
        "gpt_bigcode": (("c_attn", "mlp.c_proj"), ("mlp.c_proj",)),
        "gpt_neo": (("q_proj", "v_proj", "c_proj"), ("c_proj",)),
        "gptj": (("q_proj", "v_proj", "fc_out"), ("fc_out",)),
        "bert": _ENCODER,
        "roberta": _ENCODER,
        "deberta": (("in_proj", "output.dense"), ("output.dense",)),
        "deberta-v2": (("key_proj", "value_proj", "output.dense"), ("output.dense",)),
        "t5": (("k", "v", "wo"), ("wo",)),
        "mt5": (("k", "v", "wi_1"), ()),
        "bart": (("q_proj", "v_proj", "fc2"), ("fc2",)),
    }
)

_TWO = ("input_layernorm", "post_attention_layernorm", "norm")
_FOUR = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    "norm",
)
_FINAL = ("input_layernorm", "post_attention_layernorm", "ln_f")
NORMS: Mapping[str, _Names] = MappingProxyType(
    {
        **dict.fromkeys(("llama", "mistral", "gemma"), _TWO),
        **dict.fromkeys(("gemma2", "gemma3_text"), _FOUR),
        **dict.fromkeys(("qwen2", "qwen3"), ("post_attention_layernorm",)),
        "phi": ("input_layernorm", "final_layernorm"),
        "gpt2": ("ln_1", "ln_2", "ln_f"),
        "falcon": _FINAL,
        "bloom": _FINAL,
        "gptj": ("ln_1", "ln_f"),
        **dict.fromkeys(("t5", "mt5"), ("layer_norm", "final_layer_norm")),
        "bart": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
    }
)

VALUES: Mapping[str, _Names] = MappingProxyType(
    {
        **dict.fromkeys(
            ("llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "phi", "qwen2", "qwen3", "opt", "bart"),
            ("v_proj",),
        ),
        **dict.fromkeys(("bert", "roberta"), ("value",)),
        "t5": ("v",),
        "deberta-v2": ("value_proj",),
    }
)
# By what a method adapts: the modules, and what they are called where a recipe has to name them.
_TABLES: Mapping[str, tuple[Mapping[str, _Names], str]] = MappingProxyType(
    {"norms": (NORMS, "norms"), "values": (VALUES, "value projections")}
)


def with_default_modules(
    method: Method, filled: Mapping[str, Frozen], model_type: str | None, *, where: str
) -> Mapping[str, Frozen]:
    """Return checked hyperparameters with the modules that a recipe left to the base's family.

    Raises:
        IncompatibleError: nothing is known of the base's family (the hint says what to name), or the method does not
            work on it.
    """
    if method.model_types and model_type not in method.model_types:
        raise IncompatibleError(
            f"{method.name} works on {', '.join(method.model_types)} alone, not on {model_type or 'an unnamed type'}",
            where=where,
        )
    if method.targets in ("", "embedding") or (filled["target_modules"] is not None and method.targets != "scaled"):
        return filled
    if method.targets == "linear":
        return MappingProxyType({**filled, "target_modules": default_targets(model_type)})
    if method.targets in _TABLES:
        table, what = _TABLES[method.targets]
        found = table.get(model_type or "")
        if found is None:
            name = f"target_modules: the base's {what}, by the last parts of their names"
            raise _unknown(method, model_type, name, where)
        return MappingProxyType({**filled, "target_modules": found})
    return _with_scaled(method, filled, model_type, where)


def _with_scaled(
    method: Method, filled: Mapping[str, Frozen], model_type: str | None, where: str
) -> Mapping[str, Frozen]:
    """Fill in IA3's two lists; PEFT stops in the middle where the first is given and the second is not."""
    targets, forward = filled["target_modules"], filled["feedforward_modules"]
    if targets is not None and forward is not None:
        return filled
    known = IA3_MODULES.get(model_type or "")
    if known is None:
        what = "feedforward_modules: those of target_modules in the MLP, or [] for none"
        if targets is None:
            what = "target_modules and feedforward_modules, which are those of them in the MLP"
        raise _unknown(method, model_type, what, where)
    if targets is None:
        return MappingProxyType({**filled, "target_modules": known[0], "feedforward_modules": known[1]})
    if not isinstance(targets, tuple):
        raise _unknown(method, model_type, "feedforward_modules too, as target_modules is one expression", where)
    return MappingProxyType({**filled, "feedforward_modules": tuple(name for name in targets if name in known[1])})


def _unknown(method: Method, model_type: str | None, name: str, where: str) -> IncompatibleError:
    return IncompatibleError(
        f"which modules {method.name} adapts in a {model_type or 'model without a model_type'} is not known here",
        where=where,
        hint=f"name {name}",
    )
