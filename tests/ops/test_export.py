"""Packing what is locked for a machine without a network."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from adapterhub.cli.main import main
from adapterhub.documents import read_lockfile, read_project
from adapterhub.errors import IntegrityError, UnsatisfiedError, UsageError
from adapterhub.ops import export as export_module
from adapterhub.ops.export import ExportPlan, export, plan_export
from adapterhub.progress import SILENT
from adapterhub.registry.directory import DirectoryRegistry
from adapterhub.settings import Settings
from adapterhub.spec.refs import PackageName
from adapterhub.store import Store
from tests.factory import tiny_llama
from tests.ops.stacked import Yard, clinic, fetch, lock_of, without


@pytest.fixture
def yard(tmp_path: Path, settings: Settings) -> Yard:
    made = Yard(root=tmp_path, settings=settings, base=tiny_llama(tmp_path / "tiny-llama"))
    made.yaml()
    clinic(made)
    return made


def planned(yard: Yard, out: str, *words: str) -> ExportPlan:
    return plan_export(yard.root / out, words, environment=yard.environment)


def test_a_folder_is_a_registry_with_the_project_beside_it(yard: Yard) -> None:
    plan = planned(yard, "out")
    out = export(plan)
    assert (out / "adapters.yaml").read_bytes() == (yard.project / "adapters.yaml").read_bytes()
    assert (out / "adapters.lock").read_bytes() == (yard.project / "adapters.lock").read_bytes()
    registry = DirectoryRegistry(out / "registry", location="out")
    assert [str(name) for name in registry.packages()] == ["acme/clinic-es", "acme/legal", "acme/spanish"]
    for entry in plan.entries:
        into = Store(yard.root / "another-store")
        description = registry.describe(entry.ref)
        assert registry.fetch(description, into, progress=SILENT).files == entry.files
        assert description.stored.manifest == entry.manifest
    for path in out.rglob("*"):
        assert not path.is_symlink() and os.access(path, os.W_OK)  # copies: nothing of the store can be changed by them
        assert path.is_dir() or path.stat().st_nlink == 1


def test_an_archive_depends_on_its_content_alone(yard: Yard) -> None:
    first, second = export(planned(yard, "a.tar")), export(planned(yard, "b.tar"))
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        members = tar.getmembers()
    names = [member.name for member in members]
    assert names == sorted(names) and len(set(names)) == len(names)
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    assert names[:2] == ["adapters.lock", "adapters.yaml"]
    assert "registry/acme/legal/1.0.0/adapter_model.safetensors" in names
    assert not list(yard.root.glob(".*.tmp"))


def test_a_named_package_brings_what_it_requires_and_nothing_else(yard: Yard) -> None:
    yard.publish("acme/medical", seed=9)
    lock = read_lockfile(yard.project)
    lock_of(yard, *lock.entries, fetch(yard, "acme/medical@1.0.0", alias="medical", required_by=("adapters.yaml",)))
    yard.yaml(
        "adapters:\n  clinic: acme/clinic-es  # keep me\n  legal: acme/legal>=1\n  medical: acme/medical\n"
        "stacks:\n  default: legal,medical\n  law: legal\n  both: default\n"
    )
    out = export(planned(yard, "out", "clinic"))
    assert [str(entry.name) for entry in read_lockfile(out).entries] == ["acme/clinic-es", "acme/legal", "acme/spanish"]
    project = read_project(out)
    assert (list(project.adapters), list(project.stacks)) == (["clinic", "legal"], ["law"])
    assert "# keep me" in (out / "adapters.yaml").read_text()
    out = export(planned(yard, "member", "acme/spanish"))
    (entry,) = read_lockfile(out).entries
    assert (entry.alias, entry.required_by) == ("spanish", ("adapters.yaml",))
    assert str(read_project(out).adapters["spanish"]) == "acme/spanish"


def test_what_the_store_lacks_is_named(yard: Yard) -> None:
    entry = yard.environment.lock.by_name(PackageName.parse("acme/spanish"))
    assert entry is not None
    weights = next(file for file in entry.files if file.path.endswith(".safetensors"))
    yard.store.blob_path(weights.digest).unlink()
    with pytest.raises(UnsatisfiedError) as caught:
        planned(yard, "out.tar")
    assert (caught.value.details, caught.value.hint) == (("acme/spanish@1.0.0",), "adapt sync")
    export(planned(yard, "out.tar", "legal"))  # the rest can still go


def test_damage_that_the_store_does_not_see_is_found_on_the_way(yard: Yard) -> None:
    entry = yard.environment.lock.entries[1]
    path = yard.store.blob_path(entry.files[-1].digest)
    status = path.stat()
    path.chmod(0o644)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a failing disk leaves it
    for name in ("out.tar", "out"):
        with pytest.raises(IntegrityError):
            export(planned(yard, name))
        assert not (yard.root / name).exists()
    assert not list(yard.root.glob(".*.tmp"))


def test_nothing_is_overwritten_or_compressed(yard: Yard) -> None:
    (yard.root / "mine.tar").write_text("mine")
    (yard.root / "mine").mkdir()
    (yard.root / "mine" / "file").write_text("mine")
    for name in ("mine.tar", "mine", "out.tar.gz", "out.tgz", "out.zip"):
        with pytest.raises(UsageError):
            planned(yard, name)
    (yard.root / "empty").mkdir()
    export(planned(yard, "empty"))


def test_more_files_than_an_archive_takes(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(export(planned(yard, "out.tar"))) as tar:
        count = len(tar.getmembers())
    monkeypatch.setattr(export_module, "MAX_MEMBERS", count - 1)
    with pytest.raises(UsageError, match=f"{count} files"):
        planned(yard, "more.tar")
    export(planned(yard, "more"))  # a folder has no such limit


def test_what_is_not_locked(yard: Yard) -> None:
    with pytest.raises(UnsatisfiedError) as caught:
        planned(yard, "out", "legl")
    assert caught.value.hint == "did you mean legal?"
    without(yard, "acme/legal")
    with pytest.raises(UnsatisfiedError, match="not locked: acme/legal>=1"):
        planned(yard, "out")
    yard.yaml()
    (yard.project / "adapters.lock").unlink()
    with pytest.raises(UnsatisfiedError, match="nothing is locked"):
        planned(yard, "out")


def test_the_command(yard: Yard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(yard.project)
    assert main(["export", "x.tar", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "pack" in out and "nothing was done" in err and "tiny-llama does not travel" in err
    assert not Path("x.tar").exists()
    assert main(["export", "x.tar", "--json"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["packages"] == ["acme/clinic-es@1.0.0", "acme/legal@1.0.0", "acme/spanish@1.0.0"]
    assert "adapt base add tiny-llama" in err
    assert main(["export", "x.tar"]) == 2  # it is there now
