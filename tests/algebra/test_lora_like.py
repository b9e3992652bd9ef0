"""AdaLoRA, LoHa and LoKr as factors, against their definitions in dense float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.algebra.cut import cut
from adapterhub.algebra.lora_like import read_products
from adapterhub.errors import IncompatibleError, InvalidFileError
from adapterhub.package import open_package
from tests.factory import write_json, write_tensors

OUT, WIDTH, R = 12, 10, 3
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj")


def write(folder: Path, peft_type: str, shapes: dict[str, tuple[int, ...]], **config: Any) -> dict[str, Any]:
    """Write an adapter of two modules and return their tensors in float64, by module and part."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    made = {module: {part: rng.normal(size=shape) for part, shape in shapes.items()} for module in MODULES}
    write_tensors(
        folder / "adapter_model.safetensors",
        {f"base_model.model.{module}.{part}": value for module, parts in made.items() for part, value in parts.items()},
    )
    settings = {
        "peft_type": peft_type,
        "base_model_name_or_path": "tiny-llama",
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        **config,
    }
    write_json(folder / "adapter_config.json", settings)
    return {m: {p: v.astype(np.float32).astype(np.float64) for p, v in parts.items()} for m, parts in made.items()}


LOHA = {"hada_w1_a": (OUT, R), "hada_w1_b": (R, WIDTH), "hada_w2_a": (OUT, R), "hada_w2_b": (R, WIDTH)}


def test_adalora(tmp_path: Path) -> None:
    shapes = {"lora_A": (R, WIDTH), "lora_B": (OUT, R), "lora_E": (R, 1)}
    made = write(tmp_path / "a", "ADALORA", shapes, init_r=6, r=8, lora_alpha=5, rank_pattern={"x": [True, False]})
    for module, delta in read_products(open_package(tmp_path / "a")).modules.items():
        parts = made[module]
        dense = 5 / (6 + 1e-5) * parts["lora_B"] @ (parts["lora_A"] * parts["lora_E"])
        assert (delta.rank, delta.shape) == (R, (OUT, WIDTH))
        np.testing.assert_allclose(delta.load().dense(), dense, atol=1e-5)


@pytest.mark.parametrize("alpha", [6, 4])
def test_loha_is_exact_at_the_product_of_its_ranks(tmp_path: Path, alpha: int) -> None:
    made = write(tmp_path / "a", "LOHA", LOHA, r=R, alpha=alpha, alpha_pattern={"v_proj": 1.5})
    for module, delta in read_products(open_package(tmp_path / "a")).modules.items():
        parts = made[module]
        dense = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
        dense *= (1.5 if module.endswith("v_proj") else alpha) / R
        assert (delta.rank, delta.shape) == (9, (OUT, WIDTH))
        np.testing.assert_allclose(delta.load().dense(), dense, atol=2e-5)


def test_loha_has_no_higher_rank_than_its_matrix(tmp_path: Path) -> None:
    shapes = {name: tuple(5 if size == R else size for size in shape) for name, shape in LOHA.items()}
    made = write(tmp_path / "a", "LOHA", shapes, r=5, alpha=5)
    for module, delta in read_products(open_package(tmp_path / "a")).modules.items():
        parts = made[module]
        dense = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
        assert delta.rank == delta.load().a.shape[0] == WIDTH
        np.testing.assert_allclose(delta.load().dense(), dense, atol=5e-5)


@pytest.mark.parametrize("first", ["whole", "product"])
@pytest.mark.parametrize("second", ["whole", "product"])
def test_lokr(tmp_path: Path, first: str, second: str) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, how, (rows, columns) in (("lokr_w1", first, (3, 2)), ("lokr_w2", second, (4, 5))):
        shapes |= {name: (rows, columns)} if how == "whole" else {f"{name}_a": (rows, 1), f"{name}_b": (1, columns)}
    made = write(tmp_path / "a", "LOKR", shapes, r=1, alpha=3)

    def whole(parts: dict[str, np.ndarray], name: str) -> np.ndarray:
        return parts[name] if name in parts else parts[f"{name}_a"] @ parts[f"{name}_b"]

    for module, delta in read_products(open_package(tmp_path / "a")).modules.items():
        dense = 3 * np.kron(whole(made[module], "lokr_w1"), whole(made[module], "lokr_w2"))
        assert delta.shape == dense.shape == (OUT, WIDTH)
        assert delta.rank == np.linalg.matrix_rank(dense)
        np.testing.assert_allclose(delta.load().dense(), dense, atol=2e-5)


def test_a_lower_rank_is_the_nearest(tmp_path: Path) -> None:
    made = write(tmp_path / "a", "LOHA", LOHA, r=R, alpha=R)
    small, losses = cut(read_products(open_package(tmp_path / "a")), rank=2)
    for module, delta in small.modules.items():
        parts = made[module]
        dense = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
        u, values, vt = np.linalg.svd(dense, full_matrices=False)
        assert (delta.rank, delta.shape) == (2, (OUT, WIDTH))
        np.testing.assert_allclose(delta.load().dense(), (u[:, :2] * values[:2]) @ vt[:2], atol=1e-4)
        assert losses[module].error == pytest.approx(np.linalg.norm(values[2:]) / np.linalg.norm(values), rel=1e-5)


def test_what_is_not_the_method_s_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "half", "LOHA", {name: LOHA[name] for name in list(LOHA)[:3]}, r=R, alpha=1)
    with pytest.raises(InvalidFileError, match="LOHA") as caught:
        read_products(open_package(tmp_path / "half"))
    assert "hada_w2_a [12, 3]" in caught.value.details[0]
    write(tmp_path / "conv", "LOHA", LOHA | {"hada_t1": (R, R, 3, 3)}, r=R, alpha=1)
    with pytest.raises(InvalidFileError):
        read_products(open_package(tmp_path / "conv"))
    write(tmp_path / "more", "LOKR", {"lokr_w1": (3, 2), "lokr_w2": (4, 5), "dora_scale": (OUT, 1)}, r=1, alpha=1)
    with pytest.raises(IncompatibleError, match="none of its method's"):
        read_products(open_package(tmp_path / "more"))


def test_a_module_without_rank_is_left_out(tmp_path: Path) -> None:
    shapes = {"lora_A": (R, WIDTH), "lora_B": (OUT, R), "lora_E": (R, 1)}
    write(tmp_path / "a", "ADALORA", shapes, init_r=6, lora_alpha=5)
    path = tmp_path / "a" / "adapter_model.safetensors"
    rng = np.random.default_rng(0)
    tensors = {f"base_model.model.{MODULES[0]}.{part}": rng.normal(size=shape) for part, shape in shapes.items()}
    empty = {"lora_A": (0, WIDTH), "lora_B": (OUT, 0), "lora_E": (0, 1)}
    tensors |= {f"base_model.model.{MODULES[1]}.{part}": np.zeros(shape) for part, shape in empty.items()}
    write_tensors(path, tensors)
    delta = read_products(open_package(tmp_path / "a"))
    assert list(delta.modules) == [MODULES[0]] and delta.sources[0].spec.target_modules == (MODULES[0],)
