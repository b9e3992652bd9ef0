"""`adapt build` with the methods that PEFT has not: planned by headers, built, validated, run; broken ones found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.documents import read_manifest
from adapterhub.errors import AdapterHubError, IncompatibleError, InvalidFileError, UsageError
from adapterhub.ops._trial import _train
from adapterhub.ops._trials import make_trials
from adapterhub.ops.build import build, plan_build, prepare_build
from adapterhub.ops.compare import plan_compare
from adapterhub.ops.merge import merge, plan_merge
from adapterhub.ops.run import plan_run, run
from adapterhub.ops.validate import validate
from adapterhub.package import write_manifest
from adapterhub.progress import SILENT
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.generation import Generation
from adapterhub.spec.report import Severity
from tests.factory import edit_json, edit_tensors, tiny_gpt2, tiny_llama
from tests.ops.test_build import base_folder, home
from tests.ops.test_build_methods import other
from tests.ops.test_build_tasks import BARE
from tests.ops.test_build_tasks import home as classifiers
from tests.ops.test_build_tasks import project as classes

pytestmark = pytest.mark.engine
__all__ = ["base_folder", "classifiers", "home"]  # fixtures

HOULSBY = {"mh_adapter": "true", "non_linearity": "swish", "reduction_factor": 8}
PARALLEL = {"is_parallel": "true", "reduction_factor": 2, "init_weights": "mam_adapter", "scaling": "learned"}


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gpt2(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def both(home: Settings, gpt2_folder: Path) -> Settings:
    """Settings whose base store knows a tiny GPT-2 too."""
    BaseStore(home).add(read_base(gpt2_folder, BaseModelRef(id="tiny-gpt2"), "folder"))
    return home


def planned(folder: Path, settings: Settings, method: str, given: dict[str, Any], base: str = "tiny-llama") -> Any:
    recipe, words = other(folder, method, given)
    return plan_build(recipe, overrides=[*words, f"base_model={base}"], settings=settings)


@pytest.mark.parametrize(
    ("method", "given", "base"),
    [
        ("bottleneck", HOULSBY, "tiny-llama"),
        ("bottleneck", {**PARALLEL, "modules_to_save": "[lm_head]"}, "tiny-llama"),
        ("bitfit", {}, "tiny-gpt2"),
    ],
)
def test_a_package_is_built_and_runs(
    tmp_path: Path, both: Settings, method: str, given: dict[str, Any], base: str
) -> None:
    recipe, words = other(tmp_path, method, given, learning_rate=2e-2)
    words.append(f"base_model={base}")
    outs = [tmp_path / "first", tmp_path / "second"]
    results = [build(recipe, out=out, overrides=words, settings=both) for out in outs]
    manifest = read_manifest(outs[0])
    assert manifest.method == method
    assert manifest.metrics["eval_loss"] < manifest.metrics["eval_loss_base"]
    # The same training gives the same bytes.
    assert manifest.files == read_manifest(outs[1]).files
    # Planned by headers alone, and as many as were saved.
    weights = json.loads(_header(outs[0]))
    sizes = [_product(entry["shape"]) for name, entry in weights.items() if name != "__metadata__"]
    plan = plan_build(recipe, overrides=words, out=tmp_path / "third", settings=both)
    assert plan.trainable == sum(sizes)
    factor = f", reduction_factor {given['reduction_factor']}" if method == "bottleneck" else ""
    assert dict(plan.facts())["method"] == method + factor
    # Every check that there is was made, and none found anything.
    report = results[0].report
    assert not report.findings, report.findings
    assert {"ADP102", "ADP301", "ADP302", "ADP305", "ADP310", "ADP314", "ADP315", "ADP401"} <= set(report.passed)
    options: dict[str, Any] = {"settings": both, "cwd": tmp_path, "device": "cpu", "dtype": "float32"}
    ready = plan_run("hello", stack=str(outs[0]), generation=Generation(max_new_tokens=4), **options)
    assert [step.action for step in ready.steps][1] == ("fold" if method == "bitfit" else "activate")
    answer = run(ready)
    assert 0 < answer.new_tokens <= 4
    if method == "bitfit":
        _check_merged(tmp_path / "merged", outs[0], both, answer.loaded.model)
        return
    with pytest.raises(IncompatibleError, match="cannot be merged"):
        plan_merge(tmp_path / "merged", stack=str(outs[0]), settings=both, cwd=tmp_path)


def _check_merged(out: Path, package: Path, settings: Settings, folded: Any) -> None:
    """Merge BitFit into the base's files; the model is the one that runs with the adapter."""
    import torch
    from transformers import AutoModelForCausalLM

    merge(plan_merge(out, stack=str(package), settings=settings, cwd=package.parent))
    state = AutoModelForCausalLM.from_pretrained(str(out)).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in folded.state_dict().items())


@pytest.mark.parametrize(
    ("method", "base"), [("bottleneck", BARE), ("bitfit", "tiny-bert"), ("bottleneck", "tiny-llama")]
)
def test_a_classifier_s_head_comes_along(tmp_path: Path, classifiers: Settings, method: str, base: str) -> None:
    words = [f"method={method}", "hyperparameters={}", "training.max_steps=2"]
    result = build(classes(tmp_path, "SEQ_CLS", base), out=tmp_path / "out", overrides=words, settings=classifiers)
    assert not result.report.findings
    saved = set(json.loads(_header(tmp_path / "out")))
    head = "score" if base == "tiny-llama" else "classifier"
    assert f"base_model.model.{head}.weight" in saved
    # What the checkpoint lacks and training made anew is saved whole too.
    assert ("base_model.model.bert.pooler.dense.weight" in saved) == (base == BARE)


def _header(folder: Path) -> bytes:
    data = (folder / "adapter_model.safetensors").read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


@pytest.mark.parametrize(
    ("method", "given", "base", "error", "words"),
    [
        ("bitfit", {}, "tiny-llama", IncompatibleError, "this base model (llama) has none"),
        ("bitfit", {"target_modules": "[c_attn, q_proj]"}, "tiny-gpt2", IncompatibleError, "named q_proj"),
        ("bottleneck", {"leave_out": "[0, 1]"}, "tiny-llama", IncompatibleError, "every layer"),
        (
            "bottleneck",
            {"cross_adapter": "true", "output_adapter": "false"},
            "tiny-gpt2",
            IncompatibleError,
            "no layer",
        ),
        ("bottleneck", {"modules_to_save": "[nothing]"}, "tiny-llama", IncompatibleError, "named nothing"),
        ("bottleneck", {"r": 4}, "tiny-llama", InvalidFileError, "r: bottleneck has no such hyperparameter"),
        ("full", {}, "tiny-llama", UsageError, "a fine-tuned base is not an adapter"),
        ("partial", {"top_k_layers": 1}, "tiny-llama", UsageError, "adapt extract"),
    ],
)
def test_what_cannot_be_built_is_refused_before_the_base_is_loaded(
    tmp_path: Path,
    both: Settings,
    method: str,
    given: dict[str, Any],
    base: str,
    error: type[AdapterHubError],
    words: str,
) -> None:
    with pytest.raises(error) as caught:
        planned(tmp_path, both, method, given, base)
    assert words in f"{caught.value} {caught.value.details} {caught.value.hint}"
    assert "recipe.yaml" in str(caught.value.where)


@pytest.mark.parametrize(
    ("method", "given", "trained"), [("full", [], 35_488), ("partial", ["top_k_layers=1"], 17_760)]
)
def test_the_base_itself_is_trained_to_be_compared_with(
    tmp_path: Path, both: Settings, monkeypatch: pytest.MonkeyPatch, method: str, given: list[str], trained: int
) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(both.home))
    recipe, words = other(tmp_path, method, {})
    words += [f"hyperparameters.{text}" for text in given]
    ways = [":".join(text for text in (method, ";".join(words)) if text)]
    assert plan_compare(recipe, ways=ways, settings=both).trials[0].label == ways[0]
    result = _train({"recipe": str(recipe), "overrides": words, "keep": None, "device": "cpu"}, SILENT)
    assert (result.error, result.trainable) == (None, trained)
    assert result.metrics["eval_loss"] < result.metrics["eval_loss_base"]
    # A sweep keeps packages, and a trained base is none.
    with pytest.raises(UsageError, match="not an adapter"):
        make_trials(recipe, [("x", tuple(words))], out=tmp_path / "s", kept=True, device=None, settings=both)
    assert plan_build_size(recipe, words, both) == trained


def plan_build_size(recipe: Path, words: list[str], settings: Settings) -> int | None:
    """Return how many parameters headers say will be trained."""
    return prepare_build(recipe, None, words, "cpu", settings, baselines=True).plan.trainable


def test_an_architecture_without_a_row_is_refused(tmp_path: Path, both: Settings) -> None:
    folder = tiny_llama(tmp_path / "unheard")
    edit_json(folder / "config.json", model_type="unheard")
    BaseStore(both).add(read_base(folder, BaseModelRef(id="unheard"), "folder"))
    with pytest.raises(IncompatibleError, match="of a unheard"):
        planned(tmp_path / "a", both, "bottleneck", {}, "unheard")


def test_every_fault_of_such_a_package_is_found_by_headers(tmp_path: Path, both: Settings) -> None:
    from adapterhub.engine import adapters
    from adapterhub.package import derive_manifest
    from tests.engine.test_own_methods import attach
    from tests.engine.tiny import load

    base = BaseStore(both).get("tiny-llama").path
    other_base = BaseStore(both).get("tiny-gpt2").path

    def saved(name: str, method: str, folder: Path, base_id: str, **given: Any) -> Path:
        out = tmp_path / name
        out.mkdir()
        adapters.save(attach(load(folder), method, **given), out, base_id=base_id, base_revision=None)
        return out

    def found(folder: Path, against: str) -> set[str]:
        write_manifest(folder, derive_manifest(folder))
        report = validate(folder, base=against, settings=both)
        return {f.code for f in report.findings if f.severity is Severity.ERROR and f.code != "ADP201"}

    def changed(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
        edit_tensors(folder / "adapter_model.safetensors", change)
        return folder

    first = "base_model.model.model.layers.0.output_adapter.adapter_up.bias"
    assert found(saved("whole", "bottleneck", base, "tiny-llama"), "tiny-llama") == set()
    assert found(saved("bits", "bitfit", other_base, "tiny-gpt2"), "tiny-gpt2") == set()
    folder = changed(
        saved("less", "bottleneck", base, "tiny-llama"), lambda t: {n: v for n, v in t.items() if n != first}
    )
    assert found(folder, "tiny-llama") == {"ADP302"}
    folder = changed(saved("more", "bottleneck", base, "tiny-llama"), lambda t: t | {f"{first}.odd": t[first]})
    assert found(folder, "tiny-llama") == {"ADP301", "ADP310"}
    folder = changed(saved("short", "bottleneck", base, "tiny-llama"), lambda t: t | {first: t[first][:5]})
    assert found(folder, "tiny-llama") == {"ADP305"}
    folder = changed(saved("bare", "bottleneck", base, "tiny-llama"), lambda t: {n[17:]: v for n, v in t.items()})
    assert "ADP307" in found(folder, "tiny-llama")
    folder = saved("set", "bottleneck", base, "tiny-llama")
    edit_json(folder / "adapter_config.json", use_gating=True)
    assert {"ADP104"} <= {f.code for f in validate(folder, base="tiny-llama", settings=both).findings}
    edit_json(folder / "adapter_config.json", use_gating=False, reduction_factor="8")
    assert found(folder, "tiny-llama") == {"ADP102"}
    edit_json(folder / "adapter_config.json", reduction_factor=8)
    assert found(folder, "tiny-llama") == {"ADP305"}
    # On another architecture nothing is met.
    assert "ADP314" in found(saved("moved", "bottleneck", base, "tiny-llama"), "tiny-gpt2")
    assert "ADP314" in found(saved("biased", "bitfit", other_base, "tiny-gpt2"), "tiny-llama")
    name = "base_model.model.transformer.h.1.mlp.c_fc.bias_delta"
    folder = changed(
        saved("some", "bitfit", other_base, "tiny-gpt2"), lambda t: {n: v for n, v in t.items() if n != name}
    )
    assert found(folder, "tiny-gpt2") == {"ADP302"}
    folder = changed(saved("long", "bitfit", other_base, "tiny-gpt2"), lambda t: t | {name: t[name][:3]})
    assert found(folder, "tiny-gpt2") == {"ADP305"}
    # Without a base the same checks are left out, and say so.
    report = validate(saved("alone", "bottleneck", base, "nowhere"), settings=both)
    left = {f.code for f in report.findings if f.severity is Severity.NOT_CHECKED}
    assert {"ADP301", "ADP302", "ADP305", "ADP314"} <= left and "ADP404" not in left
