"""`adapt validate --meta` and `--deep` for every method: what PEFT saves has no fault, and every fault is told."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapterhub.bases import BaseStore, read_base
from adapterhub.catalog.methods import METHODS, check_hyperparameters, method_named
from adapterhub.catalog.neutral_values import NEUTRAL
from adapterhub.ops import _check_meta
from adapterhub.ops.validate import validate
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.report import Severity
from tests.catalog.family_configs import tiny_config
from tests.engine.test_methods import CASES
from tests.engine.tiny import load
from tests.factory import edit_json, edit_tensors, tiny_gpt2, tiny_llama, tiny_lora, write_tiny_manifest

pytestmark = pytest.mark.engine

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FIT = {"ADP301", "ADP302", "ADP303", "ADP305", "ADP314", "ADP403", "ADP404"}
ALWAYS = {"ADP204", "ADP205"}
# One way to begin of each method (more of them change nothing in names and shapes).
WAYS = {
    **{name: CASES[name] for name in CASES if name == CASES[name][0] or name.split("-")[0] not in CASES},
    "trainable_tokens": ("trainable_tokens", {"token_indices": [3, 5], "target_modules": ["embed_tokens"]}),
    "bottleneck": ("bottleneck", {}),
    "vera-drawn": CASES["vera-drawn"],
    "vblora-topk": CASES["vblora-topk"],
    "unilora-indices": CASES["unilora-indices"],
}
# Their start is no identity: prompts, drawn numbers, and what only the base's weights tell.
STARTS_AWAY = {"vblora", "unilora", "fourierft", "c3a", "pissa", "olora", "bottleneck"}
NOT_TOLD = {"ln_tuning", "trainable_tokens", "osf", "deft", "hra"}


def codes(report, *severities: Severity) -> set[str]:
    return {
        item.code for item in report.findings if item.severity in (severities or (Severity.ERROR, Severity.WARNING))
    }


def told(report) -> str:
    return "\n".join(f"{item.code} {item.severity.value} {item.where}: {item.message}" for item in report.findings)


def add(settings, folder, name="tiny-llama"):
    BaseStore(settings).add(read_base(folder, BaseModelRef(id=name), "folder"))
    return folder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load(tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama"))


@pytest.fixture
def base(loaded, settings):
    return add(settings, Path(loaded.model.name_or_path))


def fresh(loaded, folder, method, given):
    """Save an adapter as it is before any step of training, as PEFT does."""
    from adapterhub.engine import adapters

    row = method_named(method)
    values = dict(check_hyperparameters(row, given, where="test"))
    if "target_modules" in values and values["target_modules"] is None and method != "bitfit":
        values["target_modules"] = ("input_layernorm",) if row.targets == "norms" else ("q_proj", "v_proj")
    if "feedforward_modules" in values:
        values["feedforward_modules"] = ()
    one = dataclasses.replace(loaded, model=copy.deepcopy(loaded.model))
    model = adapters.attach(one, values, task="CAUSAL_LM", seed=0, method=method, steps=10)
    folder.mkdir()
    adapters.save(model, folder, base_id="tiny-llama", base_revision=None, start=adapters.start_of(model))
    return folder


def test_every_method_that_can_be_built_is_here():
    mine = {method for method, _ in WAYS.values()}
    assert {row.name for row in METHODS.values() if row.buildable} - mine == {"bitfit"}  # a Llama has no biases


@pytest.mark.parametrize("name", WAYS)
def test_every_method(name, loaded, base, tmp_path, settings):
    """A fresh adapter fits by --meta and does nothing by --deep; with other numbers it does something."""
    method, given = WAYS[name]
    folder = fresh(loaded, tmp_path / "a", method, given)
    report = validate(folder, meta=True, deep=True, settings=settings)
    assert codes(report) - ALWAYS - {"ADP402"} == set(), told(report)
    assert set(report.passed) >= FIT, told(report)
    row = NEUTRAL.get(METHODS[method].peft_type)
    assert (row is None) == (method in NOT_TOLD)
    if row is None:
        assert "ADP402" in codes(report, Severity.NOT_CHECKED)
        return
    assert ("ADP402" in codes(report)) != (row.always or method in STARTS_AWAY), told(report)
    rng = np.random.default_rng(0)
    tensors = load_file(folder / WEIGHTS)
    changed = {k: rng.normal(size=v.shape).astype("f4") if v.dtype == np.float32 else v for k, v in tensors.items()}
    save_file(changed, folder / WEIGHTS)
    assert "ADP402" in validate(folder, deep=True, settings=settings).passed
    # A tensor under another name, which is one too many and one too few, and one of another shape.
    first = next(iter(sorted(tensors)))
    save_file({f"{k}x.y" if k == first else k: v for k, v in changed.items()}, folder / WEIGHTS)
    found = codes(validate(folder, meta=True, settings=settings))
    assert found & {"ADP301", "ADP303"} and found & {"ADP302", "ADP314"}, found
    save_file({k: np.ones((3, *v.shape), "f4") if k == first else v for k, v in changed.items()}, folder / WEIGHTS)
    assert "ADP305" in codes(validate(folder, meta=True, settings=settings))


# What headers leave open or get wrong.
def test_it_is_answered_only_when_asked(loaded, base, tmp_path, settings):
    folder = fresh(loaded, tmp_path / "a", "ia3", {})
    report = validate(folder, settings=settings)
    assert "ADP404" in codes(report, Severity.NOT_CHECKED) and not FIT & set(report.passed)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_replication": [(0, 2), (0, 2)], "target_modules": ["q_proj"]},
        {"target_parameters": ["q_proj.weight"], "target_modules": []},
        {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
        {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]},
        {"target_modules": ["embed_tokens", "q_proj"], "bias": "lora_only"},
        {"target_modules": r".*layers\.1\..*(q|v)_proj", "rank_pattern": {"v_proj": 3}},
        {"target_modules": None},
    ],
)
def test_every_form_of_lora_that_peft_saves(changes, loaded, base, tmp_path, settings):
    from peft import LoraConfig, get_peft_model

    model = copy.deepcopy(loaded.model)
    config = LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", **changes)
    get_peft_model(model, config).save_pretrained(tmp_path / "a")
    report = validate(tmp_path / "a", base="tiny-llama", meta=True, settings=settings)
    assert codes(report) <= ALWAYS and set(report.passed) >= FIT, told(report)


def test_a_base_that_is_stored_packed_or_of_no_known_family(tmp_path, settings):
    packed = tiny_llama(tmp_path / "packed")
    edit_json(packed / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    add(settings, packed)
    folder = tiny_lora(tmp_path / "a", packed)
    assert "ADP305" in codes(validate(folder, settings=settings), Severity.NOT_CHECKED)
    report = validate(folder, meta=True, settings=settings)
    assert codes(report) == set() and set(report.passed) >= FIT, told(report)
    edit_tensors(folder / WEIGHTS, lambda t: {k: np.ones((v.shape[0] + 1, *v.shape[1:])) for k, v in t.items()})
    write_tiny_manifest(folder, packed)
    assert "ADP305" in codes(validate(folder, meta=True, settings=settings))


def test_where_the_model_cannot_be_built_that_is_said_and_nothing_else_changes(tmp_path, settings, monkeypatch):
    novel = tiny_llama(tmp_path / "novel")
    edit_json(novel / "config.json", auto_map={"AutoModelForCausalLM": "modeling.X"})
    add(settings, novel)
    folder = tiny_lora(tmp_path / "a", novel)
    plain, meta = validate(folder, settings=settings), validate(folder, meta=True, settings=settings)
    assert next(f.message for f in meta.findings if f.code == "ADP403").endswith("which adapterhub never runs")
    assert codes(plain) == codes(meta) and set(plain.passed) - set(meta.passed) == {"ADP403"}
    other = tiny_lora(tmp_path / "b", novel, base_id="not-here")
    assert "--meta needs the base: the base not-here is not here" in told(validate(other, meta=True, settings=settings))
    monkeypatch.setattr(_check_meta, "_LIBRARIES", ("torch", "no_such_library"))
    report = validate(folder, meta=True, settings=settings)
    assert "needs no_such_library, not installed here" in told(report)


def test_a_bias_adapter_by_its_own_rules(tmp_path, settings):
    loaded = load(add(settings, tiny_gpt2(tmp_path / "gpt2"), "tiny-llama"))
    folder = fresh(loaded, tmp_path / "a", "bitfit", {})
    report = validate(folder, meta=True, deep=True, settings=settings)
    assert codes(report) - ALWAYS == {"ADP402"} and set(report.passed) >= FIT - {"ADP303"}, told(report)


def test_numbers_that_nobody_could_count_to_are_not_counted(loaded, base, tmp_path, settings):
    folder = fresh(loaded, tmp_path / "a", "peanut", {"r": 4, "depth": 1})
    edit_json(folder / CONFIG, depth=10**9)
    report = validate(folder, meta=True, settings=settings)
    assert "depth is 1000000000" in told(report) and "ADP403" in codes(report, Severity.NOT_CHECKED)


def test_experts_that_the_built_model_fuses(tmp_path, settings):
    """PEFT's own adapter of Mixtral's fused experts; headers know the experts one by one."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(tiny_config("mixtral", pad_token_id=0)).save_pretrained(tmp_path / "base")
    add(settings, tmp_path / "base", "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    targets = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}
    config = LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", **targets)
    get_peft_model(model, config).save_pretrained(tmp_path / "a")
    assert "ADP403" in codes(validate(tmp_path / "a", base="base", settings=settings), Severity.NOT_CHECKED)
    report = validate(tmp_path / "a", base="base", meta=True, settings=settings)
    assert codes(report) <= ALWAYS and set(report.passed) >= FIT, told(report)
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    expert = next(name for name in tensors if "experts" in name)
    save_file({name: item for name, item in tensors.items() if name != expert}, tmp_path / "a" / WEIGHTS)
    assert "ADP302" in codes(validate(tmp_path / "a", base="base", meta=True, settings=settings))


@pytest.mark.parametrize("kind", ["t5", "deberta-v2", "llama"])
def test_classifiers_and_what_their_class_makes_anew(kind, tmp_path, settings):
    import transformers
    from peft import LoraConfig, get_peft_model

    config = tiny_config(kind, pad_token_id=0)
    saver = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModel
    saver.from_config(config).save_pretrained(tmp_path / "base")
    add(settings, tmp_path / "base", "base")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    whole = {"t5": ["classification_head"], "deberta-v2": None, "llama": None}[kind]
    lora = LoraConfig(r=2, init_lora_weights=False, task_type="SEQ_CLS", target_modules="all-linear")
    lora.modules_to_save = whole
    if kind == "t5":
        lora.target_modules = ["q", "v"]
    get_peft_model(model, lora).save_pretrained(tmp_path / "a")
    plain = validate(tmp_path / "a", base="base", settings=settings)
    assert not codes(plain) & {"ADP301", "ADP307", "ADP314"}, told(plain)
    report = validate(tmp_path / "a", base="base", meta=True, settings=settings)
    # DeBERTa's pooler stands between body and head; PEFT adapts it, and saves it not.
    lacking = {"ADP308"} if kind == "deberta-v2" else set()
    assert codes(report) - ALWAYS == lacking and set(report.passed) >= FIT, told(report)
    if kind == "deberta-v2":
        assert "ADP308" in codes(plain)


def test_settings_of_a_newer_peft_for_any_method(loaded, base, tmp_path, settings):
    folder = fresh(loaded, tmp_path / "a", "ia3", {})
    edit_json(folder / CONFIG, new_scaling="cubic", new_and_off=False)
    report = validate(folder, meta=True, settings=settings)
    assert codes(report) - ALWAYS == {"ADP104"} and "new_scaling" in told(report) and "new_and_off" not in told(report)
