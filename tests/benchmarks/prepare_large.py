"""Makes a checkpoint of 2.2 GB with TinyLlama-1.1B's shapes and random weights, and two adapters of rank 16 over it.

A process of its own, because what it holds would count in what it starts: `python -m tests.benchmarks.prepare_large
FOLDER`. Nothing is fetched; memory stays at one tensor. Every tensor is a piece of one block of normal numbers, so that
making them takes seconds.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from adapterhub.ops.base import add_base
from adapterhub.settings import read_settings
from adapterhub.spec.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.weights import SafetensorsWriter, TensorSpec, aligned_order
from adapterhub.weights.arrays import to_bf16_bytes
from tests.benchmarks.bench import LARGE_ADAPTERS, LARGE_BASE, RANK, TARGETS
from tests.factory import adapter_config, write_json, write_tensors, write_tokenizer

LAYERS, HIDDEN, INNER, KEYS, VOCABULARY = 22, 2048, 5632, 256, 32000
SHARDS = 5
DEVIATION = 0.02


def main() -> None:
    """Fill a folder with the base and the adapters, and the base store with the base; print the base's folder."""
    folder = Path(sys.argv[1])
    base = folder / "large-base"
    base.mkdir(parents=True)
    shapes = dict(_shapes())
    write_json(base / "config.json", _config())
    write_tokenizer(base)
    _write_weights(base, shapes)
    for seed, name in enumerate(LARGE_ADAPTERS):
        _write_adapter(folder / name, shapes, seed)
    record = add_base(LARGE_BASE, str(base), settings=read_settings()).record
    print(record.path)


def _config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (HIDDEN,)
        yield f"{at}.post_attention_layernorm.weight", (HIDDEN,)
        for name, rows in (("q_proj", HIDDEN), ("k_proj", KEYS), ("v_proj", KEYS), ("o_proj", HIDDEN)):
            yield f"{at}.self_attn.{name}.weight", (rows, HIDDEN)
        yield f"{at}.mlp.gate_proj.weight", (INNER, HIDDEN)
        yield f"{at}.mlp.up_proj.weight", (INNER, HIDDEN)
        yield f"{at}.mlp.down_proj.weight", (HIDDEN, INNER)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def _write_weights(base: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write bf16 shards of about the same size, and their index."""
    block = to_bf16_bytes(np.random.default_rng(0).normal(0, DEVIATION, 1 << 23).astype(np.float32))
    ones = to_bf16_bytes(np.ones(HIDDEN, np.float32))
    limit = sum(map(math.prod, shapes.values())) / SHARDS
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if size > limit and len(groups) < SHARDS:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += math.prod(shape)
    weight_map = {}
    for index, names in enumerate(groups, 1):
        file = f"model-{index:05d}-of-{len(groups):05d}.safetensors"
        specs = aligned_order(TensorSpec(name=name, dtype="BF16", shape=shapes[name]) for name in names)
        with SafetensorsWriter(base / file, specs, metadata={"format": "pt"}) as writer:
            for number, spec in enumerate(specs):
                wanted = 2 * math.prod(spec.shape)
                writer.write(spec.name, ones if len(spec.shape) == 1 else _pieces(block, wanted, 2 * 7919 * number))
        weight_map |= dict.fromkeys(names, file)
    index_data = {"metadata": {}, "weight_map": weight_map}
    (base / "model.safetensors.index.json").write_text(json.dumps(index_data), "utf-8")


def _pieces(block: bytes, wanted: int, start: int) -> Iterator[memoryview]:
    view, start = memoryview(block), start % len(block)
    while wanted:
        piece = view[start : start + wanted]
        yield piece
        wanted, start = wanted - len(piece), 0


def _write_adapter(folder: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in TARGETS:
            at = f"base_model.model.{module}"
            tensors[f"{at}.lora_A.weight"] = rng.normal(0, 1 / math.sqrt(shape[1]), (RANK, shape[1]))
            tensors[f"{at}.lora_B.weight"] = rng.normal(0, DEVIATION, (shape[0], RANK))
    folder.mkdir(parents=True)
    write_tensors(folder / WEIGHTS_FILE, tensors)
    settings = adapter_config(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS), base_model_name_or_path=LARGE_BASE)
    write_json(folder / CONFIG_FILE, settings)


if __name__ == "__main__":
    main()
