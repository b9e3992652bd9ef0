from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.algebra.delta import read_factors
from adapterhub.bases import read_base
from adapterhub.cli.main import main
from adapterhub.errors import AdapterHubError, IncompatibleError, InvalidFileError, LocalIOError, UsageError
from adapterhub.ops._old_layouts import stripped
from adapterhub.ops.convert import convert, plan_convert
from adapterhub.ops.validate import check_package
from adapterhub.package import open_package, require_intact
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from tests.factory import edit_json, edit_tensors, read_tensors, tiny_gpt2, tiny_llama, tiny_lora, write_tensors

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "base")


def rename(folder: Path, change: Callable[[str], str]) -> None:
    edit_tensors(folder / WEIGHTS, lambda tensors: {change(name): value for name, value in tensors.items()})


def dense(folder: Path) -> dict[str, np.ndarray]:
    modules = read_factors(open_package(folder)).modules
    return {name: module.load().dense() for name, module in modules.items()}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, change in one.items():
        np.testing.assert_allclose(other[name], change, rtol=1e-6, atol=1e-7)


LAYOUTS: dict[str, Callable[[str], str]] = {
    "as it is": lambda name: name,
    "no prefix": lambda name: name.removeprefix(PREFIX),
    "twice the prefix": lambda name: PREFIX + name,
    "the adapter's name": lambda name: name.replace(".weight", ".default.weight"),
    "no .weight": lambda name: name.removesuffix(".weight"),
    "DDP": lambda name: f"module.{name}",
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "FSDP": lambda name: name.replace("self_attn.", "_fsdp_wrapped_module.self_attn."),
    "checkpointing": lambda name: name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
    "all at once": lambda name: f"module._orig_mod.{PREFIX}{name.replace('.weight', '.mine.weight')}",
    "down and up": lambda name: name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
    "diffusers": lambda name: name.replace("lora_A", "lora.down").replace("lora_B", "lora.up"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_becomes_today_s_and_does_the_same(
    tmp_path: Path, base: Path, settings: Settings, layout: str
) -> None:
    folder = tiny_lora(tmp_path / "a", base, use_rslora=True, alpha_pattern={"v_proj": 3}, manifest=False)
    before, names = dense(folder), set(read_tensors(folder / WEIGHTS))
    rename(folder, LAYOUTS[layout])
    plan = plan_convert(folder, tmp_path / "out", settings=settings)
    assert not (tmp_path / "out").exists() and not plan.warnings
    assert plan.renamed == sum(LAYOUTS[layout](name) != name for name in names)
    manifest = convert(plan)
    assert_same(before, dense(tmp_path / "out"))
    assert set(read_tensors(tmp_path / "out" / WEIGHTS)) == names
    package = open_package(tmp_path / "out")
    require_intact(package)
    assert manifest.derived and package.config["use_rslora"] is False and package.config["r"] == 4
    record = read_base(base, BaseModelRef(id="tiny-llama"), "folder")
    assert check_package(tmp_path / "out", base=record, settings=settings).ok


def test_only_part_of_the_names_is_old(tmp_path: Path, base: Path, settings: Settings) -> None:
    folder = tiny_lora(tmp_path / "a", base, manifest=False)
    before = dense(folder)
    rename(folder, lambda name: name.replace(".weight", "") if "layers.1" in name else name)
    assert plan_convert(folder, tmp_path / "out", settings=settings).renamed == 4
    convert(plan_convert(folder, tmp_path / "out", settings=settings))
    assert_same(before, dense(tmp_path / "out"))


def test_alphas_among_the_weights_go_above_the_config(tmp_path: Path, base: Path, settings: Settings) -> None:
    folder = tiny_lora(tmp_path / "a", base, r=4, lora_alpha=8, manifest=False)
    plain = dense(folder)
    rename(folder, LAYOUTS["down and up"])
    edit_tensors(
        folder / WEIGHTS,
        lambda tensors: {**tensors, "base_model.model.model.layers.0.self_attn.q_proj.alpha": np.array(2.0)},
    )
    convert(plan_convert(folder, tmp_path / "out", settings=settings))
    for name, change in dense(tmp_path / "out").items():
        factor = 2 / 8 if name == "model.layers.0.self_attn.q_proj" else 1
        np.testing.assert_allclose(change, factor * plain[name], rtol=1e-6, atol=1e-7)


def test_dora_keeps_its_magnitudes(tmp_path: Path, base: Path, settings: Settings) -> None:
    folder = tiny_lora(tmp_path / "a", base, use_dora=True, manifest=False)
    before = read_tensors(folder / WEIGHTS)
    rename(folder, lambda name: re.sub(r"(lora_magnitude_vector)$", r"\1.default.weight", name))
    convert(plan_convert(folder, tmp_path / "out", settings=settings))
    after = read_tensors(tmp_path / "out" / WEIGHTS)
    assert after.keys() == before.keys()
    for name in (name for name in before if "magnitude" in name):
        np.testing.assert_array_equal(after[name], before[name])
    assert open_package(tmp_path / "out").config["use_dora"] is True


def test_a_dump_of_a_model_s_state_loses_what_is_the_base_s(tmp_path: Path, base: Path, settings: Settings) -> None:
    folder = tiny_lora(tmp_path / "a", base, config={"modules_to_save": ["lm_head"]}, manifest=False)
    before, weights = dense(folder), read_tensors(base)
    rename(folder, lambda name: name.replace(".weight", ".default.weight"))
    head = weights["lm_head.weight"]
    edit_tensors(
        folder / WEIGHTS,
        lambda tensors: {
            **tensors,
            f"{PREFIX}model.layers.0.self_attn.q_proj.base_layer.weight": weights[
                "model.layers.0.self_attn.q_proj.weight"
            ],
            f"{PREFIX}lm_head.original_module.weight": head,
            f"{PREFIX}lm_head.modules_to_save.default.weight": 2 * head,
            f"{PREFIX}model.norm.weight": weights["model.norm.weight"],
        },
    )
    plan = plan_convert(folder, tmp_path / "out", settings=settings)
    assert set(plan.dropped) == {
        f"{PREFIX}model.layers.0.self_attn.q_proj.base_layer.weight",
        f"{PREFIX}lm_head.original_module.weight",
        f"{PREFIX}model.norm.weight",
    }
    assert len(plan.warnings) == 1 and f"{PREFIX}model.norm.weight" in plan.warnings[0]
    convert(plan)
    assert_same(before, dense(tmp_path / "out"))
    np.testing.assert_array_equal(read_tensors(tmp_path / "out" / WEIGHTS)[f"{PREFIX}lm_head.weight"], 2 * head)


def test_a_config_of_the_first_peft(tmp_path: Path, base: Path, settings: Settings) -> None:
    folder = tiny_lora(tmp_path / "a", base, manifest=False)
    before = dense(folder)
    old = {
        "base_model_name_or_path": "tiny-llama",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        "some_trainer_s_mark": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(old))
    plan = plan_convert(folder, tmp_path / "out", settings=settings)
    assert plan.left == ("some_trainer_s_mark",) and "some_trainer_s_mark" in plan.warnings[0]
    convert(plan)
    assert_same(before, dense(tmp_path / "out"))
    config: Any = open_package(tmp_path / "out").config
    assert "enable_lora" not in config and config["task_type"] == "CAUSAL_LM"
    edit_json(folder / "adapter_config.json", enable_lora=[True, False, True])
    with pytest.raises(IncompatibleError, match="enable_lora"):
        plan_convert(folder, tmp_path / "other", settings=settings)


def test_a_version_of_its_own_asks_for_another(tmp_path: Path, base: Path, settings: Settings) -> None:
    folder = tiny_lora(tmp_path / "a", base, name="legal")
    out = tmp_path / "out"
    for version, told in ((None, "--version"), ("1.0.0", "already"), ("x", "--version")):
        with pytest.raises(UsageError) as caught:
            plan_convert(folder, out, version=version, settings=settings)
        assert told in " ".join(map(str, (caught.value.message, caught.value.hint, caught.value.where)))
    manifest = convert(plan_convert(folder, out, version="1.0.1", settings=settings))
    assert (manifest.name, str(manifest.version)) == ("legal", "1.0.1")
    assert manifest.to_data()["extra"]["made_from"]["version"] == "1.0.0"  # type: ignore[index]


def test_what_cannot_be_converted_is_refused(tmp_path: Path, base: Path, settings: Settings) -> None:
    folder = tiny_lora(tmp_path / "a", base, manifest=False)
    tensors = read_tensors(folder / WEIGHTS)

    def refusal(named: dict[str, np.ndarray]) -> AdapterHubError:
        write_tensors(folder / WEIGHTS, named)
        with pytest.raises(AdapterHubError) as caught:
            plan_convert(folder, tmp_path / "out", settings=settings)
        return caught.value

    two = {name.replace(".weight", f".{who}.weight"): v for who in ("one", "two") for name, v in tensors.items()}
    assert isinstance(refusal(two), InvalidFileError)
    apart = {
        name.replace(".weight", f".{'one' if 'layers.0' in name else 'two'}.weight"): v for name, v in tensors.items()
    }
    assert "several adapters: one, two" in refusal(apart).message
    kohya = {"lora_unet_model_layers_0_q_proj.lora_down.weight": np.ones((4, 32))}
    assert "kohya" in refusal(kohya).message
    assert "MLX" in refusal({"model.layers.0.self_attn.q_proj.lora_a": np.ones((32, 4))}).message
    write_tensors(folder / WEIGHTS, tensors)
    edit_json(folder / "adapter_config.json", peft_type="IA3")
    with pytest.raises(IncompatibleError, match="ia3 is no low-rank change"):
        plan_convert(folder, tmp_path / "out", settings=settings)
    edit_json(folder / "adapter_config.json", peft_type="LORA")
    with pytest.raises(LocalIOError):
        plan_convert(folder, base, settings=settings)


def test_prefixes_are_stripped_however_often() -> None:
    assert stripped("module.base_model.model.base_model.model.model.layers.0.q") == "model.layers.0.q"
    assert stripped("base_model.model.model._orig_mod.layers.0.q") == "model.layers.0.q"
    assert stripped("model.base_model.x") == "model.base_model.x"


def test_the_command(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_lora(tmp_path / "a", base, manifest=False)
    rename(folder, LAYOUTS["no .weight"])
    line = ["convert", str(folder), "--out", str(tmp_path / "out")]
    assert main([*line, "--dry-run"]) == 0 and not (tmp_path / "out").exists()
    assert "8 tensors" in capsys.readouterr().out
    assert main([*line, "--json"]) == 0
    data: Any = json.loads(capsys.readouterr().out)
    assert data["renamed"] == 8 and data["version"].startswith("0.0.0+g")


@pytest.mark.engine
def test_peft_loads_what_came_of_a_dump_of_peft_s_own_model(tmp_path: Path, settings: Settings) -> None:
    from tests.engine.peft_reference import active_model, difference, logits_of

    base = tiny_gpt2(tmp_path / "gpt2")
    how: Any = {"base_id": "tiny-gpt2", "prefix": "transformer.", "target_modules": ("c_attn", "c_proj")}
    folder = tiny_lora(tmp_path / "a", base, manifest=False, use_rslora=True, rank_pattern={"c_proj": 2}, **how)
    ids = list(range(40))
    model = active_model(base, [(folder, 1.0)])
    before = logits_of(model, ids)
    dump = {name: value.numpy() for name, value in model.state_dict().items() if "lora_" in name}
    assert any(".ad0x.weight" in name for name in dump)
    write_tensors(folder / WEIGHTS, dump)
    convert(plan_convert(folder, tmp_path / "out", settings=settings))
    after = logits_of(active_model(base, [(tmp_path / "out", 1.0)]), ids)
    assert difference(before, after) < 1e-6
    assert difference(logits_of(model.get_base_model(), ids), before) == 0


@pytest.mark.engine
@pytest.mark.parametrize("method", ["adalora", "adalora-pruned", "loha", "lokr", "lokr-whole", "lokr-both"])
def test_peft_computes_the_same_with_what_came_of_its_other_methods(
    tmp_path: Path, base: Path, settings: Settings, method: str
) -> None:
    import peft
    import torch

    from tests.engine.peft_reference import active_model, difference, logits_of, plain_model

    common: Any = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    adalora: Any = {"init_r": 4, "target_r": 2, "total_step": 10, "lora_alpha": 6, **common}
    configs: Any = {
        "adalora": lambda: peft.AdaLoraConfig(**adalora),
        "adalora-pruned": lambda: peft.AdaLoraConfig(**adalora),
        "loha": lambda: peft.LoHaConfig(r=2, alpha=3, alpha_pattern={"v_proj": 5}, init_weights=False, **common),
        "lokr": lambda: peft.LoKrConfig(r=2, alpha=3, init_weights=False, **common),
        "lokr-whole": lambda: peft.LoKrConfig(r=64, alpha=30, init_weights=False, **common),
        "lokr-both": lambda: peft.LoKrConfig(
            r=1, alpha=1, decompose_both=True, decompose_factor=4, init_weights=False, **common
        ),
    }
    torch.manual_seed(0)
    model = peft.get_peft_model(plain_model(base), configs[method]())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "hada_" in name or "lokr_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    if method == "adalora-pruned":
        # What its rank allocator leaves in the config at the end of training: which ranks stay.
        model.peft_config["default"].rank_pattern = {
            name.removeprefix("base_model.model."): [True, False, True, False]
            for name, _ in model.named_parameters()
            if "lora_E" in name
        }
    model.save_pretrained(str(tmp_path / "a"))
    edit_json(tmp_path / "a" / "adapter_config.json", base_model_name_or_path="tiny-llama")
    plan = plan_convert(tmp_path / "a", tmp_path / "out", settings=settings)
    convert(plan)
    config: Any = open_package(tmp_path / "out").config
    assert config["peft_type"] == "LORA" and config["r"] == config["lora_alpha"]
    ids = list(range(40))
    theirs = logits_of(active_model(base, [(tmp_path / "a", 1.0)]), ids)
    assert difference(theirs, logits_of(active_model(base, [(tmp_path / "out", 1.0)]), ids)) < 1e-4
    assert difference(theirs, logits_of(plain_model(base), ids)) > 1e-3


def test_a_limit_of_the_rank_is_reported(tmp_path: Path, base: Path, settings: Settings) -> None:
    folder = tiny_lora(tmp_path / "a", base, r=6, manifest=False)
    before = dense(folder)
    plan = plan_convert(folder, tmp_path / "out", rank=2, settings=settings)
    manifest = convert(plan)
    after = dense(tmp_path / "out")
    lost = sum(float(((before[name] - after[name]).astype(np.float64) ** 2).sum()) for name in before)
    whole = sum(float((change.astype(np.float64) ** 2).sum()) for change in before.values())
    assert plan.total is not None and plan.total.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    assert dict(plan.facts())["error"] == f"{plan.total.error:.3%} of the change"
    made: Any = manifest.to_data()["extra"]
    assert made["made_from"]["rank"] == 2 and made["made_from"]["method"] == "lora"
