"""`adapt build` over a base packed in 4 or 8 bits: built, measured on it, recorded; what cannot be says so first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.documents import read_manifest
from adapterhub.errors import AdapterHubError, IncompatibleError, InvalidFileError, UsageError
from adapterhub.ops.build import build, plan_build
from adapterhub.ops.plan import plan_training
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.quantization import Quantization
from tests.engine.peft_reference import difference, logits_of
from tests.factory import edit_json, tiny_llama
from tests.ops.test_build import project

pytestmark = pytest.mark.engine
IDS = [257, *b"user\nWhat is it?", 258, *b"\n", 257, *b"assistant\n"]
NF4 = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny", hidden=64)


@pytest.fixture
def home(settings: Settings, base_folder: Path) -> Settings:
    BaseStore(settings).add(read_base(base_folder, BaseModelRef(id="tiny-llama"), "folder"))
    return settings


@pytest.mark.parametrize("words", [NF4, {"load_in_8bit": True, "llm_int8_skip_modules": ["down_proj"]}], ids=str)
def test_a_package_is_built_over_a_packed_base(
    tmp_path: Path, home: Settings, base_folder: Path, words: dict[str, Any]
) -> None:
    recipe = project(tmp_path, quantization=words, training={"max_steps": 8, "gradient_checkpointing": True})
    result = build(recipe, out=tmp_path / "out", settings=home)
    assert result.report.ok, result.report
    manifest = read_manifest(result.path)
    wanted = words if "load_in_8bit" in words else {**words, "bnb_4bit_quant_type": "nf4"}
    assert manifest.quantization is not None
    recorded = manifest.quantization.to_data()
    assert wanted.items() <= recorded.items()
    if "load_in_4bit" in words:
        assert recorded["bnb_4bit_compute_dtype"] in ("float32", "bfloat16")  # as the device has it
    assert "bitsandbytes" in manifest.built_from.tools
    assert manifest.metrics["eval_loss"] < manifest.metrics["eval_loss_base"]
    # The bare base was measured as it is trained on: packed, which is not what its weights are.
    assert manifest.metrics["eval_loss_base"] != pytest.approx(_bare_loss(tmp_path, home), abs=1e-6)
    assert any(finding.code == "ADP111" for finding in result.report.findings)
    assert _changed_in_plain_peft(result.path, base_folder, manifest.quantization) > 0.01


def _bare_loss(tmp_path: Path, home: Settings) -> float:
    plain = build(
        project(tmp_path / "plain", training={"max_steps": 1}), out=tmp_path / "plain-out", settings=home
    ).manifest
    assert plain.quantization is None and "bitsandbytes" not in plain.built_from.tools
    return plain.metrics["eval_loss_base"]


def _changed_in_plain_peft(adapter: Path, base: Path, quantization: Quantization) -> float:
    """Load the package by plain transformers and PEFT over the base packed by the manifest's words."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    words = quantization.to_data()
    model = AutoModelForCausalLM.from_pretrained(
        str(base), dtype=torch.float32, device_map={"": "cpu"}, quantization_config=BitsAndBytesConfig(**words)
    )
    bare = logits_of(model, IDS)
    return difference(logits_of(PeftModel.from_pretrained(model, str(adapter)).eval(), IDS), bare)


def test_sixteen_bits_beside_packed_weights(tmp_path: Path, home: Settings) -> None:
    recipe = project(tmp_path, quantization=NF4, training={"max_steps": 6, "dtype": "bfloat16"})
    manifest = build(recipe, out=tmp_path / "out", settings=home).manifest
    assert manifest.quantization is not None and manifest.quantization.bnb_4bit_compute_dtype == "bfloat16"
    assert manifest.metrics["eval_loss"] < manifest.metrics["eval_loss_base"]


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path, home: Settings) -> None:
    recipe = project(tmp_path, quantization=NF4, training={"max_steps": 3})
    first, second = (build(recipe, out=tmp_path / name, settings=home) for name in ("a", "b"))
    assert first.manifest.digest == second.manifest.digest


def test_a_plan_counts_packed_weights(tmp_path: Path, home: Settings, base_folder: Path) -> None:
    plain, packed = (
        plan_training(project(tmp_path / name, **given), settings=home).written.cost.memory.base
        for name, given in (("a", {}), ("b", {"quantization": NF4}))
    )
    # Seven matrices in each of two layers: 4 bits, a byte for 64 of them and 4 bytes for 64 · 256, in place of 4 bytes.
    matrices = sum(
        tensor["data_offsets"][1] - tensor["data_offsets"][0]
        for name, tensor in _header(base_folder).items()
        if name.endswith("_proj.weight")
    )
    count = matrices // 4
    assert plain - packed == pytest.approx(4 * count - count / 2 - count / 64 * (1 + 4 / 256), abs=2)


def _header(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in folder.glob("*.safetensors"):
        data = file.read_bytes()
        found |= json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {name: tensor for name, tensor in found.items() if name != "__metadata__"}


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"method": "loha", "hyperparameters": None}, UsageError, "loha cannot be trained over a 4-bit base"),
        ({"hyperparameters": {"init_lora_weights": "pissa"}}, UsageError, "takes a part of the base's weights away"),
        ({"hyperparameters": {"init_lora_weights": "olora"}}, UsageError, "takes a part of the base's weights away"),
        ({"hyperparameters": {"modules_to_save": ["down_proj"]}}, InvalidFileError, "packed in 4 bits"),
    ],
)
def test_what_packed_weights_cannot_carry_is_refused_before_anything_is_loaded(
    tmp_path: Path, home: Settings, changes: dict[str, Any], error: type[AdapterHubError], word: str
) -> None:
    recipe = project(tmp_path, quantization=NF4)
    if changes.get("hyperparameters", ...) is None:
        data = json.loads(recipe.read_text())
        del data["hyperparameters"]
        recipe.write_text(json.dumps(data | {"method": changes["method"]}))
    else:
        recipe = project(tmp_path, quantization=NF4, **changes)
    with pytest.raises(error, match=word):
        plan_build(recipe, settings=home)


def test_an_output_layer_may_be_trained_whole_and_a_module_that_is_skipped(tmp_path: Path, home: Settings) -> None:
    recipe = project(
        tmp_path,
        quantization={**NF4, "llm_int8_skip_modules": ["down_proj"]},
        hyperparameters={"modules_to_save": ["lm_head", "down_proj"], "target_modules": ["q_proj"]},
        training={"max_steps": 2},
    )
    result = build(recipe, out=tmp_path / "out", settings=home)
    assert result.report.ok, result.report


def test_a_base_that_is_stored_packed_is_no_base_to_train_on(tmp_path: Path, home: Settings, base_folder: Path) -> None:
    folder = tmp_path / "packed"
    shutil.copytree(base_folder, folder)
    edit_json(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    BaseStore(home).add(read_base(folder, BaseModelRef(id="packed"), "folder"))
    with pytest.raises(IncompatibleError, match="stored quantized"):
        plan_build(project(tmp_path / "p", base_model="packed"), settings=home)
