"""The public names: all there, all typed and documented, loaded only when used; and the verbs on a tiny model."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import adapterhub
from adapterhub import api
from adapterhub.errors import AdapterHubError, IncompatibleError, UnsatisfiedError
from tests.factory import tiny_llama, tiny_lora


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import adapterhub; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = [name for name in done.stdout.split() if name.startswith("adapterhub")]
    assert loaded == ["adapterhub"]


@pytest.mark.parametrize("name", adapterhub.__all__)
def test_public_names_are_there_and_documented(name: str) -> None:
    value = getattr(adapterhub, name)
    assert isinstance(value, str) or inspect.getdoc(value)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        adapterhub.lod  # noqa: B018


def test_every_verb_is_typed() -> None:
    for name in api.__all__:
        signature = inspect.signature(getattr(api, name))
        assert signature.return_annotation is not inspect.Signature.empty, name
        assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values()), name
        assert name in adapterhub.__all__, f"{name} is not public"


def test_from_a_folder_to_an_installed_adapter(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    adapterhub.add_base("tiny", base)
    package = tiny_lora(tmp_path / "lora", base, base_id="tiny", name="legal-lora")
    report = adapterhub.validate(package, base="tiny")
    assert report.ok, report.findings
    project = tmp_path / "project"
    project.mkdir()
    registry = str(tmp_path / "registry")
    (project / "adapters.yaml").write_text('project_version: "1.0"\nbase_model: tiny\n')
    adapterhub.publish(package, "acme/legal-lora", registry=registry, cwd=project)
    adapterhub.install("acme/legal-lora", registry=registry, cwd=project)
    [listed] = adapterhub.list_adapters(cwd=project)
    assert listed.alias == "legal"
    assert (project / ".adapters" / "legal" / "adapter_model.safetensors").is_file()
    assert adapterhub.open_package(project / ".adapters" / "legal").manifest.name == "legal-lora"
    with pytest.raises(UnsatisfiedError):
        adapterhub.install("acme/legal-lora>=9", registry=registry, cwd=project)
    adapterhub.uninstall("legal", cwd=project)
    assert adapterhub.list_adapters(cwd=project) == ()


def test_a_wrong_base_of_the_same_shapes_is_refused(tmp_path: Path) -> None:
    base, other = tiny_llama(tmp_path / "base", seed=0), tiny_llama(tmp_path / "other", seed=1)
    adapterhub.add_base("tiny", base)
    adapterhub.add_base("other", other)
    package = tiny_lora(tmp_path / "lora", base, base_id="tiny", name="legal-lora")
    report = adapterhub.validate(package, base="other")
    assert not report.ok
    assert report.exit_code == IncompatibleError.exit_code
    with pytest.raises(AdapterHubError) as caught:
        adapterhub.merge(tmp_path / "merged", stack=str(package), base="other")
    assert isinstance(caught.value, IncompatibleError)
    assert not (tmp_path / "merged").exists()
