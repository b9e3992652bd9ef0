"""Where licences are read from, and what install and publish make of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from packaging.version import Version

from adapterhub.bases import BaseStore, read_base
from adapterhub.errors import UnsatisfiedError
from adapterhub.ops._licences import (
    base_licence_of,
    data_licences_of,
    install_warnings,
    licence_of_card,
    licence_of_folder,
    publish_findings,
    refuse_at_publish,
)
from adapterhub.package import open_package
from adapterhub.settings import Settings
from adapterhub.spec._decode import freeze
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.manifest import Manifest
from tests.factory import tiny_llama, tiny_lora
from tests.ops.world import World

CARD = "---\n{}\n---\n# A model\nlicense: mit\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "tiny-llama")


@pytest.fixture
def manifest(base: Path) -> Manifest:
    return replace(open_package(tiny_lora(base.parent / "lora", base)).manifest, license="apache-2.0")


@pytest.mark.parametrize(
    ("header", "licence"),
    [
        ("license: Apache-2.0", "apache-2.0"),
        ('tags: [a]\nlicense: "cc-by-nc-4.0"  # see below', "cc-by-nc-4.0"),
        ("license: other\nlicense_name: Tongyi-Qianwen\nlicense_link: LICENSE", "tongyi-qianwen"),
        ("license: other", "other"),
        ("license:\n- mit", "mit"),
        ("license: [llama3.1]", "llama3.1"),
        ("license: [mit, apache-2.0]", None),
        ("license:\n  - mit\n  - apache-2.0", None),
        ("extra:\n  license: mit", None),
        ("library_name: peft", None),
        # What our own reader of YAML refuses stands in cards all the same.
        ("tags: &x [a]\ntags: *x\nlicense: gemma", "gemma"),
    ],
)
def test_the_header_of_a_card(header: str, licence: str | None) -> None:
    assert licence_of_card(CARD.format(header)) == licence
    assert licence_of_card(CARD.format(header).replace("\n", "\r\n")) == licence


def test_a_card_without_a_header_says_nothing() -> None:
    assert licence_of_card("license: mit\n") is None
    assert licence_of_card("") is None


def test_the_folder_s_card_counts_before_its_licence_file(tmp_path: Path) -> None:
    assert licence_of_folder(tmp_path) is None
    (tmp_path / "LICENSE.txt").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n")
    assert licence_of_folder(tmp_path) == "llama3.2"
    (tmp_path / "README.md").write_text(CARD.format("license: other"))
    assert licence_of_folder(tmp_path) == "llama3.2"
    (tmp_path / "README.md").write_text(CARD.format("license: apache-2.0"))
    assert licence_of_folder(tmp_path) == "apache-2.0"
    (tmp_path / "LICENSE.txt").write_text("Terms of Acme\n")
    (tmp_path / "README.md").write_text(CARD.format("license: other\nlicense_name: acme-1"))
    assert licence_of_folder(tmp_path) == "acme-1"


def test_the_base_of_this_machine_tells_its_licence(base: Path, settings: Settings) -> None:
    assert base_licence_of("tiny-llama", settings) is None
    (base / "README.md").write_text(CARD.format("license: cc-by-nc-4.0"))
    BaseStore(settings).add(read_base(base, BaseModelRef(id="tiny-llama"), "folder"))
    assert base_licence_of("tiny-llama", settings) == "cc-by-nc-4.0"
    assert base_licence_of("absent/model", settings) is None
    assert base_licence_of("../..", settings) is None


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, {}),
        ({"data_licenses": "cc-by-4.0"}, {"cc-by-4.0": "cc-by-4.0"}),
        ({"data_licenses": ["cc0-1.0", "mit"]}, {"cc0-1.0": "cc0-1.0", "mit": "mit"}),
        ({"data_licenses": {"train.jsonl": "mit", "eval.jsonl": None}}, {"train.jsonl": "mit", "eval.jsonl": None}),
        ({"data_licenses": 3}, {}),
    ],
)
def test_the_data_s_licences_are_what_the_recipe_wrote_down(
    manifest: Manifest, extra: object, expected: object
) -> None:
    frozen = freeze(extra)
    assert isinstance(frozen, type(freeze({})))
    assert data_licences_of(replace(manifest, extra=frozen)) == expected


def test_publishing_is_refused_until_it_is_acknowledged(manifest: Manifest) -> None:
    fine = publish_findings(manifest, "apache-2.0")
    refuse_at_publish(fine, False)
    found = publish_findings(manifest, "cc-by-nc-sa-4.0", {"rows": "cc-by-nc-4.0"})
    assert [item.code for item in found] == ["ADP601", "ADP601"]
    with pytest.raises(UnsatisfiedError, match="more permissive than its base allows") as caught:
        refuse_at_publish(found, False)
    assert caught.value.code == "ADP601" and len(caught.value.details) == 1
    assert "--acknowledge-licence" in (caught.value.hint or "")
    refuse_at_publish(found, True)


def test_a_warning_alone_refuses_nothing(manifest: Manifest) -> None:
    found = publish_findings(replace(manifest, license=None), "cc-by-nc-4.0")
    assert [item.code for item in found] == ["ADP607"]
    refuse_at_publish(found, False)


def test_the_name_it_is_published_under_is_the_one_that_counts(manifest: Manifest) -> None:
    llama = replace(manifest, license="llama3.1")
    assert [item.code for item in publish_findings(llama, "llama3.1", name="acme/legal")] == ["ADP606"]
    assert publish_findings(llama, "llama3.1", name="acme/llama-legal") == ()


def test_what_an_installer_should_know(manifest: Manifest) -> None:
    assert install_warnings(manifest, "apache-2.0") == ()
    assert install_warnings(manifest, None) == ()
    lines = install_warnings(manifest, "cc-by-nc-4.0")
    assert [line.startswith(f"{manifest.name}: ") for line in lines] == [True, True]
    assert "ADP601" in lines[0] and "allows no commercial use" in lines[1] and "tiny-llama" in lines[1]
    assert "names no licence" in install_warnings(replace(manifest, license=None), None)[0]
    assert "no commercial use" in install_warnings(replace(manifest, license="cc-by-nc-4.0"), None)[0]
    # A name and a notice are the author's concern.
    assert install_warnings(replace(manifest, license="llama3.1"), "llama3.1") == ()


def test_a_plain_adapter_s_licence_is_on_its_card(manifest: Manifest) -> None:
    derived = replace(manifest, license=None, version=Version("0.0.0+g0123456789ab"))
    (line,) = install_warnings(derived, None)
    assert "no manifest" in line and "card" in line


def test_installing_warns_once_of_what_is_new(tmp_path: Path, base: Path, settings: Settings) -> None:
    world = World(root=tmp_path, settings=settings, base=base)
    (base / "README.md").write_text(CARD.format("license: cc-by-nc-4.0"))
    world.add_base(base)
    world.yaml("base_model: tiny-llama\n")
    world.publish("acme/legal")
    told = [line for line in world.plan("acme/legal").warnings if "no commercial use" in line]
    assert len(told) == 1 and "cc-by-nc-4.0" in told[0]
    world.install("acme/legal")
    assert [line for line in world.plan("acme/legal").warnings if "commercial" in line] == []


def test_a_stack_holds_nothing_that_is_derived_from_a_base(manifest: Manifest) -> None:
    assert publish_findings(replace(manifest, kind="stack"), "cc-by-nc-4.0") == ()
