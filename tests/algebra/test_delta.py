from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub.algebra.delta import StackDelta, concatenate, read_factors
from adapterhub.errors import IncompatibleError, InvalidFileError
from adapterhub.package import Package, open_package
from tests.factory import edit_tensors, read_tensors, tiny_llama, tiny_lora

FINE = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def packages(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Package]:
    """Different ranks, targets that overlap in part, rsLoRA, patterns, and a 16-bit one."""
    folder = tmp_path_factory.mktemp("adapters")
    wanted: list[dict[str, Any]] = [
        {"r": 4, "lora_alpha": 8},
        {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ("q_proj", "down_proj"), "seed": 1},
        {"r": 2, "alpha_pattern": {"q_proj": 7}, "rank_pattern": {"v_proj": 6}, "seed": 2, "dtype": "bfloat16"},
    ]
    return [open_package(tiny_lora(folder / str(i), base, name=f"a{i}", **how)) for i, how in enumerate(wanted)]


def dense(delta: StackDelta) -> dict[str, np.ndarray]:
    return {name: module.load().dense() for name, module in delta.modules.items()}


def by_hand(package: Package) -> dict[str, np.ndarray]:
    """ΔW out of the file itself, by the formula, in float64."""
    config, tensors, found = package.config, read_tensors(package.weights), {}
    for key, a in tensors.items():
        if not key.endswith("lora_A.weight"):
            continue
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        patterns: Any = config["alpha_pattern"]
        alpha = next((v for k, v in patterns.items() if module.endswith(k)), config["lora_alpha"])
        scaling = alpha / (math.sqrt(len(a)) if config["use_rslora"] else len(a))
        found[module] = scaling * tensors[key.replace("lora_A", "lora_B")].astype(np.float64) @ a.astype(np.float64)
    return found


def assert_close(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=0, atol=2e-6 * max(1.0, float(np.abs(value).max())))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_one_package_is_scaling_times_b_times_a(packages: list[Package], index: int) -> None:
    assert_close(dense(read_factors(packages[index])), by_hand(packages[index]))


weights = st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3)


@FINE
@given(weights=weights)
def test_a_stack_is_the_weighted_sum_of_its_members(packages: list[Package], weights: list[float]) -> None:
    expected: dict[str, np.ndarray] = {}
    for package, weight in zip(packages, weights, strict=True):
        for name, value in by_hand(package).items():
            expected[name] = expected.get(name, 0) + weight * value
    assert_close(dense(concatenate(list(zip(packages, weights, strict=True)))), expected)


@FINE
@given(order=st.permutations([0, 1, 2]), weights=weights)
def test_the_sum_does_not_depend_on_order(packages: list[Package], order: list[int], weights: list[float]) -> None:
    layers = list(zip(packages, weights, strict=True))
    assert_close(dense(concatenate(layers)), dense(concatenate([layers[i] for i in order])))


@FINE
@given(factor=st.floats(-4, 4, width=32), weights=weights)
def test_the_sum_is_linear_in_its_weights(packages: list[Package], factor: float, weights: list[float]) -> None:
    layers = list(zip(packages, weights, strict=True))
    scaled = dense(concatenate([(package, factor * weight) for package, weight in layers]))
    assert_close(scaled, {name: factor * value for name, value in dense(concatenate(layers)).items()})


def test_ranks_add_up_and_nothing_is_read_before_load(packages: list[Package]) -> None:
    delta = concatenate([(package, 1.0) for package in packages])
    assert delta.modules["model.layers.0.self_attn.q_proj"].rank == 4 + 3 + 2
    assert delta.modules["model.layers.0.self_attn.v_proj"].rank == 4 + 6
    low = delta.modules["model.layers.1.mlp.down_proj"].load()
    assert (low.a.shape, low.b.shape, low.a.dtype, low.b.dtype) == ((3, 64), (32, 3), np.float32, np.float32)


def test_an_embedding_is_changed_as_it_is_stored(base: Path, tmp_path: Path) -> None:
    folder = tiny_lora(tmp_path / "a", base, r=2, lora_alpha=6, manifest=False)
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 264)), rng.normal(size=(32, 2))
    at = "base_model.model.model.embed_tokens.lora_embedding_"
    edit_tensors(folder / "adapter_model.safetensors", lambda t: t | {f"{at}A": a, f"{at}B": b})
    low = read_factors(open_package(folder)).modules["model.embed_tokens"]
    assert low.shape == (264, 32) and low.embedding
    np.testing.assert_allclose(low.load().dense(), 3.0 * (b @ a).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying"),
        ({"peft_type": "IA3"}, "peft_type"),
    ],
)
def test_what_is_no_sum_is_refused_by_field(base: Path, tmp_path: Path, change: dict[str, Any], field: str) -> None:
    folder = tiny_lora(tmp_path / "a", base, manifest=False)
    package = open_package(folder)
    package = Package(path=folder, manifest=package.manifest, config={**package.config, **change})
    with pytest.raises(IncompatibleError) as caught:
        read_factors(package)
    assert [line.partition(":")[0] for line in caught.value.details] == [field]


def test_dora_sums_with_none_and_has_no_coefficient(base: Path, tmp_path: Path, packages: list[Package]) -> None:
    dora = open_package(tiny_lora(tmp_path / "d", base, use_dora=True))
    assert read_factors(dora).modules["model.layers.0.self_attn.q_proj"].load().magnitude is not None
    with pytest.raises(IncompatibleError, match="use_dora"):
        read_factors(dora, 0.5)
    with pytest.raises(IncompatibleError, match="use_dora"):
        concatenate([(packages[0], 1.0), (dora, 1.0)])


def test_a_module_saved_whole_clashes_with_another_that_has_it(base: Path, tmp_path: Path) -> None:
    def saving(name: str, seed: int) -> Package:
        folder = tiny_lora(tmp_path / name, base, name=name, config={"modules_to_save": ["lm_head"]}, manifest=False)
        head = np.random.default_rng(seed).normal(size=(264, 32))
        edit_tensors(folder / "adapter_model.safetensors", lambda t: t | {"base_model.model.lm_head.weight": head})
        return open_package(folder)

    one, other, twin = saving("one", 1), saving("other", 2), saving("twin", 1)
    assert set(read_factors(one).whole) == {"lm_head.weight"}
    assert set(concatenate([(one, 1.0), (twin, 1.0)]).whole) == {"lm_head.weight"}
    with pytest.raises(IncompatibleError, match=r"lm_head\.weight: saved whole by"):
        concatenate([(one, 1.0), (other, 1.0)])
    adapting = open_package(tiny_lora(tmp_path / "adapting", base, target_modules=("lm_head",)))
    with pytest.raises(IncompatibleError, match=r"lm_head: saved whole by"):
        concatenate([(adapting, 1.0), (one, 1.0)])
    with pytest.raises(IncompatibleError, match="modules_to_save"):
        read_factors(one, 2.0)


def test_every_fault_of_the_weights_is_told(base: Path, tmp_path: Path) -> None:
    folder = tiny_lora(tmp_path / "a", base, r=4, manifest=False)
    q, v = (f"base_model.model.model.layers.0.self_attn.{n}_proj" for n in "qv")

    def damage(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        del tensors[f"{q}.lora_B.weight"]
        tensors[f"{v}.lora_A.weight"] = np.zeros((2, 32))
        tensors[f"{v}.lora_B.weight"] = np.zeros((16, 2))
        return tensors

    edit_tensors(folder / "adapter_model.safetensors", damage)
    with pytest.raises(InvalidFileError) as caught:
        read_factors(open_package(folder))
    assert caught.value.details == (
        "model.layers.0.self_attn.q_proj: has no lora_B",
        "model.layers.0.self_attn.v_proj: rank is 2 in the weights, 4 by r and rank_pattern",
    )


def test_tensors_of_another_method_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    folder = tiny_lora(tmp_path / "a", base, manifest=False)
    edit_tensors(folder / "adapter_model.safetensors", lambda t: t | {"base_model.model.x.lora_diag": np.zeros(4)})
    with pytest.raises(IncompatibleError) as caught:
        read_factors(open_package(folder))
    assert caught.value.details == ("base_model.model.x.lora_diag",)


def test_a_factor_that_is_not_finite_names_its_module(base: Path, tmp_path: Path) -> None:
    folder = tiny_lora(tmp_path / "a", base, manifest=False)
    key = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"
    edit_tensors(folder / "adapter_model.safetensors", lambda t: t | {key: np.full((4, 32), np.nan)})
    delta = read_factors(open_package(folder))
    with pytest.raises(IncompatibleError, match=r"layers\.1\.self_attn\.v_proj"):
        delta.modules["model.layers.1.self_attn.v_proj"].load()


def test_members_of_different_tasks_are_refused(base: Path, tmp_path: Path) -> None:
    one = open_package(tiny_lora(tmp_path / "a", base))
    other = open_package(tiny_lora(tmp_path / "b", base, task_type="SEQ_CLS"))
    with pytest.raises(IncompatibleError, match="task_type"):
        concatenate([(one, 1.0), (other, 1.0)])
