from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.algebra.delta import StackDelta, concatenate, read_factors
from adapterhub.algebra.fuse import FuseReport, fuse, plan_fuse
from adapterhub.errors import IncompatibleError, IntegrityError, UsageError
from adapterhub.package import Package, open_package
from adapterhub.weights import open_checkpoint, read_header
from tests.factory import edit_tensors, read_tensors, tiny_gpt2, tiny_llama, tiny_lora, write_tensors


def opened(folder: Path, base: Path, **how: Any) -> Package:
    return open_package(tiny_lora(folder, base, **how))


def merged(base: Path, delta: StackDelta, out: Path, *, dtype: str | None = None) -> FuseReport:
    out.mkdir()
    config = json.loads((base / "config.json").read_text())
    return fuse(plan_fuse(base, delta, config, dtype=dtype), out)


def dense(delta: StackDelta) -> dict[str, np.ndarray]:
    return {f"{name}.weight": module.load().dense() for name, module in delta.modules.items()}


def round_bf16(values: np.ndarray) -> np.ndarray:
    """To nearest, ties to even, by exact arithmetic: independent of the code under test."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.round(mantissa * 256) / 256, exponent).astype(np.float32)


@pytest.mark.parametrize("shards", [1, 3])
def test_every_target_gains_its_delta_and_the_rest_is_copied(tmp_path: Path, shards: int) -> None:
    base = tiny_llama(tmp_path / "base", shards=shards)
    delta = concatenate(
        [
            (opened(tmp_path / "a", base, r=4), 1.0),
            (opened(tmp_path / "b", base, r=3, target_modules=("q_proj", "down_proj"), seed=1), -0.5),
        ]
    )
    report = merged(base, delta, tmp_path / "out")
    before, after, change = read_tensors(base), read_tensors(tmp_path / "out"), dense(delta)
    assert before.keys() == after.keys() and len(change) == 6
    for name, value in before.items():
        if name in change:
            np.testing.assert_allclose(after[name], value + change[name], rtol=0, atol=1e-6)
            assert not np.array_equal(after[name], value)
        else:
            assert np.array_equal(after[name], value), name
    assert report.kept == pytest.approx(1.0, abs=1e-4) and report.error < 1e-3
    assert sorted(open_checkpoint(tmp_path / "out").files) == sorted(open_checkpoint(base).files)
    assert report.files == open_checkpoint(base).files and not report.untied


def test_the_index_is_rewritten(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", shards=2, dtype="bfloat16")
    merged(base, read_factors(opened(tmp_path / "a", base)), tmp_path / "out", dtype="float32")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    total = sum(t.nbytes for t in open_checkpoint(tmp_path / "out").tensors.values())
    assert index["metadata"]["total_size"] == total == 2 * sum(t.nbytes for t in open_checkpoint(base).tensors.values())


def test_files_are_what_the_safetensors_library_reads(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    base = tiny_llama(tmp_path / "base")
    delta = read_factors(opened(tmp_path / "a", base))
    merged(base, delta, tmp_path / "out")
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: value.tolist() for name, value in loaded.items()} == {
        name: value.tolist() for name, value in read_tensors(tmp_path / "out").items()
    }
    assert read_header(tmp_path / "out" / "model.safetensors").metadata == {"format": "pt"}


def test_bf16_is_one_rounding_of_the_float32_sum(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", dtype="bfloat16")
    layers = [(opened(tmp_path / str(i), base, seed=i, r=2 + i), 0.3 + i) for i in range(3)]
    delta = concatenate(layers)
    report = merged(base, delta, tmp_path / "out")
    before, after, change = read_tensors(base), read_tensors(tmp_path / "out"), dense(delta)
    for name, value in change.items():
        assert np.array_equal(after[name], round_bf16(before[name] + value)), name
    assert 0.5 < report.kept < 1.5 and report.error > 1e-4


def test_what_survives_the_rounding_is_measured(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", dtype="bfloat16")
    package = opened(tmp_path / "a", base)
    strong = merged(base, read_factors(package, 1.0), tmp_path / "strong")
    weak = merged(base, read_factors(package, 1e-5), tmp_path / "weak")
    exact = merged(base, read_factors(package, 1e-5), tmp_path / "exact", dtype="float32")
    before, after = read_tensors(base), read_tensors(tmp_path / "strong")
    module = next(m for m in strong.modules if m.module.endswith("0.self_attn.q_proj"))
    change = dense(read_factors(package))[module.tensor]
    made = after[module.tensor] - before[module.tensor]
    assert module.kept == pytest.approx(float((made * change).sum() / (change**2).sum()), rel=1e-4)
    assert module.error == pytest.approx(float(np.linalg.norm(made - change) / np.linalg.norm(change)), rel=1e-2)
    assert module.delta_norm == pytest.approx(float(np.linalg.norm(change)), rel=1e-4) and module.rank == 4
    assert weak.kept < 0.3 and weak.low == weak.modules and not strong.low and not exact.low


def test_dtype_converts_every_float_and_float16_refuses_what_is_too_large(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    delta = read_factors(opened(tmp_path / "a", base))
    merged(base, delta, tmp_path / "half", dtype="bfloat16")
    assert {t.dtype for t in open_checkpoint(tmp_path / "half").tensors.values()} == {"BF16"}
    after, norms = read_tensors(tmp_path / "half"), "model.embed_tokens.weight"
    assert np.array_equal(after[norms], round_bf16(read_tensors(base)[norms]))
    edit_tensors(base / "model.safetensors", lambda t: t | {norms: t[norms] * 1e7})
    with pytest.raises(IncompatibleError, match="too large for float16"):
        merged(base, delta, tmp_path / "fp16", dtype="float16")
    with pytest.raises(UsageError, match="int8"):
        merged(base, delta, tmp_path / "int8", dtype="int8")


def test_gpt2s_weights_gain_the_transposed_delta(tmp_path: Path) -> None:
    base = tiny_gpt2(tmp_path / "base")
    names = ("c_attn", "attn.c_proj", "c_fc")
    delta = read_factors(opened(tmp_path / "a", base, target_modules=names, prefix="transformer."))
    merged(base, delta, tmp_path / "out")
    before, after = read_tensors(base), read_tensors(tmp_path / "out")
    for name, value in dense(delta).items():
        stored = name.removeprefix("transformer.")
        np.testing.assert_allclose(after[stored], before[stored] + value.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dora_rescales_every_row(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapterhub.algebra.rows.CHUNK_ELEMENTS", 300)  # several row ranges a tensor
    if family == "llama":
        base = tiny_llama(tmp_path / "base")
        package = opened(tmp_path / "a", base, use_dora=True)
    else:
        base = tiny_gpt2(tmp_path / "base")
        package = opened(tmp_path / "a", base, use_dora=True, target_modules=("c_attn",), prefix="transformer.")
    delta = read_factors(package)
    merged(base, delta, tmp_path / "out")
    before, after = read_tensors(base), read_tensors(tmp_path / "out")
    for module, change in delta.modules.items():
        low, stored = change.load(), f"{module}.weight".removeprefix("transformer.")
        weight = before[stored] if family == "llama" else before[stored].T
        total = weight + low.dense()
        assert low.magnitude is not None
        total *= (low.magnitude / np.linalg.norm(total, axis=1))[:, None]
        got = after[stored] if family == "llama" else after[stored].T
        np.testing.assert_allclose(got, total, rtol=0, atol=1e-5)


def test_tied_embeddings_become_two_tensors(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", tie=True, shards=2)
    folder = tiny_lora(tmp_path / "a", base, target_modules=("q_proj",), lora_alpha=4, r=4, manifest=False)
    rng, at = np.random.default_rng(1), "base_model.model.model.embed_tokens"
    a, b = rng.normal(size=(4, 264)), rng.normal(size=(32, 4))
    own = read_tensors(base)["model.embed_tokens.weight"]
    extra = {f"{at}.lora_embedding_A": a, f"{at}.lora_embedding_B": b, f"{at}.base_layer.weight": own}
    edit_tensors(folder / "adapter_model.safetensors", lambda t: t | extra)
    report = merged(base, read_factors(open_package(folder)), tmp_path / "out")
    after = read_tensors(tmp_path / "out")
    assert report.untied
    assert np.array_equal(after["lm_head.weight"], own)
    np.testing.assert_allclose(after["model.embed_tokens.weight"], own + (b @ a).T, rtol=0, atol=1e-5)


def test_a_copy_of_another_embedding_is_refused(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", dtype="bfloat16")
    folder = tiny_lora(tmp_path / "a", base, manifest=False)
    key, own = "base_model.model.model.embed_tokens.weight", read_tensors(base)["model.embed_tokens.weight"]
    edit_tensors(folder / "adapter_model.safetensors", lambda t: t | {key: own})
    assert merged(base, read_factors(open_package(folder)), tmp_path / "same").modules
    edit_tensors(folder / "adapter_model.safetensors", lambda t: t | {key: own * np.float32(1.001)})
    with pytest.raises(IncompatibleError, match="not this base's"):
        merged(base, read_factors(open_package(folder)), tmp_path / "other")


def test_a_module_saved_whole_takes_the_place_of_the_bases(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", tie=True)
    folder = tiny_lora(tmp_path / "a", base, manifest=False, config={"modules_to_save": ["lm_head"]})
    head = np.random.default_rng(3).normal(size=(264, 32)).astype(np.float32)
    edit_tensors(folder / "adapter_model.safetensors", lambda t: t | {"base_model.model.lm_head.weight": head})
    report = merged(base, read_factors(open_package(folder)), tmp_path / "out")
    after = read_tensors(tmp_path / "out")
    assert report.untied and np.array_equal(after["lm_head.weight"], head)
    assert np.array_equal(after["model.embed_tokens.weight"], read_tensors(base)["model.embed_tokens.weight"])


def test_row_ranges_do_not_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_llama(tmp_path / "base", dtype="bfloat16")
    delta = read_factors(opened(tmp_path / "a", base))
    merged(base, delta, tmp_path / "whole")
    monkeypatch.setattr("adapterhub.algebra.rows.CHUNK_ELEMENTS", 100)
    merged(base, delta, tmp_path / "ranges")
    whole, ranges = read_tensors(tmp_path / "whole"), read_tensors(tmp_path / "ranges")
    for name, value in whole.items():  # BLAS may order a sum by the shape: one ulp
        np.testing.assert_allclose(ranges[name], value, rtol=2**-7, atol=0)


def test_a_base_cut_off_while_merging_is_an_integrity_error(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    delta = read_factors(opened(tmp_path / "a", base))
    plan = plan_fuse(base, delta, json.loads((base / "config.json").read_text()))
    os.truncate(base / "model.safetensors", (base / "model.safetensors").stat().st_size - 1000)
    (tmp_path / "out").mkdir()
    with pytest.raises(IntegrityError, match="ends inside tensor"):
        fuse(plan, tmp_path / "out")


def test_a_nan_in_the_base_is_told_with_its_module(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", dtype="bfloat16")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors = read_tensors(base)
    tensors[name][3, 3] = np.nan
    write_tensors(base / "model.safetensors", tensors, dtype="bfloat16")
    with pytest.raises(IncompatibleError, match="not finite") as caught:
        merged(base, read_factors(opened(tmp_path / "a", base)), tmp_path / "out")
    assert caught.value.where == "model.layers.0.self_attn.q_proj"


_MEASURE = """
import json, resource, sys
from pathlib import Path
import numpy
numpy.ones((8, 8), numpy.float32) @ numpy.ones((8, 8), numpy.float32)
from adapterhub.algebra.delta import read_factors
from adapterhub.algebra.fuse import fuse, plan_fuse
from adapterhub.package import open_package
base, adapter, out = map(Path, sys.argv[1:])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
config = json.loads((base / "config.json").read_text())
fuse(plan_fuse(base, read_factors(open_package(adapter)), config), out)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_peak_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", layers=0, vocab=8)
    rng = np.random.default_rng(0)
    names = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(6)]
    # Six matrices of 48 MiB, float32: 300 MB, of which a merge may hold a small part.
    write_tensors(base / "model.safetensors", {name: rng.standard_normal((4096, 3072), np.float32) for name in names})
    adapter = tiny_lora(tmp_path / "a", base, target_modules=("down_proj",), r=16)
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", _MEASURE, str(base), str(adapter), str(tmp_path / "out")]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    grown = int(run.stdout) / 1024
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 300e6
    assert grown < 150, f"{grown:.0f} MiB"


def _logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.arange(1, 41).reshape(2, 20)).logits


def _loaded(folder: Path, base: Path) -> Any:
    """Load merged weights with plain transformers; every tensor must be used, and none be missing."""
    import torch
    from transformers import AutoModelForCausalLM

    config = json.loads((base / "config.json").read_text())
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps(config))
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def _assert_logits(one: Any, other: Any) -> None:
    assert float((one - other).abs().max()) <= 1e-4 * float(other.abs().max())


FAMILIES = {
    "llama": (tiny_llama, "", [("q_proj", "v_proj"), ("q_proj", "down_proj"), ("k_proj", "lm_head")]),
    "gpt2": (tiny_gpt2, "transformer.", [("c_attn",), ("c_attn", "attn.c_proj", "c_fc"), ("mlp.c_proj",)]),
}


@pytest.mark.engine
@pytest.mark.parametrize("family", list(FAMILIES))
def test_agrees_with_peft_with_all_adapters_active(tmp_path: Path, family: str) -> None:
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM

    factory, prefix, targets = FAMILIES[family]
    base = factory(tmp_path / "base")
    how: list[dict[str, Any]] = [
        {"r": 4, "lora_alpha": 16},
        {"r": 3, "lora_alpha": 5, "use_rslora": True},
        {"r": 2, "alpha_pattern": {"c_proj": 9, "k_proj": 12}, "rank_pattern": {"c_proj": 5, "lm_head": 7}},
    ]
    weights = [1.0, -0.75, 2.0]
    folders = [
        tiny_lora(tmp_path / f"ad{i}", base, target_modules=names, prefix=prefix, seed=i, name=f"ad{i}", **one)
        for i, (names, one) in enumerate(zip(targets, how, strict=True))
    ]
    layers = [(open_package(folder), weight) for folder, weight in zip(folders, weights, strict=True)]
    merged(base, concatenate(layers), tmp_path / "out")

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain = _logits(model.eval())
    peft = PeftModel.from_pretrained(model, folders[0], adapter_name="ad0")
    for i in (1, 2):
        peft.load_adapter(folders[i], adapter_name=f"ad{i}")
    peft.base_model.set_adapter(["ad0", "ad1", "ad2"])
    for module in peft.modules():
        if isinstance(module, LoraLayer):
            for i, weight in enumerate(weights):
                if f"ad{i}" in module.scaling:
                    module.set_scale(f"ad{i}", weight)
    active = _logits(peft.eval())
    assert float((active - plain).abs().max()) > 0.05 * float(active.abs().max())  # the adapters do something
    _assert_logits(_logits(_loaded(tmp_path / "out", base)), active)


@pytest.mark.engine
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_agrees_with_merge_and_unload(tmp_path: Path, family: str, use_dora: bool) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    factory, prefix, targets = FAMILIES[family]
    base = factory(tmp_path / "base")
    adapter = tiny_lora(tmp_path / "a", base, target_modules=targets[1], prefix=prefix, use_dora=use_dora)
    merged(base, read_factors(open_package(adapter)), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()
    ours = _loaded(tmp_path / "out", base)
    _assert_logits(_logits(ours), _logits(theirs))
    for (name, one), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=2e-6), name


@pytest.mark.engine
def test_gpt2s_tied_head_that_was_adapted_is_loaded_by_transformers(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tiny_gpt2(tmp_path / "base")
    how = LoraConfig(r=4, target_modules=["lm_head", "wte"], init_lora_weights=False)
    trained = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), how)
    torch.manual_seed(0)
    for parameter in trained.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    trained.save_pretrained(tmp_path / "a")
    report = merged(base, read_factors(open_package(tmp_path / "a")), tmp_path / "out")
    assert report.untied and {module.module for module in report.modules} == {"lm_head", "transformer.wte"}
    (tmp_path / "out" / "config.json").write_text(
        json.dumps(json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": False})
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    active = _logits(PeftModel.from_pretrained(model, tmp_path / "a").eval())
    _assert_logits(_logits(_loaded(tmp_path / "out", base)), active)


@pytest.mark.engine
def test_bf16_is_bit_for_bit_torchs_in_the_same_order(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    base = tiny_llama(tmp_path / "base", dtype="bfloat16", hidden=64)
    delta = read_factors(opened(tmp_path / "a", base, r=4, target_modules=("q_proj", "down_proj", "gate_proj")))
    merged(base, delta, tmp_path / "out")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    different = total = 0
    for name, module in delta.modules.items():
        low, weight = module.load(), before[f"{name}.weight"]
        expected = (weight.float() + torch.from_numpy(low.b) @ torch.from_numpy(low.a)).bfloat16()
        one, other = (t.view(torch.int16).int() for t in (after[f"{name}.weight"], expected))
        assert int((one - other).abs().max()) <= 1, name
        different, total = different + int((one != other).sum()), total + one.numel()
    # Two BLAS libraries may order a sum of four products differently: seldom, and then by one ulp.
    assert different <= total / 1000
