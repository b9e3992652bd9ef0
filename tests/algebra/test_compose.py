"""What becomes of the changes of several adapters, tensor by tensor: steps, shapes and clashes; headers and numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.algebra.bind import bind
from adapterhub.algebra.read_alone import read_stack
from adapterhub.algebra.sequence import Added, Chain, Made, Rescaled
from adapterhub.catalog.combinations import rule_of
from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.fingerprints import read_config
from adapterhub.package import open_package
from adapterhub.weights import open_checkpoint
from tests.factory import edit_json, edit_tensors, tiny_llama, tiny_lora, write_json, write_tensors

QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "base", layers=1)


def ia3(folder: Path, *, value: float = 2.0, size: int = 32) -> Path:
    folder.mkdir()
    config = {"peft_type": "IA3", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "feedforward_modules": []}
    write_json(folder / "adapter_config.json", {**config, "base_model_name_or_path": "tiny-llama"})
    tensors = {f"base_model.model.{QUERY}.ia3_l": np.full((size, 1), value, np.float32)}
    write_tensors(folder / "adapter_model.safetensors", tensors)
    return folder


def lora(folder: Path, base: Path, seed: int = 1, **more: Any) -> Path:
    return tiny_lora(folder, base, seed=seed, target_modules=("q_proj",), **more)


def stack(*folders: Path, weights: tuple[float, ...] = (), rule: Any = None) -> Any:
    layers = zip(map(open_package, folders), weights or (1.0,) * len(folders), strict=True)
    return read_stack(list(layers), rule)


def test_neighbours_that_add_are_one_step_and_what_remakes_parts_them(base: Path, tmp_path: Path) -> None:
    one, other = lora(tmp_path / "a", base), lora(tmp_path / "b", base, 2)
    dora, scaled = lora(tmp_path / "d", base, 3, use_dora=True), ia3(tmp_path / "i")
    loaded = stack(one, other, dora, scaled, one, weights=(0.5, 2.0, 1.0, 0.5, -1.0)).tensors[f"{QUERY}.weight"].load()
    assert isinstance(loaded, Chain)
    assert [type(step) for step in loaded.steps] == [Added, Rescaled, Made, Added]
    assert [weight for weight, _ in loaded.steps[0].terms] == [0.5, 2.0]  # type: ignore[attr-defined]
    np.testing.assert_allclose(loaded.steps[2].change.factors, 1.5)  # type: ignore[attr-defined]


def test_normalizing_is_of_all_that_changes_weights(base: Path, tmp_path: Path) -> None:
    scaled, adapter = ia3(tmp_path / "i", value=3.0), lora(tmp_path / "a", base)
    loaded = stack(scaled, adapter, weights=(3.0, -1.0), rule=rule_of("linear")).tensors[f"{QUERY}.weight"].load()
    np.testing.assert_allclose(loaded.steps[0].change.factors, 1 + 0.75 * 2)
    assert loaded.steps[1].terms[0][0] == -0.25
    with pytest.raises(UsageError, match="all zero"):
        stack(scaled, adapter, weights=(0.0, 0.0), rule=rule_of("linear"))


def test_changes_of_different_shapes_and_tasks_are_refused_together(base: Path, tmp_path: Path) -> None:
    adapter, other = lora(tmp_path / "a", base), ia3(tmp_path / "i", size=48)
    edit_json(other / "adapter_config.json", task_type="SEQ_CLS")
    with pytest.raises(IncompatibleError) as caught:
        stack(adapter, other)
    told = " ".join(caught.value.details)
    assert "trained for different tasks: CAUSAL_LM, SEQ_CLS" in told and "changed as [32, 32] and [48, None]" in told


def test_one_tensor_by_two_names_is_refused(base: Path, tmp_path: Path) -> None:
    """An adapter of the class without a head names its modules without `model.`."""
    adapter, scaled = lora(tmp_path / "a", base), ia3(tmp_path / "i")
    shorter = {"model.model.": "model."}
    edit_tensors(
        scaled / "adapter_model.safetensors",
        lambda all: {name.replace(*next(iter(shorter.items()))): value for name, value in all.items()},
    )
    with pytest.raises(IncompatibleError) as caught:
        bind(stack(adapter, scaled), open_checkpoint(base), read_config(base))
    assert "changed by another name too" in " ".join(caught.value.details)
    assert bind(stack(scaled), open_checkpoint(base), read_config(base)).edits
