from __future__ import annotations

import json
import subprocess
import sys

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.documents import read_manifest
from adapterhub.errors import InvalidFileError, UnsatisfiedError, UsageError
from adapterhub.ops._facts import Facts
from adapterhub.ops.pack import pack, plan_pack
from adapterhub.ops.validate import validate
from adapterhub.package import open_package
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.quantization import Quantization
from adapterhub.spec.report import Severity
from tests.factory import edit_json, tiny_llama, tiny_lora, write_tokenizer

CONFIG, MANIFEST = "adapter_config.json", "adapter_manifest.json"
CARD = """---
license: apache-2.0
language:
- es
- not a language
tags:
- lora
- "base_model:adapter:tiny"
- legal
base_model: acme/tiny-llama
---
# An adapter
"""


@pytest.fixture
def base(tmp_path, settings):
    folder = tiny_llama(tmp_path / "base")
    BaseStore(settings).add(read_base(folder, BaseModelRef(id="tiny-llama"), "folder"))
    return folder


@pytest.fixture
def plain(tmp_path, base):
    return tiny_lora(tmp_path / "Legal-LoRA", base, manifest=False)


def test_a_plain_folder_is_packed_as_its_files_say(plain, settings):
    plan = plan_pack(plain, settings=settings)
    assert [step.action for step in plan.steps] == ["write"] and plan.changes
    assert not (plain / MANIFEST).exists(), "a plan writes nothing"
    manifest = pack(plan)
    assert read_manifest(plain) == manifest == open_package(plain).manifest
    assert (manifest.name, manifest.base_model.id, manifest.method) == ("Legal-LoRA", "tiny-llama", "lora")
    assert manifest.derived
    assert "--base" in plan.warnings[0]


def test_a_second_time_there_is_nothing_to_do(plain, settings):
    pack(plan_pack(plain, settings=settings))
    before = (plain / MANIFEST).stat().st_mtime_ns
    plan = plan_pack(plain, settings=settings)
    assert not plan.changes
    pack(plan)
    assert (plain / MANIFEST).stat().st_mtime_ns == before


def test_facts_are_taken_and_the_base_is_fingerprinted(plain, settings):
    facts = Facts(
        name="legal",
        version="1.2.0",
        base="tiny-llama",
        summary="Reads contracts",
        license="MIT",
        keywords=("law",),
        domains=("legal",),
        languages=("es", "en"),
        labels=("yes", "no"),
        quantization=Quantization(load_in_4bit=True),
    )
    plan = plan_pack(plain, facts, settings=settings)
    assert plan.warnings == ()
    manifest = pack(plan)
    assert (manifest.name, str(manifest.version), manifest.license) == ("legal", "1.2.0", "MIT")
    assert (manifest.domains, manifest.languages, manifest.labels) == (("legal",), ("es", "en"), ("yes", "no"))
    assert manifest.quantization == Quantization(load_in_4bit=True)
    assert manifest.base_model == BaseStore(settings).get("tiny-llama").ref
    report = validate(plain, settings=settings)
    assert [f.code for f in report.findings if f.severity is not Severity.NOT_CHECKED] == ["ADP111"]


def test_the_card_says_what_no_other_file_does(plain, settings):
    (plain / "README.md").write_text(CARD)
    edit_json(plain / CONFIG, base_model_name_or_path="/home/me/llama")
    manifest = plan_pack(plain, settings=settings).manifest
    assert (manifest.license, manifest.languages, manifest.keywords) == ("apache-2.0", ("es",), ("legal",))
    assert manifest.base_model.id == "acme/tiny-llama"
    assert plan_pack(plain, Facts(license="MIT"), settings=settings).manifest.license == "MIT"
    edit_json(plain / CONFIG, base_model_name_or_path="acme/other")
    assert plan_pack(plain, settings=settings).manifest.base_model.id == "acme/other"


def test_a_broken_card_is_left_out_with_a_warning(plain, settings):
    (plain / "README.md").write_text("---\nlicense: [\n---\n")
    plan = plan_pack(plain, settings=settings)
    assert plan.manifest.license is None and any("README.md" in text for text in plan.warnings)


def test_another_manifest_is_replaced_only_when_told(tmp_path, base, settings):
    folder = tiny_lora(tmp_path / "a", base, name="legal", version="1.0.0")
    assert not plan_pack(folder, settings=settings).changes
    edit_json(folder / CONFIG, lora_alpha=99)
    write_tokenizer(folder)
    before = (folder / MANIFEST).read_bytes()
    with pytest.raises(UsageError, match="says otherwise: hyperparameters, files") as caught:
        plan_pack(folder, settings=settings)
    assert "--force" in (caught.value.hint or "")
    assert (folder / MANIFEST).read_bytes() == before
    plan = plan_pack(folder, force=True, settings=settings)
    assert any("version stays 1.0.0" in text for text in plan.warnings)
    manifest = pack(plan)
    assert manifest.hyperparameters["lora_alpha"] == 99 and "tokenizer.json" in {e.path for e in manifest.files}
    # What no file says is kept.
    assert (manifest.name, str(manifest.version)) == ("legal", "1.0.0")
    assert manifest.base_model.fingerprints.weights is not None
    assert not [f for f in validate(folder, settings=settings).findings if f.severity is Severity.ERROR]


def test_force_warns_of_a_provenance_that_no_longer_fits(tmp_path, base, settings):
    folder = tiny_lora(tmp_path / "a", base)
    (folder / "adapter_provenance.json").write_text("{}")
    plan = plan_pack(folder, Facts(version="2.0.0"), force=True, settings=settings)
    assert any("adapter_provenance.json" in text for text in plan.warnings)


def test_a_broken_manifest(tmp_path, base, settings):
    folder = tiny_lora(tmp_path / "a", base)
    (folder / MANIFEST).write_text("{")
    with pytest.raises(InvalidFileError) as caught:
        plan_pack(folder, settings=settings)
    assert "--force" in (caught.value.hint or "")
    assert pack(plan_pack(folder, force=True, settings=settings)).derived


def test_a_derived_version_follows_the_files(plain, settings):
    first = pack(plan_pack(plain, settings=settings))
    edit_json(plain / CONFIG, lora_alpha=99)
    second = pack(plan_pack(plain, force=True, settings=settings))
    assert first.version != second.version and second.derived


@pytest.mark.parametrize(
    ("facts", "where"),
    [
        (Facts(name="a/b"), "--name"),
        (Facts(version="1.0"), "--version"),
        (Facts(base="/data/llama"), "--base"),
        (Facts(languages=("español",)), "languages"),
        (Facts(summary="x\x1b[2J"), "summary"),
    ],
)
def test_facts_that_break_the_format_are_refused(plain, settings, facts, where):
    with pytest.raises(UsageError) as caught:
        plan_pack(plain, facts, settings=settings)
    assert where in str(caught.value)


def test_what_cannot_be_packed(tmp_path, plain, settings):
    edit_json(plain / CONFIG, base_model_name_or_path=None)
    with pytest.raises(UnsatisfiedError) as caught:
        plan_pack(plain, settings=settings)
    assert "--base" in (caught.value.hint or "")
    assert plan_pack(plain, Facts(base="acme/new#v1"), settings=settings).manifest.base_model.revision == "v1"
    with pytest.raises(UnsatisfiedError, match="no such folder"):
        plan_pack(tmp_path / "nowhere", settings=settings)


def test_the_command(plain, private_home):
    def adapt(*words):
        return subprocess.run(
            [sys.executable, "-m", "adapterhub.cli.main", "pack", *words], capture_output=True, text=True
        )

    done = adapt(str(plain), "--version", "1.0.0", "--base", "tiny-llama", "--dry-run", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["manifest"]["version"] == "1.0.0"
    assert not (plain / MANIFEST).exists()
    done = adapt(str(plain), "--version", "1.0.0", "--base", "tiny-llama", "--license", "MIT")
    assert done.returncode == 0 and "wrote" in done.stderr and done.stdout == ""
    assert read_manifest(plain).license == "MIT"
    done = adapt(str(plain), "--version", "1.1.0")
    assert done.returncode == 2 and "--force" in done.stderr
    done = adapt(str(plain), "--load-in-4bit", "--load-in-8bit")
    assert done.returncode == 2 and "exclude" in done.stderr
