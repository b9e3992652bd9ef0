"""Each row of FAULTS breaks a sound package in one way; the report has to name that, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.catalog.checks import CHECKS
from adapterhub.errors import ExitCode, UnsatisfiedError, UsageError
from adapterhub.ops.validate import check_package, validate
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.report import Severity
from tests.factory import (
    edit_json,
    edit_tensors,
    tiny_gpt2,
    tiny_llama,
    tiny_lora,
    write_json,
    write_tiny_manifest,
    write_tokenizer,
)
from tests.ops.broken_packages import CONFIG, FAULTS, MANIFEST, WEIGHTS, change_config, rename, with_tensor

NEVER_READ = {"ADP401", "ADP402"}


def add_base(settings, folder: Path, id: str = "tiny-llama", **ref) -> None:
    BaseStore(settings).add(read_base(folder, BaseModelRef(id=id, **ref), "folder"))


def findings(report) -> dict[str, list[str]]:
    """Faults (errors and warnings) by code."""
    found: dict[str, list[str]] = {}
    for item in report.findings:
        if item.severity is not Severity.NOT_CHECKED:
            found.setdefault(item.code, []).append(f"{item.where}: {item.message}")
            assert item.hint
    return found


def not_checked(report) -> set[str]:
    return {item.code for item in report.findings if item.severity is Severity.NOT_CHECKED}


@pytest.fixture
def base(tmp_path, settings):
    folder = tiny_llama(tmp_path / "base")
    add_base(settings, folder)
    return folder


@pytest.fixture
def package(tmp_path, base):
    return tiny_lora(tmp_path / "package", base)


def test_a_sound_package_passes_every_check(package, settings):
    report = validate(package, settings=settings)
    assert report.ok and report.exit_code is ExitCode.OK
    assert findings(report) == {} and not_checked(report) == NEVER_READ
    # No provenance, no tokenizer, no classifier, no other method, no single document.
    left_out = {"ADP007", "ADP209", "ADP308", "ADP404", "ADP501"}
    assert set(report.passed) == set(CHECKS) - NEVER_READ - left_out


def test_gpt2_with_its_transposed_weights_and_missing_prefix_passes(tmp_path, settings):
    base = tiny_gpt2(tmp_path / "gpt2")
    add_base(settings, base, "gpt2")
    folder = tiny_lora(
        tmp_path / "a",
        base,
        prefix="transformer.",
        target_modules=("c_attn", "c_proj", "c_fc"),
        base_id="gpt2",
        use_dora=True,
    )
    report = validate(folder, settings=settings)
    assert findings(report) == {} and not_checked(report) == NEVER_READ


@pytest.mark.parametrize(
    "settings_of_lora",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 1}},
        {"target_modules": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")},
        {"config": {"target_modules": r".*\.(q|v)_proj"}},
        {"target_modules": ("lm_head", "q_proj")},
        {"task_type": "FEATURE_EXTRACTION", "bare": True},
    ],
)
def test_other_sound_forms_pass(tmp_path, base, settings, settings_of_lora):
    bare = settings_of_lora.pop("bare", False) if "bare" in settings_of_lora else False
    folder = tiny_lora(tmp_path / "a", base, **settings_of_lora)
    if bare:
        edit_tensors(
            folder / WEIGHTS, lambda t: {k.replace("model.model.model.", "model.model."): v for k, v in t.items()}
        )
        write_tiny_manifest(folder, base)
    assert findings(validate(folder, settings=settings)) == {}


def test_all_linear_means_every_linear_but_the_head(tmp_path, base, settings):
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    folder = tiny_lora(tmp_path / "a", base, target_modules=names, config={"target_modules": "all-linear"})
    assert findings(validate(folder, settings=settings)) == {}
    folder = tiny_lora(tmp_path / "b", base, target_modules=names[1:], config={"target_modules": "all-linear"})
    assert set(findings(validate(folder, settings=settings))) == {"ADP302"}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name, package, base, settings):
    change, codes, exit_code, word = FAULTS[name]
    change(package, base)
    report = validate(package, settings=settings)
    found = findings(report)
    assert set(found) == codes
    assert report.exit_code is exit_code
    assert report.ok is (exit_code is ExitCode.OK)
    assert any(word in text for texts in found.values() for text in texts), found
    assert not set(report.passed) & set(found)


def test_every_fault_is_told_at_once(package, base, settings):
    edit_json(package / CONFIG, lora_alpha=99, r=8, use_dora=True, task_type=None, auto_map={"a": "b"}, new=1)
    codes = set(findings(validate(package, settings=settings)))
    assert codes >= {"ADP005", "ADP104", "ADP105", "ADP106", "ADP108", "ADP306", "ADP312"}


# The base model's identity.
def test_another_base_of_the_same_shapes_is_refused(tmp_path, package, settings):
    add_base(settings, tiny_llama(tmp_path / "other", seed=7), "other-llama")
    report = validate(package, base="other-llama", settings=settings)
    assert set(findings(report)) == {"ADP201"}
    assert report.exit_code is ExitCode.INCOMPATIBLE
    assert "trained on tiny-llama" in findings(report)["ADP201"][0]


def test_the_same_weights_in_another_folder_and_sharding_are_the_same_base(tmp_path, package, settings):
    add_base(settings, tiny_llama(tmp_path / "shards", shards=3), "acme/copy")
    assert findings(validate(package, base="acme/copy", settings=settings)) == {}


def test_another_revision_is_a_warning(tmp_path, settings):
    one, two = tiny_llama(tmp_path / "one"), tiny_llama(tmp_path / "two", seed=1)
    package = tiny_lora(tmp_path / "a", one, base_id="acme/llama")
    add_base(settings, two, "acme/llama", revision="a" * 40)
    report = validate(package, settings=settings)
    assert set(findings(report)) == {"ADP202"} and report.ok


def test_a_relative_is_a_warning(tmp_path, base, package, settings):
    from adapterhub.spec.base_model import Derivation

    derivation = Derivation(how="fine-tuned", id="tiny-llama")
    add_base(settings, tiny_llama(tmp_path / "chat", seed=3), "tiny-llama-chat", derived_from=derivation)
    report = validate(package, base="tiny-llama-chat", settings=settings)
    assert set(findings(report)) == {"ADP203"} and report.ok


def test_a_plain_folder_records_nothing_of_its_base(tmp_path, base, settings):
    folder = tiny_lora(tmp_path / "plain", base, manifest=False)
    report = validate(folder, settings=settings)
    assert set(findings(report)) == {"ADP204"} and report.ok
    assert not_checked(report) == {"ADP005", "ADP111", "ADP206", "ADP207"} | NEVER_READ


def test_another_tokenizer_and_template_are_warnings(tmp_path, package, settings):
    other = tiny_llama(tmp_path / "other")
    write_tokenizer(other, chat_template="{{ messages }}")
    data = json.loads((other / "tokenizer.json").read_text())
    data["added_tokens"][0]["content"] = data["added_tokens"][0]["content"].upper()
    write_json(other / "tokenizer.json", data)
    add_base(settings, other, "other")
    report = validate(package, base="other", settings=settings)
    assert set(findings(report)) == {"ADP206", "ADP207"} and report.ok


def test_the_same_weights_under_another_config_are_a_warning(tmp_path, package, settings):
    other = tiny_llama(tmp_path / "other")
    edit_json(other / "config.json", rope_theta=500000.0)
    add_base(settings, other, "other")
    assert set(findings(validate(package, base="other", settings=settings))) == {"ADP202"}


def test_more_layers_than_the_base(tmp_path, package, settings):
    add_base(settings, tiny_llama(tmp_path / "shallow", layers=1), "shallow")
    found = findings(validate(package, base="shallow", settings=settings))
    assert set(found) == {"ADP201", "ADP301"}
    assert "layers up to 1, the base has 1" in found["ADP301"][0]


def test_another_width_and_architecture(tmp_path, package, settings):
    add_base(settings, tiny_llama(tmp_path / "wide", hidden=64), "wide")
    assert set(findings(validate(package, base="wide", settings=settings))) == {"ADP201", "ADP305"}
    add_base(settings, tiny_gpt2(tmp_path / "gpt2"), "gpt2")
    report = validate(package, base="gpt2", settings=settings)
    assert set(findings(report)) == {"ADP201", "ADP301", "ADP314"}


def test_lora_on_tied_embeddings_is_a_warning(tmp_path, settings):
    tied = tiny_llama(tmp_path / "tied", tie=True)
    add_base(settings, tied, "tied")
    folder = tiny_lora(tmp_path / "a", tied, base_id="tied")
    assert findings(validate(folder, settings=settings)) == {}
    for name in ("A", "B"):
        shape = (4, 32) if name == "A" else (264, 4)
        edit_tensors(
            folder / WEIGHTS,
            lambda t, name=name, shape=shape: with_tensor(t, f"base_model.model.lm_head.lora_{name}.weight", shape),
        )
    edit_json(folder / CONFIG, target_modules=["lm_head", "q_proj", "v_proj"])
    write_tiny_manifest(folder, tied, base_id="tied")
    report = validate(folder, settings=settings)
    assert set(findings(report)) == {"ADP309"} and report.ok


def test_lora_on_an_embedding_is_met_by_its_rows(tmp_path, base, settings):
    folder = tiny_lora(tmp_path / "a", base)
    at = "base_model.model.model.embed_tokens.lora_embedding"
    edit_json(folder / CONFIG, target_modules=["embed_tokens", "q_proj", "v_proj"])
    for rows, codes in ((264, set()), (300, {"ADP208"})):
        edit_tensors(folder / WEIGHTS, lambda t, n=rows: t | {f"{at}_A": np.ones((4, n)), f"{at}_B": np.ones((32, 4))})
        write_tiny_manifest(folder, base)
        assert set(findings(validate(folder, settings=settings))) == codes


def test_without_a_base_what_needs_one_is_not_checked(tmp_path, settings):
    base = tiny_llama(tmp_path / "base")
    report = validate(tiny_lora(tmp_path / "a", base), settings=settings)
    assert report.ok and findings(report) == {}
    needing = {"ADP201", "ADP206", "ADP207", "ADP208", "ADP301", "ADP302", "ADP304", "ADP305", "ADP309", "ADP314"}
    assert not_checked(report) == needing | NEVER_READ
    assert not set(report.passed) & (needing | {"ADP202", "ADP203", "ADP204"})
    hints = [item.hint for item in report.findings if item.code == "ADP201"]
    assert hints == ["adapt base add tiny-llama --from FOLDER, or name one that is here with --base"]


def test_a_base_that_was_changed_on_disk_is_not_checked_against(package, base, settings):
    edit_json(base / "config.json", rope_theta=1.0)
    report = validate(package, settings=settings)
    assert "ADP201" in not_checked(report) and "ADP301" in not_checked(report)


def test_a_quantized_base_and_an_unknown_family_are_not_guessed_at(tmp_path, settings):
    base = tiny_llama(tmp_path / "q")
    edit_json(base / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    add_base(settings, base)
    report = validate(tiny_lora(tmp_path / "a", base), settings=settings)
    assert findings(report) == {}
    assert {"ADP301", "ADP302", "ADP305"} <= not_checked(report)
    novel = tiny_llama(tmp_path / "novel")
    edit_json(novel / "config.json", model_type="novel-vlm")
    add_base(settings, novel, "novel")
    package = tiny_lora(tmp_path / "b", novel, base_id="novel")
    assert findings(validate(package, settings=settings)) == {}
    edit_tensors(package / WEIGHTS, lambda t: rename(t, "model.model.model.", "model.model.language_model."))
    write_tiny_manifest(package, novel, base_id="novel")
    report = validate(package, settings=settings)
    assert findings(report) == {} and {"ADP301", "ADP307", "ADP314"} <= not_checked(report)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_parameters": ["mlp.experts.gate_up_proj"]},
        {"layer_replication": [[0, 2], [0, 2]]},
        {"use_qalora": True},
    ],
)
def test_what_only_the_built_model_has_is_not_checked(package, base, settings, changes):
    change_config(**changes)(package, base)
    report = validate(package, settings=settings)
    assert findings(report) == {} and "ADP403" in not_checked(report)


def test_another_method_is_not_checked_in_depth(package, base, settings):
    edit_json(package / CONFIG, peft_type="IA3")
    write_tiny_manifest(package, base)
    edit_json(package / MANIFEST, method="ia3")
    report = validate(package, settings=settings)
    assert "ADP404" in not_checked(report) and not {"ADP301", "ADP302"} & set(report.passed)


def test_a_stack_package_has_no_weights_to_check(tmp_path, package, settings):
    data = json.loads((package / MANIFEST).read_text())
    requires = [{"requirement": "acme/legal@1.0.0", "weight": 0.5}]
    data |= {"kind": "stack", "method": None, "task": None, "hyperparameters": {}, "files": [], "requires": requires}
    folder = tmp_path / "stack"
    folder.mkdir()
    write_json(folder / MANIFEST, data)
    report = validate(folder, settings=settings)
    assert findings(report) == {} and not {"ADP001", "ADP301"} & set(report.passed)


# Where the package is.
def test_what_is_not_there(tmp_path, settings):
    with pytest.raises(UnsatisfiedError, match="no such folder"):
        validate(tmp_path / "nowhere", settings=settings)
    with pytest.raises(UsageError, match="nowhere"):
        validate("nowhere", settings=settings, cwd=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnsatisfiedError, match="holds neither"):
        validate("empty", settings=settings, cwd=tmp_path)


def test_a_base_that_was_asked_for_and_is_not_here(package, settings):
    with pytest.raises(UnsatisfiedError, match="no base model nope"):
        validate(package, base="nope", settings=settings)


def test_a_folder_by_its_bare_name(package, settings):
    assert validate("package", settings=settings, cwd=package.parent).ok


def test_check_package_takes_a_record(package, base, settings):
    assert check_package(package, base=BaseStore(settings).get("tiny-llama")).ok


def test_every_check_is_tested_here():
    """A row that no test makes fail could be dead."""
    here = Path(__file__).parent
    text = "".join((here / name).read_text() for name in ("broken_packages.py", "test_validate.py"))
    assert [code for code in CHECKS if code not in text] == []


def test_it_imports_nothing_heavy(package, settings):
    code = (
        "import sys\n"
        "from adapterhub.cli.main import main\n"
        "code = main(['validate', sys.argv[1], '--json'])\n"
        "print([m for m in ('torch', 'numpy', 'transformers', 'peft', 'huggingface_hub') if m in sys.modules],"
        "file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(package)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True
    assert done.stderr.splitlines()[-1] == "[]"
