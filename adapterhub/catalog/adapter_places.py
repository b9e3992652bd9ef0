"""Where bottleneck adapters go: by model type, what a layer's sublayers read, and where their output leaves them.

Names are those of transformers 5, below a layer. A sublayer's output is taken before the residual is added to it, and
after a norm that the architecture puts there (Gemma 2, OLMo 2). Every family of catalog/families has a row but those
without attention.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from adapterhub.errors import IncompatibleError

# What comes before the first layer, by the parts of its path.
_BEFORE = re.compile(r"(^|\.)(embed\w*|\w*embeddings?\w*|\w+_embedding|wte|wpe|shared|project_in)(\.|$)")
# Names of config.json for the width of hidden states.
_WIDTHS = ("hidden_size", "n_embd", "n_embed", "d_model", "dim")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sublayer:
    """One sublayer: the module that reads its input, and the module whose output is the sublayer's."""

    reads: str
    writes: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """A list of layers, by the end of its path, and their sublayers.

    cross: a decoder's attention to an encoder. last_norm: the norm that ends a layer, of its residual sum; None where
    norms come first, so that a layer's output is that sum. norm_first: a setting of config.json that has to be true
    for it.
    """

    path: str
    attention: Sublayer
    feed_forward: Sublayer
    cross: Sublayer | None = None
    last_norm: str | None = None
    norm_first: str | None = None

    def sublayer(self, slot: str) -> Sublayer | None:
        """Return the sublayer that a bottleneck belongs to."""
        known = {"mh_adapter": self.attention, "output_adapter": self.feed_forward, "cross_adapter": self.cross}
        return known[slot]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one bottleneck goes: the path of its layer, what it is called there, its sublayer."""

    layer: str
    slot: str
    sublayer: Sublayer
    layers: Layers

    @property
    def path(self) -> str:
        """The bottleneck's own path."""
        return f"{self.layer}.{self.slot}"


def _decoder(
    path: str, attention: str, output: str, mlp_output: str | None = None, *, mlp: str = "mlp"
) -> tuple[Layers, ...]:
    """Return layers whose sublayers are a module each; mlp_output: where it is not the MLP's own."""
    return (
        Layers(
            path=path,
            attention=Sublayer(reads=attention, writes=output),
            feed_forward=Sublayer(reads=mlp, writes=mlp_output or mlp),
        ),
    )


_LLAMA = _decoder("layers", "self_attn", "self_attn.o_proj")
_SANDWICH = _decoder("layers", "self_attn", "post_attention_layernorm", "post_feedforward_layernorm")
_FUSED_OUTPUT = "mlp.dense_4h_to_h"
_BERT = (
    Layers(
        path="encoder.layer",
        attention=Sublayer(reads="attention", writes="attention.output.dense"),
        feed_forward=Sublayer(reads="intermediate", writes="output.dense"),
        last_norm="output.LayerNorm",
    ),
)


def _t5(stack: str, feed_forward: int) -> Layers:
    inner = f"layer.{feed_forward}.DenseReluDense"
    cross = Sublayer(reads="layer.1.EncDecAttention", writes="layer.1.EncDecAttention.o")
    return Layers(
        path=f"{stack}.block",
        attention=Sublayer(reads="layer.0.SelfAttention", writes="layer.0.SelfAttention.o"),
        feed_forward=Sublayer(reads=inner, writes=inner),
        cross=cross if stack == "decoder" else None,
    )


def _fairseq(
    *paths: str, cross: bool = True, last_norm: str | None = None, norm_first: str | None = None
) -> tuple[Layers, ...]:
    """Return the layers of BART and its kin: feed-forward layers lie beside attention."""
    encoder_attention = Sublayer(reads="encoder_attn", writes="encoder_attn.out_proj")
    return tuple(
        Layers(
            path=path,
            attention=Sublayer(reads="self_attn", writes="self_attn.out_proj"),
            feed_forward=Sublayer(reads="fc1", writes="fc2"),
            cross=encoder_attention if cross and path.startswith("decoder") else None,
            last_norm=last_norm,
            norm_first=norm_first,
        )
        for path in paths
    )


PLACES: Mapping[str, tuple[Layers, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("llama", "smollm3", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "gemma"), _LLAMA),
        **dict.fromkeys(("granite", "olmo", "stablelm", "cohere", "cohere2", "hunyuan_v1_dense", "nemotron"), _LLAMA),
        **dict.fromkeys(("arcee", "glm", "starcoder2", "phi3"), _LLAMA),
        # Mixtures of experts: a bottleneck beside all of them.
        **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "glm4_moe", "deepseek_v3", "gpt_oss"), _LLAMA),
        "granitemoe": _decoder("layers", "self_attn", "self_attn.o_proj", mlp="block_sparse_moe"),
        "llama4_text": _decoder("layers", "self_attn", "self_attn.o_proj", mlp="feed_forward"),
        **dict.fromkeys(("gemma2", "gemma3_text", "olmo2", "olmo3", "exaone4"), _SANDWICH),
        "glm4": _decoder("layers", "self_attn", "post_self_attn_layernorm", "post_mlp_layernorm"),
        "phi": _decoder("layers", "self_attn", "self_attn.dense"),
        **dict.fromkeys(("gpt2", "gpt_bigcode"), _decoder("h", "attn", "attn.c_proj")),
        **dict.fromkeys(("gptj", "codegen"), _decoder("h", "attn", "attn.out_proj")),
        "gpt_neo": _decoder("h", "attn", "attn.attention.out_proj"),
        "gpt_neox": _decoder("layers", "attention", "attention.dense"),
        # These add the residual inside of a sublayer.
        **dict.fromkeys(("bloom", "falcon"), _decoder("h", "self_attention", "self_attention.dense", _FUSED_OUTPUT)),
        "mpt": _decoder("blocks", "attn", "attn.out_proj", "ffn.down_proj", mlp="ffn"),
        "opt": _fairseq("decoder.layers", cross=False, norm_first="do_layer_norm_before"),
        "xglm": _fairseq("layers", cross=False),
        **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra", "deberta", "deberta-v2"), _BERT),
        "mpnet": (replace(_BERT[0], attention=Sublayer(reads="attention", writes="attention.attn.o")),),
        "distilbert": (
            Layers(
                path="transformer.layer",
                attention=Sublayer(reads="attention", writes="attention.out_lin"),
                feed_forward=Sublayer(reads="ffn", writes="ffn.lin2"),
                last_norm="output_layer_norm",
            ),
        ),
        # One layer is run many times, and so is its adapter.
        "albert": (
            Layers(
                path="albert_layers",
                attention=Sublayer(reads="attention", writes="attention.dense"),
                feed_forward=Sublayer(reads="ffn", writes="ffn_output"),
                last_norm="full_layer_layer_norm",
            ),
        ),
        "modernbert": _decoder("layers", "attn", "attn.Wo"),
        **dict.fromkeys(("t5", "mt5", "umt5"), (_t5("encoder", 1), _t5("decoder", 2))),
        **dict.fromkeys(
            ("bart", "marian", "blenderbot-small"),
            _fairseq("encoder.layers", "decoder.layers", last_norm="final_layer_norm"),
        ),
        **dict.fromkeys(("mbart", "pegasus", "m2m_100", "blenderbot"), _fairseq("encoder.layers", "decoder.layers")),
    }
)


def layers_of(model_type: str | None) -> tuple[Layers, ...]:
    """Return the layers of a model type.

    Raises:
        IncompatibleError: it has no row.
    """
    known = PLACES.get(model_type or "")
    if known is None:
        raise IncompatibleError(
            f"where the layers of a {model_type or 'model without a model_type'} are is not known here",
            hint=f"known: {', '.join(PLACES)}; `method: lora` with target_modules: all-linear takes any",
        )
    return known


def layer_paths(layers: Layers, names: Iterable[str]) -> tuple[str, ...]:
    """Return the paths of a list's layers among the names of modules or parameters, in their order in the model."""
    pattern = re.compile(rf"((?:.*\.)?{re.escape(layers.path)}\.(\d+))(?:\.|$)")
    found = {match[1]: int(match[2]) for name in names if (match := pattern.match(name))}
    return tuple(sorted(found, key=lambda path: (path.rpartition(".")[0], found[path])))


def places(
    model_type: str | None, names: Iterable[str], slots: tuple[str, ...], leave_out: tuple[int, ...] = ()
) -> tuple[Place, ...]:
    """Return where bottlenecks go in a model, from the names of its modules or parameters.

    leave_out: layers that get none, an encoder's counted before its decoder's.

    Raises:
        IncompatibleError: the model type has no row, no layer of it is there, or an index is beyond the last.
    """
    listed = tuple(names)
    numbered = [(layers, path) for layers in layers_of(model_type) for path in layer_paths(layers, listed)]
    if not numbered:
        raise IncompatibleError(f"none of the layers of a {model_type} are in the base model")
    beyond = [index for index in leave_out if index >= len(numbered)]
    if beyond:
        raise IncompatibleError(f"leave_out: the base model has {len(numbered)} layers, none is {beyond[0]}")
    found = tuple(
        Place(layer=path, slot=slot, sublayer=sublayer, layers=layers)
        for index, (layers, path) in enumerate(numbered)
        if index not in leave_out
        for slot in slots
        if (sublayer := layers.sublayer(slot)) is not None
    )
    if not found:
        raise IncompatibleError(
            f"no layer of the base model has a place for {', '.join(slots)}"
            if len(leave_out) < len(numbered)
            else "leave_out names every layer"
        )
    return found


def top_parameters(model_type: str | None, names: Iterable[str], count: int) -> tuple[str, ...]:
    """Return the parameters of the last layers of every list of layers, and of what comes after: norms, poolers, heads.

    names: all parameters of the model, tied ones once, by the embedding's name.

    Raises:
        IncompatibleError: the model type has no row, or the model has fewer layers.
    """
    listed = tuple(names)
    kept: list[str] = []
    lower: list[str] = []
    for layers in layers_of(model_type):
        paths = layer_paths(layers, listed)
        if count > len(paths):
            raise IncompatibleError(
                f"the base model has {len(paths)} layers", where="hyperparameters.top_k_layers", hint="train fewer"
            )
        lower += paths[: len(paths) - count]
        kept += paths[len(paths) - count :]

    def is_in(name: str, paths: list[str]) -> bool:
        return any(name.startswith(f"{path}.") for path in paths)

    return tuple(name for name in listed if is_in(name, kept) or not (is_in(name, lower) or _BEFORE.search(name)))


def hidden_width(config: Mapping[str, object]) -> int | None:
    """Return the width of a model's hidden states from its config.json, None where it does not say."""
    values = (config.get(name) for name in _WIDTHS)
    return next((value for value in values if type(value) is int and value > 0), None)
