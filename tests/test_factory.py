"""What the factory writes is what transformers and PEFT read."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from adapterhub.documents import read_manifest
from adapterhub.weights import open_checkpoint, read_header
from tests.factory import CHAT_TEMPLATE, read_tensors, tiny_gpt2, tiny_llama, tiny_lora


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    one, two, three = (tiny_llama(tmp_path / str(i), seed=seed) for i, seed in enumerate((1, 1, 2)))
    files = sorted(path.name for path in one.iterdir())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)
    assert (one / "model.safetensors").read_bytes() != (three / "model.safetensors").read_bytes()


def test_shards_hold_the_same_tensors(tmp_path):
    import numpy as np

    whole, cut = tiny_llama(tmp_path / "a"), tiny_llama(tmp_path / "b", shards=3)
    assert len(open_checkpoint(cut).files) == 3
    left, right = read_tensors(whole), read_tensors(cut)
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[name], right[name]) for name in left)


def test_our_own_reader_takes_every_dtype(tmp_path):
    for dtype, word in (("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")):
        base = tiny_llama(tmp_path / dtype, dtype=dtype)
        header = read_header(base / "model.safetensors")
        assert {info.dtype for info in header.tensors.values()} == {word}


def test_the_manifest_of_a_tiny_lora_is_valid(tmp_path):
    base = tiny_llama(tmp_path / "base")
    manifest = read_manifest(tiny_lora(tmp_path / "lora", base, name="legal", version="1.2.0"))
    assert (manifest.name, str(manifest.version), manifest.method) == ("legal", "1.2.0", "lora")
    assert manifest.base_model.fingerprints.weights is not None


def test_the_factory_imports_no_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.factory import tiny_llama, tiny_lora;"
        "f = Path(sys.argv[1]); tiny_lora(f / 'a', tiny_llama(f / 'b'));"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.engine
@pytest.mark.parametrize(("kind", "dora"), [("llama", False), ("llama", True), ("gpt2", False)])
def test_transformers_and_peft_load_them(tmp_path, kind, dora, recwarn):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if kind == "llama":
        base = tiny_llama(tmp_path / "base", shards=2)
        folder = tiny_lora(tmp_path / "lora", base, use_dora=dora, target_modules=("q_proj", "down_proj"))
    else:
        base = tiny_gpt2(tmp_path / "base")
        folder = tiny_lora(tmp_path / "lora", base, prefix="transformer.", target_modules=("c_attn", "mlp.c_proj"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    text = "¡Hola, señor! 😀 12  x\n"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode()) and tokenizer.decode(ids) == text
    assert tokenizer.chat_template == CHAT_TEMPLATE and tokenizer.eos_token_id == 258
    model, report = AutoModelForCausalLM.from_pretrained(base, output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"] and not report["mismatched_keys"]
    inputs = torch.tensor([ids])
    with torch.no_grad():
        before = model(inputs).logits
        adapted = PeftModel.from_pretrained(model, folder)
        after = adapted(inputs).logits
    assert not [str(w.message) for w in recwarn if "adapter" in str(w.message)]
    assert float((before - after).abs().max()) > 1e-3, "the adapter does nothing"
    saved = {key for key, _ in adapted.named_parameters() if ".lora_" in key}
    ours = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert saved and all(any(word in key for word in ours) for key in saved)
    assert len(saved) == len(read_tensors(folder / "adapter_model.safetensors"))
