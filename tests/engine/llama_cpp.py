"""llama.cpp as an independent reference: a base as an F32 GGUF file, and its log-probabilities from a child process.

`xllamacpp` (PyPI) is not needed by anything else, so it may live in an environment of its own: XLLAMACPP_PYTHON names
that environment's interpreter. The script at the end of this file runs there, without adapterhub.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

PYTHON = os.environ.get("XLLAMACPP_PYTHON", sys.executable)


def available() -> bool:
    """Say whether the interpreter has xllamacpp."""
    script = "import importlib.util as u, sys; sys.exit(u.find_spec('xllamacpp') is None)"
    return subprocess.run([PYTHON, "-c", script], check=False, timeout=60).returncode == 0


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """The row order of q and k in GGUF, as `permute` of llama.cpp's convert_hf_to_gguf.py has it."""
    shape = (heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return weights.reshape(shape).swapaxes(1, 2).reshape(weights.shape)


def write_base(path: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], *, vocab: int) -> Path:
    """Write a Llama, Mistral, Qwen2 or Qwen3 as F32 GGUF; its tokens have no text, prompts are ids."""
    import gguf
    import numpy as np

    kind = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    architecture = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
    names = gguf.get_tensor_name_map(architecture[kind], config["num_hidden_layers"])
    heads, key_value = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_value)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([f"t{index}" for index in range(vocab)])
    writer.add_token_types([int(gguf.TokenType.NORMAL)] * vocab)
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(vocab - 2)
    writer.add_eos_token_id(vocab - 1)
    writer.add_add_bos_token(False)
    for name, value in tensors.items():
        renamed = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert renamed is not None, name
        values = np.asarray(value, dtype=np.float32)
        if kind == "llama" and name.endswith("q_proj.weight"):
            values = permuted(values, heads)
        elif kind == "llama" and name.endswith("k_proj.weight"):
            values = permuted(values, key_value)
        writer.add_tensor(renamed, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def log_probabilities(base: Path, prompts: Sequence[Sequence[int]], *loras: Path) -> list[dict[int, float]]:
    """Return, for each prompt of ids, llama.cpp's log-probability of every next token; LoRAs at scale 1."""
    asked = json.dumps({"base": str(base), "prompts": [list(ids) for ids in prompts], "loras": [str(p) for p in loras]})
    done = subprocess.run(
        [PYTHON, "-c", _SCRIPT], input=asked, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    return [{int(key): value for key, value in item.items()} for item in answer]


_SCRIPT = """
import json, sys
import xllamacpp as x
asked = json.load(sys.stdin)
p = x.CommonParams()
p.model.path, p.n_ctx, p.n_gpu_layers, p.warmup, p.n_parallel = asked["base"], 256, 0, False, 1
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
p.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
p.cache_type_k = p.cache_type_v = x.ggml_type.GGML_TYPE_F32
p.lora_adapters = [x.CommonAdapterLoraInfo(path, 1.0) for path in asked["loras"]]
server = x.Server(p)
found = []
for ids in asked["prompts"]:
    body = {"prompt": ids, "n_predict": 1, "n_probs": 10**6, "temperature": 0.0, "cache_prompt": False}
    answer = server.handle_completions(body)
    first = answer["choices"][0]["logprobs"]["content"][0]
    found.append({row["id"]: row["logprob"] for row in first["top_logprobs"]})
print(json.dumps(found))
"""
