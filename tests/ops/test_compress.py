from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.algebra.delta import read_factors
from adapterhub.bases import read_base
from adapterhub.cli.main import main
from adapterhub.errors import AdapterHubError, IncompatibleError, IntegrityError, LocalIOError, UsageError
from adapterhub.ops.compress import compress, plan_compress
from adapterhub.ops.validate import check_package
from adapterhub.package import open_package, require_intact
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from tests.factory import edit_tensors, tiny_llama, tiny_lora, write_tiny_manifest, write_tokenizer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    folder = tiny_lora(tmp_path / "adapter", base, r=6, use_rslora=True, rank_pattern={"v_proj": 5}, name="legal")
    write_tiny_manifest(folder, base, name="legal")
    return folder


def dense(folder: Path) -> dict[str, np.ndarray]:
    modules = read_factors(open_package(folder)).modules
    return {name: module.load().b.astype(np.float64) @ module.load().a for name, module in modules.items()}


def test_the_result_is_a_package_that_fits_and_is_as_near_as_reported(
    tmp_path: Path, adapter: Path, base: Path, settings: Settings
) -> None:
    plan = plan_compress(adapter, tmp_path / "out", version="1.1.0", rank=3, settings=settings)
    assert not (tmp_path / "out").exists()
    manifest = compress(plan)
    package = open_package(tmp_path / "out")
    require_intact(package)
    assert check_package(
        tmp_path / "out", base=read_base(base, BaseModelRef(id="tiny-llama"), "folder"), settings=settings
    ).ok
    assert (manifest.name, str(manifest.version), manifest.base_model.id) == ("legal", "1.1.0", "tiny-llama")
    assert manifest.base_model == open_package(adapter).manifest.base_model
    config: Any = package.config
    assert (config["r"], config["lora_alpha"], config["use_rslora"], config["rank_pattern"]) == (3, 3, False, {})
    before, after = dense(adapter), dense(tmp_path / "out")
    lost = whole = 0.0
    for cut in plan.cuts:
        gap = np.linalg.norm(before[cut.module] - after[cut.module])
        values = np.linalg.svd(before[cut.module], compute_uv=False)
        assert cut.error == pytest.approx(np.linalg.norm(values[3:]) / np.linalg.norm(values), rel=1e-6)
        assert gap / np.linalg.norm(values) == pytest.approx(cut.error, rel=1e-5)
        lost, whole = lost + gap**2, whole + (values**2).sum()
    assert plan.total.error == pytest.approx((lost / whole) ** 0.5, rel=1e-5)
    weights = (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert plan.size <= weights <= plan.size + 4096


def test_where_it_comes_from_is_in_the_manifest_and_on_the_card(
    tmp_path: Path, adapter: Path, settings: Settings
) -> None:
    (adapter / "README.md").write_text("---\nlicense: mit\n---\n\n# Legal\n\nReads contracts.\n")
    source = open_package(adapter).manifest
    manifest = compress(plan_compress(adapter, tmp_path / "out", version="2.0.0", energy=0.7, settings=settings))
    assert manifest.to_data()["extra"] == {
        "made_from": {
            "operation": "compress",
            "energy": 0.7,
            "name": "legal",
            "version": "1.0.0",
            "manifest": str(source.digest),
        }
    }
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n") and "Reads contracts." in card and "## Compressed from 1.0.0" in card


def test_what_lies_beside_the_weights_goes_along(tmp_path: Path, adapter: Path, base: Path, settings: Settings) -> None:
    write_tokenizer(adapter)
    (adapter / "adapter_manifest.json").unlink()
    compress(plan_compress(adapter, tmp_path / "out", version="1.0.0", rank=1, settings=settings))
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (adapter / "tokenizer.json").read_bytes()
    manifest = open_package(tmp_path / "out").manifest
    assert "tokenizer.json" in {entry.path for entry in manifest.files} and not manifest.derived
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'base_model: "tiny-llama"' in card and "## Compressed" in card


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({}, "how low"),
        ({"rank": 0}, "at least 1"),
        ({"energy": 1.5}, "above 0"),
        ({"energy": 0.0}, "above 0"),
        ({"rank": 6}, "nothing would be lower: its rank is 5 to 6"),
        ({"rank": 2, "version": "1.0.0"}, "is the version of legal already"),
        ({"rank": 2, "version": "newest"}, "newest"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, adapter: Path, settings: Settings, how: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError) as caught:
        plan_compress(adapter, tmp_path / "out", **{"version": "1.1.0", **how}, settings=settings)
    assert told in str(caught.value)


def test_what_is_damaged_full_or_no_lora_is_refused(
    tmp_path: Path, adapter: Path, base: Path, settings: Settings
) -> None:
    def refusal(folder: Path, out: Path) -> AdapterHubError:
        with pytest.raises(AdapterHubError) as caught:
            plan_compress(folder, out, version="9.0.0", rank=1, settings=settings)
        return caught.value

    assert isinstance(refusal(adapter, base), LocalIOError)
    assert isinstance(refusal(tiny_lora(tmp_path / "dora", base, use_dora=True), tmp_path / "out"), IncompatibleError)
    edit_tensors(adapter / "adapter_model.safetensors", lambda tensors: {name: 2 * v for name, v in tensors.items()})
    assert isinstance(refusal(adapter, tmp_path / "out"), IntegrityError)


def test_the_command(tmp_path: Path, adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["compress", str(adapter), "--rank", "2", "--version", "1.1.0", "--out", str(tmp_path / "out")]
    assert main([*line, "--dry-run"]) == 0 and not (tmp_path / "out").exists()
    shown = capsys.readouterr().out
    assert "5 to 6 → 2" in shown and "self_attn.v_proj  2        5     2" in shown
    assert main([*line, "--json"]) == 0
    data: Any = json.loads(capsys.readouterr().out)
    assert data["version"] == "1.1.0" and len(data["modules"]) == 4
    assert data["digest"] == str(open_package(tmp_path / "out").manifest.digest)


@pytest.mark.engine
def test_peft_loads_the_result_and_computes_with_it(
    tmp_path: Path, adapter: Path, base: Path, settings: Settings
) -> None:
    import torch

    from tests.engine.peft_reference import active_model, difference, logits_of, plain_model

    compress(plan_compress(adapter, tmp_path / "out", version="1.1.0", rank=2, settings=settings))
    ids = list(range(40))
    model = plain_model(base)
    with torch.no_grad():
        for name, change in dense(tmp_path / "out").items():
            model.get_submodule(name).weight += torch.from_numpy(change).float()
    theirs = logits_of(active_model(base, [(tmp_path / "out", 1.0)]), ids)
    assert difference(logits_of(model, ids), theirs) < 1e-5
    assert difference(logits_of(plain_model(base), ids), theirs) > 1e-3
