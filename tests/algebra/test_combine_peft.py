"""Combinations beside PEFT's `add_weighted_adapter`: equal where PEFT is right, and where it is not, how far off it is.

The truth is always dense float64 arithmetic on the files; each test of a fault asserts PEFT's error to be large, so
that a PEFT without the fault fails it and the line can go.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.algebra.combine import combine
from adapterhub.catalog.combinations import rule_of
from adapterhub.errors import IncompatibleError
from adapterhub.package import open_package
from adapterhub.spec.stack import Parameters
from tests.algebra import dense
from tests.factory import edit_json, edit_tensors, tiny_llama, tiny_lora

pytestmark = pytest.mark.engine

EXACT = 1e-5
# The shorter side of every matrix here; PEFT fails where svd_rank is more.
FULL = 32
OUT = "combined"
Deltas = dict[str, dense.Doubles]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "base", layers=1)


def adapter(folder: Path, base: Path, **how: Any) -> Path:
    return tiny_lora(folder, base, target_modules=("q_proj", "down_proj"), manifest=False, **how)


@pytest.fixture(scope="module")
def equal(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters of one rank and one scaling: all that PEFT's factor-wise rules take."""
    folder = tmp_path_factory.mktemp("equal")
    return [adapter(folder / str(seed), base, r=4, seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def unlike(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("unlike")
    return [adapter(folder / "0", base, r=4), adapter(folder / "1", base, r=7, lora_alpha=3, seed=1)]


def peft_model(base: Path, folders: Sequence[Path]) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft = PeftModel.from_pretrained(model, folders[0], adapter_name="ad0x")
    for index, folder in enumerate(folders[1:], start=1):
        peft.load_adapter(folder, adapter_name=f"ad{index}x")
    return peft


def deltas_in(peft: Any, name: str = OUT) -> Deltas:
    """What a layer adds to its weight, by PEFT's own account."""
    layers = ((path, module) for path, module in peft.named_modules() if hasattr(module, "get_delta_weight"))
    return {
        path.removeprefix("base_model.model."): layer.get_delta_weight(name).detach().numpy().astype(np.float64)
        for path, layer in layers
    }


def by_peft(base: Path, folders: Sequence[Path], weights: Sequence[float], kind: str, **how: Any) -> Deltas:
    peft = peft_model(base, folders)
    names = [f"ad{index}x" for index in range(len(folders))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.add_weighted_adapter(names, list(weights), OUT, combination_type=kind, **how)
    return deltas_in(peft)


def by_us(folders: Sequence[Path], weights: Sequence[float], name: str, **given: Any) -> Deltas:
    layers = [(open_package(path), weight) for path, weight in zip(folders, weights, strict=True)]
    total = combine(layers, rule_of(name, Parameters(**given)))
    return {module: change.load().dense().astype(np.float64) for module, change in total.modules.items()}


def true_sum(folders: Sequence[Path], weights: Sequence[float]) -> Deltas:
    deltas = [dense.deltas_of(folder) for folder in folders]
    return {
        module: np.sum([weight * delta[module] for weight, delta in zip(weights, deltas, strict=True)], axis=0)
        for module in deltas[0]
    }


def error(ours: Deltas, truth: Deltas) -> float:
    """‖difference‖ / ‖truth‖ over all modules."""
    assert ours.keys() == truth.keys()
    parts = [(np.linalg.norm(ours[name] - truth[name]), np.linalg.norm(truth[name])) for name in truth]
    return float(np.linalg.norm([part[0] for part in parts]) / np.linalg.norm([part[1] for part in parts]))


WEIGHTS = (0.7, -1.3)


def test_cat_is_exact_in_both(base: Path, unlike: list[Path]) -> None:
    truth = true_sum(unlike, WEIGHTS)
    assert error(by_peft(base, unlike, WEIGHTS, "cat"), truth) < EXACT
    for name in ("cat", "sum"):
        assert error(by_us(unlike, WEIGHTS, name), truth) < EXACT


@pytest.mark.parametrize("rank", [3, 11])
def test_svd_is_the_same_matrix_in_both(base: Path, unlike: list[Path], rank: int) -> None:
    truth = {name: dense.nearest(value, rank) for name, value in true_sum(unlike, WEIGHTS).items()}
    assert error(by_peft(base, unlike, WEIGHTS, "svd", svd_rank=rank), truth) < EXACT
    assert error(by_us(unlike, WEIGHTS, "svd", rank=rank), truth) < EXACT


@pytest.mark.parametrize(("kind", "name"), [("ties_svd", "ties"), ("magnitude_prune_svd", "magnitude_prune")])
def test_what_peft_computes_on_the_whole_change_is_ours(base: Path, unlike: list[Path], kind: str, name: str) -> None:
    theirs = by_peft(base, unlike, (1.0, 1.0), kind, svd_rank=FULL, density=0.4)
    assert error(by_us(unlike, (1.0, 1.0), name, rank=FULL, density=0.4), theirs) < EXACT


def test_a_negative_weight_has_a_say_in_the_sign(base: Path, unlike: list[Path]) -> None:
    """PEFT elects signs before it multiplies by the weights, so an adapter that is subtracted votes for itself."""
    deltas = [dense.deltas_of(folder) for folder in unlike]
    truth = {
        name: dense.ties([weight * delta[name] for weight, delta in zip(WEIGHTS, deltas, strict=True)], 0.4)
        for name in deltas[0]
    }
    assert error(by_us(unlike, WEIGHTS, "ties", rank=FULL, density=0.4), truth) < EXACT
    assert error(by_peft(base, unlike, WEIGHTS, "ties_svd", svd_rank=FULL, density=0.4), truth) > 0.2


def test_pefts_linear_adds_cross_terms(base: Path, equal: list[Path]) -> None:
    """(√w₁s₁·B₁ + √w₂s₂·B₂)(√w₁s₁·A₁ + √w₂s₂·A₂) has B₁A₂ and B₂A₁ in it, which nobody has trained."""
    truth = true_sum(equal, (0.5, 0.5))
    assert error(by_us(equal, (0.5, 0.5), "linear"), truth) < EXACT
    assert error(by_peft(base, equal, (0.5, 0.5), "linear"), truth) > 0.5


def test_pefts_linear_needs_one_rank(base: Path, unlike: list[Path]) -> None:
    with pytest.raises(ValueError, match="same r value"):
        by_peft(base, unlike, (0.5, 0.5), "linear")
    assert error(by_us(unlike, (0.5, 0.5), "linear"), true_sum(unlike, (0.5, 0.5))) < EXACT


@pytest.mark.parametrize(("kind", "name"), [("ties", "ties"), ("magnitude_prune", "magnitude_prune")])
def test_on_factors_a_rule_for_entries_means_something_else(
    base: Path, equal: list[Path], kind: str, name: str
) -> None:
    deltas = [dense.deltas_of(folder) for folder in equal]
    made = {
        module: dense.ties([delta[module] for delta in deltas], 0.5)
        if name == "ties"
        else dense.summed([dense.top(delta[module], 0.5) for delta in deltas])
        for module in deltas[0]
    }
    assert error(by_us(equal, (1.0, 1.0), name, density=0.5, rank=FULL), made) < EXACT
    assert error(by_peft(base, equal, (1.0, 1.0), kind, density=0.5), made) > 0.5


def test_after_an_rslora_adapter_pefts_result_is_the_root_of_its_rank_too_large(base: Path, tmp_path: Path) -> None:
    folders = [adapter(tmp_path / "a", base, r=4, use_rslora=True), adapter(tmp_path / "b", base, r=5, seed=1)]
    truth = true_sum(folders, (1.0, 0.5))
    assert error(by_us(folders, (1.0, 0.5), "cat"), truth) < EXACT
    theirs = by_peft(base, folders, (1.0, 0.5), "cat")
    assert error(theirs, {name: np.sqrt(9) * value for name, value in truth.items()}) < EXACT
    back = by_peft(base, folders[::-1], (0.5, 1.0), "cat")
    assert error(back, truth) < EXACT  # the same adapters: which one comes first decides


def test_one_adapter_is_linear_whatever_was_asked(base: Path, unlike: list[Path]) -> None:
    truth = {name: dense.nearest(value, 2) for name, value in true_sum(unlike[:1], (1.0,)).items()}
    assert error(by_us(unlike[:1], (1.0,), "svd", rank=2), truth) < EXACT
    theirs = by_peft(base, unlike[:1], (1.0,), "svd", svd_rank=2)
    assert all(np.linalg.svd(value, compute_uv=False)[3] > 0.01 for value in theirs.values())  # rank 4 as it was


def test_a_name_that_exists_is_left_as_it_was(base: Path, unlike: list[Path]) -> None:
    peft = peft_model(base, unlike)
    peft.add_weighted_adapter(["ad0x", "ad1x"], [1.0, 1.0], OUT, combination_type="cat")
    peft.add_weighted_adapter(["ad0x", "ad1x"], [0.0, 5.0], OUT, combination_type="cat")  # silently nothing
    assert error(deltas_in(peft), true_sum(unlike, (1.0, 1.0))) < EXACT
    assert error(by_us(unlike, (0.0, 5.0), "cat"), true_sum(unlike, (0.0, 5.0))) < EXACT


def test_dora_loses_its_magnitude_in_peft_and_is_refused_here(base: Path, tmp_path: Path) -> None:
    import torch

    folders = [
        adapter(tmp_path / "a", base, use_dora=True),
        adapter(tmp_path / "b", base, use_dora=True, seed=1),
    ]
    peft = peft_model(base, folders)
    peft.add_weighted_adapter(["ad0x", "ad1x"], [1.0, 0.0], OUT, combination_type="cat")
    path = next(name for name in deltas_in(peft) if name.endswith("q_proj"))
    layer = peft.base_model.model.get_submodule(path)
    before = layer.get_base_layer().weight.detach().clone()

    def changed(name: str) -> Any:
        layer.merge(adapter_names=[name])
        value = layer.get_base_layer().weight.detach() - before
        layer.unmerge()
        return value

    # The second adapter has no weight: what is left should be the first one as it was.
    alone, together = changed("ad0x"), changed(OUT)
    assert float(torch.linalg.norm(together - alone) / torch.linalg.norm(alone)) > 0.1
    with pytest.raises(IncompatibleError, match="cannot be summed") as caught:
        by_us(folders, (1.0, 1.0), "cat")
    assert all("use_dora" in line for line in caught.value.details)


def test_a_bias_on_b_is_forgotten_in_peft_and_refused_here(base: Path, tmp_path: Path) -> None:
    folders = []
    for seed in range(2):
        folder = adapter(tmp_path / str(seed), base, seed=seed)
        edit_json(folder / "adapter_config.json", lora_bias=True)

        def biased(tensors: dict[str, Any]) -> dict[str, Any]:
            extra = {
                name.replace("lora_B.weight", "lora_B.bias"): np.ones(len(value))
                for name, value in tensors.items()
                if "lora_B" in name
            }
            return tensors | extra

        edit_tensors(folder / "adapter_model.safetensors", biased)
        folders.append(folder)
    peft = peft_model(base, folders)
    peft.add_weighted_adapter(["ad0x", "ad1x"], [1.0, 1.0], OUT, combination_type="cat")
    layer = next(module for module in peft.modules() if hasattr(module, "get_delta_weight"))
    assert float(layer.lora_B["ad0x"].bias.abs().min()) == 1.0
    bias = layer.lora_B[OUT].bias
    assert bias is None or float(bias.abs().max()) == 0.0
    with pytest.raises(IncompatibleError) as caught:
        by_us(folders, (1.0, 1.0), "cat")
    assert any("lora_bias" in line for line in caught.value.details)
