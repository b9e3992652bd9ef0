"""`adapt build` with other methods than LoRA: planned, built, validated; what cannot be is refused before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.catalog.methods import METHODS
from adapterhub.catalog.neutral_values import NEUTRAL
from adapterhub.documents import read_manifest
from adapterhub.engine import adapters, eva
from adapterhub.errors import AdapterHubError, IncompatibleError, InvalidFileError, UsageError
from adapterhub.ops.build import build, plan_build
from adapterhub.settings import Settings
from adapterhub.spec.report import Severity
from tests.ops.test_build import base_folder, home, project

pytestmark = pytest.mark.engine
__all__ = ["base_folder", "home"]  # fixtures


def other(folder: Path, method: str, given: dict[str, Any], **training: Any) -> tuple[Path, list[str]]:
    """Return a recipe, and the overrides that make it one of another method."""
    words = [f"method={method}", "hyperparameters={}"]
    words += [f"hyperparameters.{name}={value}" for name, value in given.items()]
    words += [f"training.{name}={value}" for name, value in {"max_steps": 4, **training}.items()]
    return project(folder), words


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("dora", {"r": 4}),
        ("lora", {"r": 4, "init_lora_weights": "pissa"}),
        ("lora", {"r": 4, "init_lora_weights": "eva", "eva_config": "{rho: 1.5}"}),
        ("adalora", {"init_r": 6, "target_r": 3}),
        ("ia3", {}),
        ("prefix_tuning", {"num_virtual_tokens": 4}),
        ("waveft", {"n_frequency": 64}),
        ("shadow", {"r": 4}),
    ],
)
def test_a_package_of_another_method_is_built(
    tmp_path: Path, home: Settings, method: str, given: dict[str, Any]
) -> None:
    recipe, words = other(tmp_path, method, given)
    result = build(recipe, out=tmp_path / "out", overrides=words, settings=home)
    manifest = read_manifest(result.path)
    assert manifest.method == method
    assert manifest.metrics["train_steps"] == 4
    # The bare base is measured before anything changes it: every method finds the same.
    assert manifest.metrics["eval_loss_base"] == pytest.approx(5.6, abs=0.2)
    assert not [f for f in result.report.findings if f.severity is Severity.ERROR]
    if method != "prefix_tuning":
        assert manifest.metrics["eval_loss"] < manifest.metrics["eval_loss_base"]
    open_codes = {f.code for f in result.report.findings if f.severity is Severity.NOT_CHECKED}
    # Every weight was read; of some methods these alone do not tell that they change something.
    told = METHODS[method].peft_type in NEUTRAL
    assert open_codes == (set() if method in ("lora", "dora") else {"ADP404"}) | (set() if told else {"ADP402"})
    assert "ADP401" in result.report.passed
    assert ("ADP402" in result.report.passed) == told


def test_a_start_from_the_rows_is_found_once(tmp_path: Path, home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"r": 2, "init_lora_weights": "eva", "lora_dropout": 0.1, "target_modules": "all-linear"}
    recipe, words = other(tmp_path / "p", "lora", given, save_steps=2)

    def built(name: str) -> Any:
        return build(recipe, out=tmp_path / name, overrides=words, settings=home)

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    whole = built("whole")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(adapters, "save", cut)
        built("again")
    # Neither what goes on nor what is there already reads the rows for it.
    monkeypatch.setattr(eva, "_directions", cut)
    again = built("again")
    assert (whole.resumed_at, again.resumed_at) == (None, 4)
    assert again.manifest.digest == whole.manifest.digest
    assert built("again").kept
    config = json.loads((tmp_path / "again/adapter_config.json").read_text())
    assert len({2, *config["rank_pattern"].values()}) > 1


def test_plans_tell_sizes_and_modules_and_count_what_headers_tell(tmp_path: Path, home: Settings) -> None:
    def planned(method: str, given: dict[str, Any]) -> Any:
        recipe, words = other(tmp_path, method, given)
        return plan_build(recipe, overrides=words, settings=home)

    lora, dora = planned("lora", {"r": 4}), planned("dora", {"r": 4})
    # Two layers; q and o give 32 numbers, k and v 16.
    assert dora.trainable - lora.trainable == 2 * (32 + 16 + 16 + 32)
    assert dict(planned("ia3", {}).facts())["method"] == "ia3, on k_proj, v_proj, down_proj"
    prompt = planned("prompt_tuning", {"num_virtual_tokens": 7})
    assert dict(prompt.facts())["method"] == "prompt_tuning, num_virtual_tokens 7"
    assert prompt.trainable == 7 * 32
    assert planned("hra", {"r": 2}).trainable is None
    assert dict(planned("adalora", {}).facts())["method"].startswith("adalora, init_r 12, on q_proj")


@pytest.mark.parametrize(
    ("method", "given", "training", "error", "word"),
    [
        ("prefix_tuning", {}, {"gradient_checkpointing": "true"}, InvalidFileError, "gradient_checkpointing"),
        ("cartridge", {}, {"gradient_checkpointing": "true"}, InvalidFileError, "gradient_checkpointing"),
        ("prefix_tuning", {"num_virtual_tokens": 511}, {}, IncompatibleError, "no room"),
        ("cartridge", {"num_virtual_tokens": 511}, {}, IncompatibleError, "no room"),
        ("adaption_prompt", {"adapter_layers": 3}, {}, IncompatibleError, "the base has 2 layers"),
        ("c3a", {}, {}, IncompatibleError, "block_size: 256 does not divide the inputs and outputs of .*k_proj"),
        ("road", {}, {}, IncompatibleError, "group_size: 64 does not divide the outputs"),
        ("fourierft", {"n_frequency": 513}, {}, IncompatibleError, "n_frequency: 513 is more than the numbers"),
        ("beft", {"target_modules": "[nothing]"}, {}, IncompatibleError, "nothing"),
        ("xlora", {}, {}, UsageError, "mixes adapters that exist already"),
        ("adalora", {"tinit": 2, "tfinal": 2}, {}, InvalidFileError, "4 steps"),
        ("loha", {"target_modules": "[q_proj, nothing]"}, {}, IncompatibleError, "nothing"),
        ("ia3", {"target_modules": "[nothing]", "feedforward_modules": "[]"}, {}, IncompatibleError, "nothing"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_base_is_loaded(
    tmp_path: Path,
    home: Settings,
    method: str,
    given: dict[str, Any],
    training: dict[str, Any],
    error: type[AdapterHubError],
    word: str,
) -> None:
    recipe, words = other(tmp_path, method, given, **training)
    with pytest.raises(error, match=word):
        plan_build(recipe, overrides=words, settings=home)


def test_the_most_that_a_base_s_modules_take_is_told_and_taken(tmp_path: Path, home: Settings) -> None:
    recipe, words = other(tmp_path, "c3a", {})
    with pytest.raises(IncompatibleError) as caught:
        plan_build(recipe, overrides=words, settings=home)
    assert caught.value.hint == "block_size: 16 is the most that all of them take"
    assert plan_build(recipe, overrides=[*words, "hyperparameters.block_size=16"], settings=home)
