"""Small base models and adapters made of numpy and JSON, without torch: real files that transformers and PEFT load.

    base = tiny_llama(tmp_path / "base")
    adapter = tiny_lora(tmp_path / "adapter", base, r=4)

Safetensors files are written and read here by hand, so that our own reader and writer are held against another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from adapterhub.package import hyperparameters_of
from adapterhub.spec._decode import freeze
from adapterhub.spec.base_model import BaseFingerprints, BaseModelRef
from adapterhub.spec.digest import FileEntry, digest_file
from adapterhub.spec.manifest import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, Manifest

if TYPE_CHECKING:
    import numpy as np

PAD, IM_START, IM_END = "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (PAD, IM_START, IM_END)
TOKENS = 256 + len(SPECIAL)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The numbers the tests may lean on; everything else about a tiny model is free.
VOCAB = 264
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def tiny_llama(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = VOCAB,
    dtype: str = "float32",
    tie: bool = False,
    shards: int = 1,
) -> Path:
    """Write a Llama of random weights with a byte-level tokenizer and a chat template; return its folder.

    One token a byte, then `<|pad|>`, `<|im_start|>`, `<|im_end|>` (259 tokens; `vocab` embedding rows). With `tie`,
    lm_head is the embedding and is not stored. With `shards` above 1 the weights are cut into as many files.
    """
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": vocab,
        "tie_word_embeddings": tie,
        "bos_token_id": 257,
        "eos_token_id": 258,
        "pad_token_id": 256,
        "dtype": dtype,
    }
    inner, key_value = 2 * hidden, hidden // heads * kv_heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.self_attn.q_proj.weight": (hidden, hidden),
            f"{at}.self_attn.k_proj.weight": (key_value, hidden),
            f"{at}.self_attn.v_proj.weight": (key_value, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, hidden),
            f"{at}.post_attention_layernorm.weight": (hidden,),
            f"{at}.mlp.gate_proj.weight": (inner, hidden),
            f"{at}.mlp.up_proj.weight": (inner, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, inner),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not tie:
        shapes["lm_head.weight"] = (vocab, hidden)
    return _write_base(folder, config, shapes, seed=seed, dtype=dtype, shards=shards)


def tiny_gpt2(folder: Path, *, seed: int = 0, layers: int = 2, hidden: int = 32, dtype: str = "float32") -> Path:
    """Write a random GPT-2 as its checkpoints are: no `transformer.` prefix, weights (in, out), tied head."""
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": hidden,
        "n_layer": layers,
        "n_head": 4,
        "n_positions": 512,
        "n_ctx": 512,
        "vocab_size": VOCAB,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": 257,
        "eos_token_id": 258,
        "dtype": dtype,
    }
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (VOCAB, hidden), "wpe.weight": (512, hidden)}
    for layer in range(layers):
        at = f"h.{layer}"
        for name, size in (("attn.c_attn", (hidden, 3 * hidden)), ("attn.c_proj", (hidden, hidden))):
            shapes |= {f"{at}.{name}.weight": size, f"{at}.{name}.bias": size[1:]}
        for name, size in (("mlp.c_fc", (hidden, 4 * hidden)), ("mlp.c_proj", (4 * hidden, hidden))):
            shapes |= {f"{at}.{name}.weight": size, f"{at}.{name}.bias": size[1:]}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{at}.{name}.weight": (hidden,), f"{at}.{name}.bias": (hidden,)}
    shapes |= {"ln_f.weight": (hidden,), "ln_f.bias": (hidden,)}
    return _write_base(folder, config, shapes, seed=seed, dtype=dtype, shards=1)


def tiny_lora(
    folder: Path,
    base: Path,
    *,
    r: int = 4,
    lora_alpha: float = 8,
    target_modules: Sequence[str] = ("q_proj", "v_proj"),
    seed: int = 0,
    use_rslora: bool = False,
    use_dora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    task_type: str | None = "CAUSAL_LM",
    base_id: str = "tiny-llama",
    prefix: str = "",
    dtype: str = "float32",
    name: str = "tiny",
    version: str = "1.0.0",
    manifest: bool = True,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a LoRA (B not zero) over every module of `base` whose name ends in one of `target_modules`.

    prefix: put before the module names of the checkpoint (`transformer.` for GPT-2). config: keys of
    adapter_config.json to set besides. manifest: also write adapter_manifest.json, with the base's fingerprints.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    ranks, tensors = dict(rank_pattern or {}), {}
    model = json.loads((base / "config.json").read_text())
    for stored, weight in read_tensors(base).items():
        module = prefix + stored.removesuffix(".weight")
        if not stored.endswith(".weight") or weight.ndim != 2 or not _ends(module, target_modules):
            continue
        # GPT-2's Conv1D stores (in, out), a Linear (out, in).
        outputs, inputs = weight.shape[::-1] if model["model_type"] == "gpt2" else weight.shape
        rank = next((value for key, value in ranks.items() if _ends(module, [key])), r)
        at = f"base_model.model.{module}"
        tensors[f"{at}.lora_A.weight"] = rng.normal(0, 1 / math.sqrt(inputs), (rank, inputs))
        tensors[f"{at}.lora_B.weight"] = rng.normal(0, 0.02, (outputs, rank))
        if use_dora:
            norms = np.linalg.norm(weight, axis=0 if model["model_type"] == "gpt2" else 1)
            tensors[f"{at}.lora_magnitude_vector"] = norms * rng.uniform(0.9, 1.1, norms.shape)
    assert tensors, "no module of the base has such a name"
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS_FILE, tensors, dtype=dtype)
    settings = adapter_config(
        **{
            "r": r,
            "lora_alpha": lora_alpha,
            "target_modules": sorted(target_modules),
            "use_rslora": use_rslora,
            "use_dora": use_dora,
            "rank_pattern": ranks,
            "alpha_pattern": dict(alpha_pattern or {}),
            "task_type": task_type,
            "base_model_name_or_path": base_id,
            "fan_in_fan_out": model["model_type"] == "gpt2",
        }
        | dict(config or {})
    )
    write_json(folder / CONFIG_FILE, settings)
    if manifest:
        write_tiny_manifest(folder, base, base_id=base_id, name=name, version=version)
    return folder


def adapter_config(**changes: Any) -> dict[str, Any]:
    """Return an adapter_config.json for LoRA as PEFT 0.21 writes it, with some keys changed."""
    return {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "kasa_config": None,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "lora_ga_config": None,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "monteclora_config": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": 8,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q_proj", "v_proj"],
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        "velora_config": None,
    } | changes


def write_tiny_manifest(
    folder: Path, base: Path | None, *, base_id: str = "tiny-llama", name: str = "tiny", version: str = "1.0.0"
) -> Manifest:
    """Write adapter_manifest.json over what is in the folder now, with the base's fingerprints where one is given."""
    config = freeze(json.loads((folder / CONFIG_FILE).read_text()))
    assert isinstance(config, Mapping)
    model = json.loads((base / "config.json").read_text()) if base else {}
    value = Manifest(
        name=name,
        version=Version(version),
        base_model=BaseModelRef(
            id=base_id,
            architecture=model.get("architectures", [None])[0],
            model_type=model.get("model_type"),
            fingerprints=base_fingerprints(base) if base else BaseFingerprints(),
        ),
        method="dora" if config.get("use_dora") else "lora",
        task=config.get("task_type"),
        hyperparameters=hyperparameters_of(config),
        files=tuple(_entry(folder, path) for path in (CONFIG_FILE, WEIGHTS_FILE)),
    )
    (folder / MANIFEST_FILE).write_bytes(value.canonical_bytes())
    return value


def base_fingerprints(base: Path) -> BaseFingerprints:
    """Return the fingerprints of a base model's folder."""
    from adapterhub.fingerprints import fingerprint_base

    return fingerprint_base(base)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read a safetensors file, or every one of a folder, as float32."""
    import numpy as np

    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    found: dict[str, np.ndarray] = {}
    for file in files:
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            raw = data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
            if entry["dtype"] == "BF16":
                values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2", "I64": "<i8"}[entry["dtype"]])
            found[name] = values.astype(np.float32).reshape(entry["shape"])
    return found


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], *, dtype: str = "float32") -> None:
    """Write a safetensors file in one dtype (https://huggingface.co/docs/safetensors/index#format)."""
    import numpy as np

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name], dtype=np.float32)
        data = _bf16(array) if dtype == "bfloat16" else array.astype({"float32": "<f4", "float16": "<f2"}[dtype])
        raw = data.tobytes()
        header[name] = {
            "dtype": _DTYPES[dtype],
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def edit_tensors(path: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    """Rewrite a float32 safetensors file with other tensors."""
    write_tensors(path, change(read_tensors(path)))


def write_json(path: Path, data: object) -> None:
    """Write JSON, as PEFT does: two spaces, keys sorted."""
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys at the top of a JSON file."""
    write_json(path, json.loads(path.read_text()) | changes)


def _write_base(
    folder: Path, config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], *, seed: int, dtype: str, shards: int
) -> Path:
    import numpy as np

    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        norm = len(shape) == 1 and name.endswith("weight")
        tensors[name] = np.ones(shape) if norm else rng.normal(0, 0.05 if len(shape) > 1 else 0.0, shape)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"eos_token_id": 258, "pad_token_id": 256, "bos_token_id": 257})
    _write_shards(folder, tensors, dtype=dtype, shards=shards)
    write_tokenizer(folder)
    return folder


def _write_shards(folder: Path, tensors: Mapping[str, np.ndarray], *, dtype: str, shards: int) -> None:
    if shards == 1:
        write_tensors(folder / "model.safetensors", tensors, dtype=dtype)
        return
    names, weight_map = list(tensors), {}
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        part = names[index * len(names) // shards : (index + 1) * len(names) // shards]
        write_tensors(folder / file, {name: tensors[name] for name in part}, dtype=dtype)
        weight_map |= dict.fromkeys(part, file)
    total = sum(value.size for value in tensors.values()) * (4 if dtype == "float32" else 2)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_tokenizer(folder: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """Write a byte-level BPE tokenizer without merges: one token a byte, and three special ones."""
    vocab = {character: index for index, character in enumerate(_byte_characters())}
    added = [
        {
            "id": 256 + index,
            "content": token,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for index, token in enumerate(SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": vocab | {token: 256 + index for index, token in enumerate(SPECIAL)},
                "merges": [],
            },
        },
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": IM_START,
            "eos_token": IM_END,
            "pad_token": PAD,
            "model_max_length": 512,
            "clean_up_tokenization_spaces": False,
        },
    )
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in for every byte, in the order of the bytes (openai/gpt-2, encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters, spare = {}, 256
    for byte in range(256):
        characters[byte] = byte if byte in printable else spare
        spare += byte not in printable
    return [chr(characters[byte]) for byte in range(256)]


def _ends(module: str, names: Sequence[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _entry(folder: Path, path: str) -> FileEntry:
    digest, size = digest_file(folder / path)
    return FileEntry(path=path, size=size, digest=digest)


def _bf16(array: np.ndarray) -> np.ndarray:
    """Round to nearest, ties to even; the tests write no NaN."""
    import numpy as np

    bits = array.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
