"""`adapt base add --dequantize`: packed weights unpacked as bitsandbytes unpacks them, and merged into."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from adapterhub.bases import BaseStore
from adapterhub.cli.main import main
from adapterhub.engine.dequantize import dequantize
from adapterhub.engine.quantized import is_packed
from adapterhub.errors import IncompatibleError, IntegrityError, UsageError
from adapterhub.fingerprints import Verdict, compare
from adapterhub.ops.base import add_base, plan_add_base
from adapterhub.ops.merge import merge, plan_merge
from adapterhub.settings import Settings
from adapterhub.spec.quantization import Quantization
from tests.engine.peft_reference import difference, logits_of, plain_model
from tests.engine.test_quantized import IDS, NF4, active_over, stored_in
from tests.engine.tiny import load
from tests.factory import base_fingerprints, edit_json, read_tensors, tiny_gpt2, tiny_llama, tiny_lora

pytestmark = pytest.mark.engine

FP4_TWICE = Quantization(load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True)
INT8 = Quantization(load_in_8bit=True)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny", hidden=64, dtype="bfloat16")


@pytest.fixture(scope="module")
def nf4(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored_in(tmp_path_factory.mktemp("packed") / "nf4", original, NF4)


def unpacked_by_bitsandbytes(folder: Path) -> dict[str, Any]:
    """Return the weights of what transformers loads, the packed ones by bitsandbytes' own functions."""
    import bitsandbytes
    import torch

    model = load(folder, torch.float32).model
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        if is_packed(module):
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                state = module.weight.quant_state
                found[f"{name}.weight"] = bitsandbytes.functional.dequantize_4bit(module.weight.data, state)
            else:
                scales = module.state.SCB if module.state.SCB is not None else module.weight.SCB
                found[f"{name}.weight"] = bitsandbytes.functional.int8_vectorwise_dequant(module.weight.data, scales)
    return found


@pytest.mark.parametrize("quantization", [NF4, FP4_TWICE, INT8], ids=str)
@pytest.mark.parametrize("write", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def test_weights_are_bitsandbytes_own_to_the_bit(tmp_path: Path, quantization: Quantization, write: Any) -> None:
    import torch

    base = stored_in(tmp_path / "packed", write(tmp_path / "base", hidden=64), quantization)
    (tmp_path / "out").mkdir()
    told: list[tuple[int, int]] = []
    dequantize(base, tmp_path / "out", dtype="float32", max_shard_bytes=50_000, advance=lambda _, *at: told.append(at))
    expected, ours = unpacked_by_bitsandbytes(base), read_tensors(tmp_path / "out")
    assert len(expected) >= 8 and len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert told[-1] == (len(ours), len(ours))
    for name, values in expected.items():
        wanted = (values.T if write is tiny_gpt2 else values).float().numpy()
        assert (ours[name] == wanted).all(), name
    # What was not packed is what it was; transformers finds a place for everything, and opens it as any other base.
    model = plain_model(tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    theirs = logits_of(load(base, torch.float32).model, IDS)
    assert difference(logits_of(model, IDS), theirs) < (0.05 if quantization.load_in_8bit else 1e-4)


def test_a_base_of_its_own_stands_for_the_packed_one(
    nf4: Path, original: Path, tmp_path: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(nf4, tmp_path / "packed"))
    packed = add_base("acme/tiny-4bit", str(folder), settings=settings).record
    adapter = tiny_lora(tmp_path / "a", original, base_id="acme/tiny-4bit", lora_alpha=32, name="a")
    _trained_over(adapter, folder)
    where: dict[str, Any] = {"stack": str(adapter), "settings": settings, "cwd": tmp_path}
    with pytest.raises(IncompatibleError, match="quantized") as caught:
        plan_merge(tmp_path / "out", **where)
    command = "adapt base add tiny-4bit-16bit --dequantize acme/tiny-4bit"
    assert command in str(caught.value.hint)
    assert main(command.split()[1:]) == 0, capsys.readouterr().err
    record = BaseStore(settings).get("tiny-4bit-16bit")
    derived = record.ref.derived_from
    assert record.source == "dequantized" and record.dtype == "float32" and record.path.is_relative_to(settings.home)
    assert derived is not None and (derived.id, derived.digest) == ("acme/tiny-4bit", packed.ref.fingerprints.weights)
    assert compare(packed.ref, record.ref) is Verdict.UNPACKED
    assert compare(record.ref, packed.ref) is Verdict.SIBLING
    # The same again changes nothing; another dtype is another base.
    assert add_base("tiny-4bit-16bit", dequantize="acme/tiny-4bit", settings=settings).status == "unchanged"
    with pytest.raises(UsageError, match="taken"):
        add_base("tiny-4bit-16bit", dequantize="acme/tiny-4bit", dtype="bfloat16", settings=settings)
    with pytest.raises(IncompatibleError) as caught:
        plan_merge(tmp_path / "out", **where)
    assert "--base tiny-4bit-16bit" in str(caught.value.hint)
    plan = plan_merge(tmp_path / "out", base="tiny-4bit-16bit", dtype="float32", **where)
    assert not plan.warnings
    merge(plan)
    ours = logits_of(plain_model(tmp_path / "out"), IDS)
    theirs = logits_of(active_over(folder, None, [(adapter, 1.0)]), IDS)
    bare = logits_of(plain_model(record.path), IDS)
    assert difference(ours, theirs) < 1e-2 < difference(ours, bare) / 3
    capsys.readouterr()


def _trained_over(adapter: Path, folder: Path) -> None:
    """Let an adapter's manifest record a packed base's fingerprints."""
    path = adapter / "adapter_manifest.json"
    data = json.loads(path.read_text())
    edit_json(path, base_model=data["base_model"] | {"fingerprints": base_fingerprints(folder).to_data()})


def test_what_cannot_be_unpacked_is_refused(nf4: Path, original: Path, tmp_path: Path, settings: Settings) -> None:
    add_base("plain", str(original), settings=settings)
    with pytest.raises(IncompatibleError, match="is not stored quantized"):
        plan_add_base("copy", dequantize="plain", settings=settings)
    with pytest.raises(IncompatibleError, match="not stored packed"):
        dequantize(original, tmp_path)
    add_base("packed", str(nf4), settings=settings)
    for wrong, words in (
        ({"source": str(nf4)}, "made and derived from"),
        ({"derived_from": "plain"}, "made and derived from"),
        ({"dtype": "int8"}, "is not one of"),
    ):
        with pytest.raises(UsageError, match=words):
            plan_add_base("copy", dequantize="packed", settings=settings, **wrong)
    with pytest.raises(UsageError, match="a name of its own"):
        plan_add_base("acme/copy", dequantize="packed", settings=settings)
    plan = plan_add_base("copy", dequantize="packed", settings=settings)
    assert [step.action for step in plan.steps] == ["dequantize", "hash", "write"]
    assert BaseStore(settings).find("copy") is None


@pytest.mark.parametrize("lost", [".absmax", ".quant_map"])
def test_a_packed_weight_without_its_scales_is_an_integrity_error(nf4: Path, tmp_path: Path, lost: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(nf4, tmp_path / "packed"))
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if name.endswith(lost))
    save_file({name: item for name, item in tensors.items() if name != gone}, folder / "model.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(IntegrityError):
        dequantize(folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))
