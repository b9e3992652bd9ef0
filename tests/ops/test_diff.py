from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.cli.main import main
from adapterhub.errors import UnsatisfiedError
from adapterhub.ops.diff import diff
from adapterhub.settings import Settings
from tests.factory import edit_json, edit_tensors, read_tensors, tiny_llama, tiny_lora, write_tiny_manifest

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "base")


def changes(folder: Path) -> dict[str, np.ndarray]:
    """Return ΔW of every module, dense in float64, by the config's own numbers."""
    config: Any = json.loads((folder / "adapter_config.json").read_text())
    tensors = read_tensors(folder / WEIGHTS)
    found = {}
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            a, b = tensors[key].astype(np.float64), tensors[key.replace("lora_A", "lora_B")].astype(np.float64)
            rank = math.sqrt(len(a)) if config["use_rslora"] else len(a)
            found[module] = config["lora_alpha"] / rank * (b @ a)
    return found


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))


def test_changes_are_compared_as_matrices(tmp_path: Path, base: Path, settings: Settings) -> None:
    one = tiny_lora(tmp_path / "one", base, r=4)
    other = tiny_lora(
        tmp_path / "two", base, r=2, use_rslora=True, target_modules=("q_proj", "down_proj"), seed=1, dtype="float16"
    )
    found = diff(one, other, settings=settings).weights
    assert found is not None and not found.same and not found.misfits and not found.saved
    first, second = changes(one), changes(other)
    assert {module.module for module in found.modules} == {name for name in first if "q_proj" in name}
    assert set(found.only_one) == {name for name in first if "v_proj" in name}
    assert set(found.only_other) == {name for name in second if "down_proj" in name}
    for module in found.modules:
        mine, theirs = first[module.module], second[module.module]
        assert module.norm == pytest.approx(np.linalg.norm(mine), rel=1e-6)
        assert module.other_norm == pytest.approx(np.linalg.norm(theirs), rel=1e-6)
        assert module.cosine == pytest.approx(cosine(mine, theirs), abs=1e-6)
        assert module.distance == pytest.approx(np.linalg.norm(theirs - mine), rel=1e-6)
        assert module.relative == pytest.approx(np.linalg.norm(theirs - mine) / np.linalg.norm(mine), rel=1e-6)
    weights = read_tensors(base)
    nothing = {name: np.zeros_like(weights[f"{name}.weight"], np.float64) for name in {*first, *second}}
    all_one, all_other = (
        np.concatenate([side.get(name, nothing[name]).ravel() for name in sorted(nothing)]) for side in (first, second)
    )
    assert found.norm == pytest.approx(np.linalg.norm(all_one), rel=1e-6)
    assert found.other_norm == pytest.approx(np.linalg.norm(all_other), rel=1e-6)
    assert found.cosine == pytest.approx(cosine(all_one, all_other), abs=1e-6)
    assert found.distance == pytest.approx(np.linalg.norm(all_other - all_one), rel=1e-6)


def test_other_factors_of_the_same_change_are_the_same(tmp_path: Path, base: Path, settings: Settings) -> None:
    one = tiny_lora(tmp_path / "one", base, r=4, lora_alpha=8)
    other = shutil.copytree(one, tmp_path / "two")
    # B·T⁻¹ and T·A, twice the alpha, half of B.
    mix = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0].astype(np.float32)
    edit_tensors(
        other / WEIGHTS,
        lambda tensors: {name: mix @ v if "lora_A" in name else v @ mix.T / 2 for name, v in tensors.items()},
    )
    edit_json(other / "adapter_config.json", lora_alpha=16)
    write_tiny_manifest(other, base)
    found = diff(one, other, settings=settings)
    assert found.weights is not None and found.weights.same
    assert found.weights.cosine == pytest.approx(1, abs=1e-6)
    assert [(item.field, item.one, item.other) for item in found.hyperparameters] == [("lora_alpha", 8, 16)]
    assert [item.field for item in found.files] == ["adapter_config.json", WEIGHTS]
    assert not found.manifest and not found.notes


def test_the_reverse_change_has_a_cosine_of_minus_one(tmp_path: Path, base: Path, settings: Settings) -> None:
    one = tiny_lora(tmp_path / "one", base)
    other = shutil.copytree(one, tmp_path / "two")
    edit_tensors(other / WEIGHTS, lambda tensors: {name: -v if "lora_B" in name else v for name, v in tensors.items()})
    found = diff(one, other, settings=settings)
    assert found.weights is not None and found.weights.cosine == pytest.approx(-1, abs=1e-7)
    assert found.weights.distance == pytest.approx(2 * (found.weights.norm or 0), rel=1e-6)
    # Its manifest is still the other's, and that is told.
    assert any("not what the manifest says" in note for note in found.notes)


def test_small_differences_are_not_lost_to_rounding(tmp_path: Path, base: Path, settings: Settings) -> None:
    one = tiny_lora(tmp_path / "one", base)
    other = shutil.copytree(one, tmp_path / "two")
    edit_tensors(
        other / WEIGHTS,
        lambda tensors: {name: v * np.float32(1 + 2**-18) if "lora_B" in name else v for name, v in tensors.items()},
    )
    found = diff(one, other, settings=settings).weights
    assert found is not None and not found.same
    assert all(module.relative == pytest.approx(2**-18, rel=0.05) for module in found.modules)


def test_manifests_are_compared_field_by_field(tmp_path: Path, base: Path, settings: Settings) -> None:
    one = tiny_lora(tmp_path / "one", base, name="a", version="1.0.0")
    other = tiny_lora(tmp_path / "two", base, name="b", version="1.1.0", base_id="acme/other")
    found = diff(one, other, settings=settings)
    assert {item.field: (item.one, item.other) for item in found.manifest} == {
        "name": ("a", "b"),
        "version": ("1.0.0", "1.1.0"),
        "base_model.id": ("tiny-llama", "acme/other"),
    }


def test_other_shapes_broken_values_and_tensors_saved_whole(tmp_path: Path, base: Path, settings: Settings) -> None:
    wide = tiny_llama(tmp_path / "wide", hidden=64)
    how: dict[str, Any] = {"target_modules": ("q_proj",), "config": {"modules_to_save": ["lm_head"]}}
    one, other = tiny_lora(tmp_path / "one", base, **how), tiny_lora(tmp_path / "two", wide, **how)
    head = read_tensors(base)["lm_head.weight"]
    edit_tensors(one / WEIGHTS, lambda tensors: {**tensors, "base_model.model.lm_head.weight": head})
    found = diff(one, other, settings=settings).weights
    assert found is not None and found.misfits[0].endswith("q_proj: 32×32 and 64×64") and not found.modules
    assert found.saved == ("lm_head.weight: only in tiny@1.0.0",)

    third = shutil.copytree(one, tmp_path / "three")

    def spoil(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        changed = {name: v * math.nan if "layers.0" in name else v for name, v in tensors.items()}
        return changed | {"base_model.model.lm_head.weight": 2 * head}

    edit_tensors(third / WEIGHTS, spoil)
    found = diff(one, third, settings=settings).weights
    assert found is not None and found.saved == ("lm_head.weight: differs by 100.00%",) and not found.same
    assert found.norm is not None and found.other_norm is None and found.distance is None and found.cosine is None
    json.dumps(found.to_data(), allow_nan=False)


def test_what_is_no_low_rank_change_is_compared_but_for_its_weights(
    tmp_path: Path, base: Path, settings: Settings
) -> None:
    one, other = tiny_lora(tmp_path / "one", base), tiny_lora(tmp_path / "two", base, config={"bias": "all"})
    found = diff(one, other, settings=settings)
    assert found.weights is None and any("bias: 'all' trains biases too" in note for note in found.notes)
    assert [item.field for item in found.hyperparameters] == ["bias"]
    with pytest.raises(UnsatisfiedError):
        diff(one, tmp_path / "nowhere", settings=settings)


def test_the_command(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str], settings: Settings) -> None:
    one, other = (
        tiny_lora(tmp_path / "one", base),
        tiny_lora(tmp_path / "two", base, seed=1, target_modules=("q_proj",)),
    )
    assert main(["diff", str(one), str(other)]) == 0
    out = capsys.readouterr().out
    assert "manifest: the same" in out and "different changes" in out
    assert "only in A:" in out and "  model.layers.0.self_attn.v_proj" in out and "only in B" not in out
    row = next(line for line in out.splitlines() if line.startswith("self_attn.q_proj "))
    assert row.split()[1] == "2"
    assert main(["diff", str(one), str(one), "--modules"]) == 0
    out = capsys.readouterr().out
    assert "the same change" in out and "+1.000  0.00%" in out
    assert main(["diff", str(one), str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(diff(one, other, settings=settings).to_data()))
