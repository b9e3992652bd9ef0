from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.algebra.delta import read_factors
from adapterhub.bases import BaseStore, read_base
from adapterhub.cli.main import main
from adapterhub.errors import IncompatibleError, UnsatisfiedError, UsageError
from adapterhub.ops._base_view import BaseFiles
from adapterhub.ops._extract_pairs import task_of
from adapterhub.ops.extract import Extracted, ExtractPlan, extract, plan_extract
from adapterhub.ops.validate import check_package
from adapterhub.package import open_package, require_intact
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from tests.factory import edit_json, edit_tensors, read_tensors, tiny_gpt2, tiny_llama, write_tensors, write_tokenizer

TARGETS = ("q_proj", "v_proj", "down_proj")


def tune(base: Path, folder: Path, *, targets: tuple[str, ...] = TARGETS, rank: int = 2, seed: int = 3) -> Path:
    """Write a fine-tune of a base: low-rank changes of some weights, the rest as it was."""
    rng = np.random.default_rng(seed)
    shutil.copytree(base, folder)

    def change(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, value in tensors.items():
            if any(name.endswith(f"{target}.weight") for target in targets):
                rows, columns = value.shape
                step = rng.normal(0, 0.05, (rows, rank)) @ rng.normal(0, 0.5, (rank, columns))
                tensors[name] = (value + step).astype(np.float32)
        return tensors

    edit_tensors(folder / "model.safetensors", change)
    return folder


def run(plan: ExtractPlan, settings: Settings) -> Extracted:
    return extract(plan, settings=settings)


@pytest.fixture
def base(tmp_path: Path, settings: Settings) -> Path:
    folder = tiny_llama(tmp_path / "base")
    BaseStore(settings).add(read_base(folder, BaseModelRef(id="tiny-llama"), "folder"))
    return folder


@pytest.fixture
def tuned(tmp_path: Path, base: Path) -> Path:
    return tune(base, tmp_path / "tuned")


def test_a_fine_tune_of_low_rank_comes_back_whole(tmp_path: Path, base: Path, tuned: Path, settings: Settings) -> None:
    result = run(plan_extract("tiny-llama", tuned, tmp_path / "out", rank=2, settings=settings), settings)
    package = open_package(tmp_path / "out")
    require_intact(package)
    record = BaseStore(settings).get("tiny-llama")
    assert check_package(tmp_path / "out", base=record, settings=settings).ok
    assert package.manifest.base_model == record.ref and package.manifest.task == "CAUSAL_LM"
    config: Any = package.config
    assert list(config["target_modules"]) == sorted(TARGETS) and config["r"] == config["lora_alpha"] == 2
    before, after = read_tensors(base), read_tensors(tuned)
    delta = read_factors(package)
    assert set(delta.modules) == {
        name.removesuffix(".weight") for name in before if not np.array_equal(before[name], after[name])
    }
    for name, module in delta.modules.items():
        change = after[f"{name}.weight"].astype(np.float64) - before[f"{name}.weight"]
        assert np.linalg.norm(module.load().dense() - change) < 1e-5 * np.linalg.norm(change)
    assert result.total.kept_energy == pytest.approx(1, abs=1e-6) and not result.left_out and not result.warnings
    assert result.unchanged == 2 * 7 + 1 - len(delta.modules)
    assert not list((tmp_path / "out").glob("tokenizer*"))
    assert "a residual of" in (tmp_path / "out" / "README.md").read_text()


def test_what_a_lower_rank_leaves_is_reported_module_by_module(tmp_path: Path, base: Path, settings: Settings) -> None:
    tuned = tune(base, tmp_path / "tuned", rank=8)
    result = run(plan_extract("tiny-llama", tuned, tmp_path / "out", rank=3, settings=settings), settings)
    before, after = read_tensors(base), read_tensors(tuned)
    lost = whole = 0.0
    for module in result.modules:
        values = np.linalg.svd(
            after[f"{module.module}.weight"].astype(np.float64) - before[f"{module.module}.weight"], compute_uv=False
        )
        assert module.norm == pytest.approx(np.linalg.norm(values), rel=1e-6)
        assert module.residual == pytest.approx(np.linalg.norm(values[3:]) / np.linalg.norm(values), rel=1e-4)
        lost, whole = lost + (values[3:] ** 2).sum(), whole + (values**2).sum()
    assert result.total.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)


def test_what_no_lora_holds_is_named_with_its_share(
    tmp_path: Path, base: Path, tuned: Path, settings: Settings
) -> None:
    step = 0.5

    def change(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors["model.norm.weight"] = tensors["model.norm.weight"] + np.float32(step)
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] * np.float32(1.5)
        tensors["value_head.weight"] = np.ones((1, 32), np.float32)
        return tensors

    edit_tensors(tuned / "model.safetensors", change)
    result = run(plan_extract("tiny-llama", tuned, tmp_path / "out", rank=2, settings=settings), settings)
    left = {item.name: item for item in result.left_out}
    assert set(left) == {"model.norm.weight", "model.embed_tokens.weight", "value_head.weight"}
    assert left["model.norm.weight"].norm == pytest.approx(step * 32**0.5)
    assert left["model.embed_tokens.weight"].reason == "an embedding"
    assert left["value_head.weight"].norm is None and left["value_head.weight"].reason == "only in the fine-tune"
    squares = [item.norm**2 for item in result.left_out if item.norm is not None]
    assert result.outside == pytest.approx(sum(squares) / (sum(squares) + result.total.energy))
    told = "\n".join(result.warnings)
    assert "value_head.weight" in told and "2 tensors were trained that no LoRA holds" in told and "missing" in told
    assert "model.norm.weight (no matrix of a linear layer)" in (tmp_path / "out" / "README.md").read_text()


def test_the_head_of_a_tied_model_is_no_linear_layer(tmp_path: Path, settings: Settings) -> None:
    base = tiny_llama(tmp_path / "base", tie=True)
    tuned = tune(base, tmp_path / "tuned", targets=("q_proj", "embed_tokens"))
    result = run(plan_extract(str(base), tuned, tmp_path / "out", rank=2, settings=settings), settings)
    assert {module.kind for module in result.modules} == {"self_attn.q_proj"}
    assert [item.name for item in result.left_out] == ["model.embed_tokens.weight"]


def test_a_base_that_is_a_folder_is_fingerprinted(tmp_path: Path, settings: Settings) -> None:
    base = tiny_llama(tmp_path / "some-base", dtype="bfloat16")
    tuned = tune(tiny_llama(tmp_path / "same"), tmp_path / "tuned")
    result = run(plan_extract(str(base), tuned, tmp_path / "out", energy=0.9, settings=settings), settings)
    assert result.manifest.base_model.id == "some-base"
    assert result.manifest.base_model.fingerprints == read_base(base, BaseModelRef(id="x"), "folder").ref.fingerprints


def test_layers_of_their_own_are_named_in_full(tmp_path: Path, base: Path, settings: Settings) -> None:
    tuned = tune(base, tmp_path / "tuned", targets=("layers.1.self_attn.q_proj",))
    run(plan_extract("tiny-llama", tuned, tmp_path / "out", rank=1, settings=settings), settings)
    config: Any = open_package(tmp_path / "out").config
    assert config["target_modules"] == ("model.layers.1.self_attn.q_proj",)


def test_gpt2_without_its_prefix_and_with_weights_that_lie_transposed(tmp_path: Path, settings: Settings) -> None:
    base = tiny_gpt2(tmp_path / "gpt2")
    tuned = tune(base, tmp_path / "tuned", targets=("attn.c_attn",))
    # As save_pretrained writes it.
    renamed = {f"transformer.{name}": value for name, value in read_tensors(tuned).items()}
    write_tensors(tuned / "model.safetensors", renamed)
    run(plan_extract(str(base), tuned, tmp_path / "out", rank=2, settings=settings), settings)
    before = read_tensors(base)
    delta = read_factors(open_package(tmp_path / "out"))
    assert set(delta.modules) == {f"transformer.h.{layer}.attn.c_attn" for layer in range(2)}
    for name, module in delta.modules.items():
        change = (renamed[f"{name}.weight"] - before[name.removeprefix("transformer.") + ".weight"]).T
        np.testing.assert_allclose(module.load().dense(), change, atol=1e-5)
    assert open_package(tmp_path / "out").config["fan_in_fan_out"] is True


@pytest.mark.parametrize(
    ("architecture", "task", "bare"),
    [
        ("LlamaForCausalLM", "CAUSAL_LM", False),
        ("GPT2LMHeadModel", "CAUSAL_LM", False),
        ("BertForSequenceClassification", "SEQ_CLS", False),
        ("BertForMaskedLM", None, False),
        ("BertModel", "FEATURE_EXTRACTION", True),
    ],
)
def test_the_task_is_told_by_the_class(architecture: str, task: str | None, bare: bool) -> None:
    assert task_of(BaseFiles(config={"architectures": [architecture]}, tensors={})) == (task, bare)


def test_a_tokenizer_of_its_own_goes_along(tmp_path: Path, base: Path, tuned: Path, settings: Settings) -> None:
    write_tokenizer(tuned, chat_template="{{ messages[0]['content'] }}")
    run(plan_extract("tiny-llama", tuned, tmp_path / "out", rank=2, settings=settings), settings)
    assert (tmp_path / "out" / "tokenizer_config.json").read_bytes() == (tuned / "tokenizer_config.json").read_bytes()
    assert "tokenizer.json" in {entry.path for entry in open_package(tmp_path / "out").manifest.files}


def test_what_cannot_be_is_refused(tmp_path: Path, base: Path, tuned: Path, settings: Settings) -> None:
    out = tmp_path / "out"

    def plan(one: str = "tiny-llama", other: Path = tuned, **how: Any) -> ExtractPlan:
        return plan_extract(one, other, out, **{"rank": 2, **how}, settings=settings)

    with pytest.raises(UsageError, match="the base itself"):
        plan(other=base)
    with pytest.raises(UnsatisfiedError):
        plan(other=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="how low"):
        plan(rank=None)
    with pytest.raises(IncompatibleError, match="one is not made of the other"):
        plan(other=tiny_gpt2(tmp_path / "gpt2"))
    with pytest.raises(IncompatibleError, match="have no counterpart") as caught:
        plan(other=tiny_llama(tmp_path / "wide", hidden=64))
    assert "[32, 32] in the base, [64, 64] in the fine-tune" in "\n".join(caught.value.details)
    with pytest.raises(IncompatibleError, match="no linear weight differs"):
        run(plan(other=shutil.copytree(base, tmp_path / "twin")), settings)
    edit_json(tuned / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(IncompatibleError, match="quantized"):
        plan()
    assert not out.exists()


def test_the_command(tmp_path: Path, base: Path, tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["extract", "--base", "tiny-llama", "--tuned", str(tuned), "--energy", "0.99", "--out", str(tmp_path / "o")]
    assert main([*line, "--dry-run"]) == 0 and not (tmp_path / "o").exists()
    assert "linear weights" in capsys.readouterr().out
    assert main(line) == 0
    out = capsys.readouterr().out
    assert "mlp.down_proj     2        2" in out
    shutil.rmtree(tmp_path / "o")
    assert main([*line, "--json"]) == 0
    data: Any = json.loads(capsys.readouterr().out)
    assert len(data["modules"]) == 6 and data["base"] == "tiny-llama" and data["version"] == "0.1.0"


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_peft_computes_with_it_what_the_fine_tune_does(tmp_path: Path, settings: Settings, kind: str) -> None:
    from tests.engine.peft_reference import active_model, difference, logits_of, plain_model

    base = {"llama": tiny_llama, "gpt2": tiny_gpt2}[kind](tmp_path / "model")
    tuned = tune(base, tmp_path / "tuned", targets=TARGETS if kind == "llama" else ("c_attn", "c_proj"))
    run(plan_extract(str(base), tuned, tmp_path / "out", rank=2, settings=settings), settings)
    ids = list(range(40))
    theirs = logits_of(active_model(base, [(tmp_path / "out", 1.0)]), ids)
    assert difference(logits_of(plain_model(tuned), ids), theirs) < 1e-4
    assert difference(logits_of(plain_model(base), ids), theirs) > 1e-3
