"""What a GGUF file of architecture `llama` says about the Hugging Face checkpoint it came from.

Source: llama.cpp, `LlamaModel` in convert_hf_to_gguf.py, whose steps are inverted here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import Keys
from numpy.typing import NDArray

from adapterhub.engine.gguf_file import GgufFile
from adapterhub.errors import IncompatibleError, InvalidFileError

# Keys that carry no more than the tensors' shapes do, or nothing that changes computation.
_UNDERSTOOD = {
    Keys.LLM.VOCAB_SIZE,
    Keys.LLM.CONTEXT_LENGTH,
    Keys.LLM.EMBEDDING_LENGTH,
    Keys.LLM.BLOCK_COUNT,
    Keys.LLM.FEED_FORWARD_LENGTH,
    Keys.Attention.HEAD_COUNT,
    Keys.Attention.HEAD_COUNT_KV,
    Keys.Attention.KEY_LENGTH,
    Keys.Attention.VALUE_LENGTH,
    Keys.Attention.LAYERNORM_RMS_EPS,
    Keys.Rope.DIMENSION_COUNT,
    Keys.Rope.FREQ_BASE,
    Keys.Rope.SCALING_TYPE,
    Keys.Rope.SCALING_FACTOR,
}
_ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """One tensor to write: its names, its shape (out, in) or (out,), and the heads whose rows are interleaved."""

    source: str
    name: str
    shape: tuple[int, ...]
    permuted_heads: int | None = None

    @property
    def elements(self) -> int:
        """The number of parameters."""
        return math.prod(self.shape)

    def row_order(self) -> NDArray[np.int64] | None:
        """Return, for each row of the result, its row in the GGUF file; None where the order is the same.

        llama.cpp rotates neighbouring rows (x0, x1), transformers the two halves of a head (x0, x_{d/2}), so its
        converter interleaves the halves of each head of q and k.
        """
        if self.permuted_heads is None:
            return None
        rows = np.arange(self.shape[0], dtype=np.int64)
        return rows.reshape(self.permuted_heads, -1, 2).swapaxes(1, 2).reshape(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaPlan:
    """The configuration as `config.json` holds it (token ids and dtype apart), and every tensor to write."""

    config: dict[str, Any]
    tensors: tuple[TensorPlan, ...]
    notes: tuple[str, ...]


def plan_llama(file: GgufFile) -> LlamaPlan:
    """Read the configuration and the tensor table of a GGUF file of architecture `llama`.

    Raises:
        IncompatibleError: a variant that `LlamaForCausalLM` can't express, or a RoPE scaling unknown here.
        InvalidFileError: a key or tensor is missing or contradicts another.
    """
    _refuse_unknown_keys(file)
    config, notes = _config(file)
    tensors = _tensor_plans(file, config)
    scaling, scaling_notes = _rope_scaling(file, config)
    config["rope_scaling"] = scaling
    _check_tensors(file, tensors)
    return LlamaPlan(config=config, tensors=tensors, notes=(*notes, *scaling_notes))


def _refuse_unknown_keys(file: GgufFile) -> None:
    understood = {key.format(arch="llama") for key in _UNDERSTOOD}
    unknown = [key for key in file.keys if key.startswith("llama.") and key not in understood]
    # A zero says that the feature is absent: converters write expert_count 0 for dense models.
    unknown = [key for key in unknown if file.reader.fields[key].contents() not in (0, 0.0, False)]
    if unknown:
        raise IncompatibleError(
            f"the GGUF metadata has keys that can't be expressed in LlamaForCausalLM: {', '.join(unknown)}",
            where=str(file.path),
            hint="use the model's Hugging Face folder instead of its GGUF file",
        )


def _config(file: GgufFile) -> tuple[dict[str, Any], list[str]]:
    def size(key: str, default: int | None = None) -> int:
        key = key.format(arch="llama")
        value = file.get(key, int) if default is not None else file.require(key, int)
        value = default if value is None else value
        if value is None or value < 1:
            raise InvalidFileError(f"{key} is {value}, not a positive number", where=str(file.path))
        return value

    hidden, heads = size(Keys.LLM.EMBEDDING_LENGTH), size(Keys.Attention.HEAD_COUNT)
    head_dim = size(Keys.Attention.KEY_LENGTH, hidden // heads or 1)
    key_value_heads = size(Keys.Attention.HEAD_COUNT_KV, heads)
    rotated = size(Keys.Rope.DIMENSION_COUNT, head_dim)
    if rotated != head_dim or size(Keys.Attention.VALUE_LENGTH, head_dim) != head_dim or head_dim % 2:
        raise IncompatibleError(
            f"keys of {head_dim}, of which {rotated} are rotated: LlamaForCausalLM needs one even head size",
            where=str(file.path),
        )
    if heads % key_value_heads:
        raise InvalidFileError(
            f"{heads} attention heads can't share {key_value_heads} key/value heads", where=str(file.path)
        )
    tensors = file.tensors
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise InvalidFileError("the tensor token_embd.weight is missing", where=str(file.path))
    theta = file.get(Keys.Rope.FREQ_BASE.format(arch="llama"), float)
    tied = "output.weight" not in tensors
    notes = ["the output projection is tied to the embedding (output.weight is absent)"] if tied else []
    if theta is None:
        notes.append("rope_theta is not recorded; assumed 10000")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "attention_dropout": 0.0,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": size(Keys.LLM.FEED_FORWARD_LENGTH),
        "max_position_embeddings": size(Keys.LLM.CONTEXT_LENGTH),
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "num_attention_heads": heads,
        "num_hidden_layers": size(Keys.LLM.BLOCK_COUNT),
        "num_key_value_heads": key_value_heads,
        "rms_norm_eps": file.require(Keys.Attention.LAYERNORM_RMS_EPS.format(arch="llama"), float),
        "rope_theta": 10000.0 if theta is None else theta,
        "tie_word_embeddings": tied,
        "vocab_size": int(embedding.shape[-1]),
    }, notes


def _tensor_plans(file: GgufFile, config: dict[str, Any]) -> tuple[TensorPlan, ...]:
    layers = config["num_hidden_layers"]
    if layers > len(file.tensors):
        raise InvalidFileError(f"{layers} layers, but only {len(file.tensors)} tensors", where=str(file.path))
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, key_value_heads = config["num_attention_heads"], config["num_key_value_heads"]
    queries, keys = heads * config["head_dim"], key_value_heads * config["head_dim"]
    # GGUF name, Hugging Face name, (out, in), heads to put back in order, whether the checkpoint has a bias there
    linear = (
        ("attn_q", "self_attn.q_proj", (queries, hidden), heads, config["attention_bias"]),
        ("attn_k", "self_attn.k_proj", (keys, hidden), key_value_heads, config["attention_bias"]),
        ("attn_v", "self_attn.v_proj", (keys, hidden), None, config["attention_bias"]),
        ("attn_output", "self_attn.o_proj", (hidden, queries), None, config["attention_bias"]),
        ("ffn_gate", "mlp.gate_proj", (inner, hidden), None, config["mlp_bias"]),
        ("ffn_up", "mlp.up_proj", (inner, hidden), None, config["mlp_bias"]),
        ("ffn_down", "mlp.down_proj", (hidden, inner), None, config["mlp_bias"]),
    )
    norms = (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"))
    plans = [TensorPlan(source="token_embd.weight", name="model.embed_tokens.weight", shape=(vocabulary, hidden))]
    for layer in range(layers):
        old, new = f"blk.{layer}", f"model.layers.{layer}"
        for source, name, shape, permuted, has_bias in linear:
            for part in ("weight", "bias") if has_bias else ("weight",):
                plans.append(
                    TensorPlan(
                        source=f"{old}.{source}.{part}",
                        name=f"{new}.{name}.{part}",
                        shape=shape if part == "weight" else shape[:1],
                        permuted_heads=permuted,
                    )
                )
        for source, name in norms:
            plans.append(TensorPlan(source=f"{old}.{source}.weight", name=f"{new}.{name}.weight", shape=(hidden,)))
    plans.append(TensorPlan(source="output_norm.weight", name="model.norm.weight", shape=(hidden,)))
    if not config["tie_word_embeddings"]:
        plans.append(TensorPlan(source="output.weight", name="lm_head.weight", shape=(vocabulary, hidden)))
    return tuple(plans)


def _check_tensors(file: GgufFile, plans: tuple[TensorPlan, ...]) -> None:
    tensors = file.tensors
    faults = []
    for plan in plans:
        tensor = tensors.get(plan.source)
        if tensor is None:
            faults.append(f"{plan.source} is missing")
        elif (found := tuple(reversed(tensor.shape.tolist()))) != plan.shape:
            faults.append(f"{plan.source} has the shape {found}, the metadata says {plan.shape}")
    if faults:
        raise InvalidFileError(
            f"{len(faults)} tensors disagree with the metadata", where=str(file.path), details=tuple(faults)
        )
    unknown = sorted(tensors.keys() - {plan.source for plan in plans} - {_ROPE_FREQS})
    if unknown:
        raise IncompatibleError(
            f"{len(unknown)} tensors have no place in LlamaForCausalLM",
            where=str(file.path),
            hint="use the model's Hugging Face folder instead of its GGUF file",
            details=tuple(unknown),
        )


def _rope_scaling(file: GgufFile, config: dict[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    kind = file.get(Keys.Rope.SCALING_TYPE.format(arch="llama"), str) or "none"
    factor = file.get(Keys.Rope.SCALING_FACTOR.format(arch="llama"), float)
    stored = _ROPE_FREQS in file.tensors
    if kind == "none" and not stored:
        return None, []
    if kind == "linear" and factor is not None and not stored:
        return {"rope_type": "linear", "factor": factor}, []
    if kind == "none" and stored:
        return _llama3_scaling(file, config)
    raise IncompatibleError(
        f"RoPE scaling {kind!r} with factor {factor} can't be converted",
        where=str(file.path),
        hint="use the model's Hugging Face folder instead of its GGUF file",
    )


def _llama3_scaling(file: GgufFile, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Recover the Llama 3 parameters behind `rope_freqs.weight`, whose entries divide each frequency.

    Only the published constants (8192 positions, 1 and 4) are tried; what they don't reproduce is refused.
    Source: `_compute_llama3_parameters` in transformers' modeling_rope_utils.py
    """
    found = np.concatenate(list(file.rows(_ROPE_FREQS)), axis=None)
    factor, low, high, positions = float(str(np.float32(found.max(initial=1.0)))), 1.0, 4.0, 8192
    exponents = np.arange(0, config["head_dim"], 2) / config["head_dim"]
    turns = positions / (2 * math.pi * config["rope_theta"] ** exponents)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1.0 - kept) / factor + kept)
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4):
        raise IncompatibleError(
            "the RoPE factors stored in rope_freqs.weight are not those of Llama 3 scaling",
            where=str(file.path),
            hint="use the model's Hugging Face folder instead of its GGUF file",
        )
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": positions,
    }
    return scaling, [f"Llama 3 RoPE scaling restored from rope_freqs.weight (factor {factor:g})"]
