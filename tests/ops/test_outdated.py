"""What newer versions there are of what is locked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from adapterhub.cli.main import main
from adapterhub.documents import write_lockfile
from adapterhub.environment import Environment
from adapterhub.errors import ExitCode, NetworkError
from adapterhub.fingerprints import fingerprint_base
from adapterhub.ops.outdated import MAX_ASKERS, Row, exit_code, find_outdated
from adapterhub.package import open_package
from adapterhub.progress import SILENT
from adapterhub.registry.base import Listed
from adapterhub.registry.directory import DirectoryRegistry
from adapterhub.registry.hub import HubRegistry
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.lockfile import LockedBase, LockedPackage, Lockfile
from adapterhub.spec.refs import PackageName, PackageRef, parse_version
from adapterhub.store import Store
from tests.factory import tiny_llama, tiny_lora
from tests.hub.fixtures import HubClient
from tests.hub.server import Hub
from tests.ops.stacked import Yard, fetch, lock_of, publish_stack


@pytest.fixture
def yard(tmp_path: Path, settings: Settings) -> Yard:
    made = Yard(root=tmp_path, settings=settings, base=tiny_llama(tmp_path / "tiny-llama"))
    made.yaml("adapters:\n  legal: acme/legal>=1,<2\n")
    return made


def released(yard: Yard, *versions: str, name: str = "acme/legal") -> None:
    for seed, version in enumerate(versions):
        yard.publish(name, version, seed=seed)


def locked(yard: Yard, ref: str = "acme/legal@1.0.0", **more: Any) -> None:
    lock_of(yard, replace(fetch(yard, ref, alias="legal", required_by=("adapters.yaml",)), **more))


def told(yard: Yard) -> tuple[str | None, str | None, bool]:
    (row,) = find_outdated(yard.environment)
    return (
        None if row.allowed is None else str(row.allowed),
        None if row.latest is None else str(row.latest),
        row.outdated,
    )


def yank(yard: Yard, ref: str, reason: str = "") -> None:
    DirectoryRegistry(yard.registry, location="x").set_yanked(PackageRef.parse(ref), reason)


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        (("1.0.0",), ("1.0.0", "1.0.0", False)),
        (("1.0.0", "1.4.0"), ("1.4.0", "1.4.0", True)),
        (("1.0.0", "1.4.0", "2.0.0"), ("1.4.0", "2.0.0", True)),
        (("1.0.0", "2.0.0"), ("1.0.0", "2.0.0", True)),
        (("0.9.0", "1.0.0"), ("1.0.0", "1.0.0", False)),
        (("1.0.0", "1.1.0rc1", "2.0.0a1"), ("1.0.0", "1.0.0", False)),
    ],
)
def test_what_is_allowed_and_what_there_is(
    yard: Yard, versions: tuple[str, ...], expected: tuple[str, str, bool]
) -> None:
    released(yard, *versions)
    locked(yard)
    assert told(yard) == expected


def test_a_range_that_names_a_pre_release(yard: Yard) -> None:
    released(yard, "1.0.0", "1.1.0rc1")
    yard.yaml("adapters:\n  legal: acme/legal>=1.0.0rc1\n")
    locked(yard)
    assert told(yard) == ("1.1.0rc1", "1.1.0rc1", True)


def test_a_locked_pre_release_is_held_against_others(yard: Yard) -> None:
    released(yard, "1.1.0rc1", "1.1.0rc2")
    locked(yard, "acme/legal@1.1.0rc1")
    assert told(yard) == ("1.1.0rc2", "1.1.0rc2", True)


def test_yanked_versions(yard: Yard) -> None:
    released(yard, "1.0.0", "1.1.0", "1.2.0")
    locked(yard)
    yank(yard, "acme/legal@1.2.0", "wrong weights")
    yank(yard, "acme/legal@1.0.0", "leaks names")
    (row,) = find_outdated(yard.environment)
    assert (str(row.allowed), str(row.latest), row.yanked) == ("1.1.0", "1.1.0", "leaks names")
    assert row.notes == ("1.2.0 is yanked: wrong weights",)
    yank(yard, "acme/legal@1.1.0")
    (row,) = find_outdated(yard.environment)
    assert (row.allowed, row.latest, row.outdated) == (None, None, False)


def test_young_versions_are_passed_over(yard: Yard) -> None:
    released(yard, "1.0.0", "1.1.0")
    locked(yard)
    careful = replace(yard.environment, settings=replace(yard.settings, min_age=timedelta(days=7)))
    (row,) = find_outdated(careful)
    assert row.allowed is None
    assert row.notes[0].startswith("1.1.0 is too young")


def test_an_exact_pin_stays(yard: Yard) -> None:
    released(yard, "1.0.0", "1.1.0")
    yard.yaml("adapters:\n  legal: acme/legal@1.0.0\n")
    locked(yard)
    assert told(yard) == ("1.0.0", "1.1.0", True)


def test_a_member_is_held_to_what_its_stack_allows(yard: Yard) -> None:
    released(yard, "1.0.0", "1.5.0", "2.0.0")
    publish_stack(yard, members=(("acme/legal<1.5", 1.0),))
    yard.yaml("adapters:\n  clinic: acme/clinic-es\n")
    lock_of(yard, fetch(yard, "acme/clinic-es@1.0.0", alias="clinic"), fetch(yard, "acme/legal@1.0.0"))
    rows = {str(row.entry.name): row for row in find_outdated(yard.environment)}
    assert str(rows["acme/legal"].allowed) == "1.0.0"
    assert str(rows["acme/legal"].latest) == "2.0.0"
    assert not rows["acme/clinic-es"].outdated
    yard.yaml("adapters:\n  clinic: acme/clinic-es\n  legal: acme/legal>=2\n")  # the two exclude each other
    rows = {str(row.entry.name): row for row in find_outdated(yard.environment)}
    assert rows["acme/legal"].allowed is None


def test_a_plain_adapter_that_was_saved_again(yard: Yard) -> None:
    folder = yard.registry / "acme" / "legal"
    tiny_lora(folder, yard.base, manifest=False)
    yard.yaml("adapters:\n  legal: acme/legal\n")
    version = open_package(folder).manifest.version
    lock_of(yard, fetch(yard, f"acme/legal@{version}", alias="legal"))
    assert told(yard) == (str(version), str(version), False)
    tiny_lora(folder, yard.base, manifest=False, seed=1)
    allowed, latest, outdated = told(yard)
    assert outdated and allowed == latest != str(version)


def test_what_is_gone_from_the_registry_is_told_in_its_row(yard: Yard) -> None:
    released(yard, "1.0.0", "1.1.0")
    released(yard, "1.0.0", "1.1.0", name="acme/medical")
    yard.yaml("adapters:\n  legal: acme/legal\n  medical: acme/medical\n")
    lock_of(yard, fetch(yard, "acme/legal@1.0.0", alias="legal"), fetch(yard, "acme/medical@1.0.0", alias="medical"))
    (yard.registry / "acme" / "legal").rename(yard.root / "gone")
    (yard.registry / "acme/medical/1.0.0").rename(yard.root / "gone-too")
    legal, medical = find_outdated(yard.environment)
    assert legal.error is not None and legal.error.exit_code == ExitCode.UNSATISFIED
    assert medical.outdated and "1.0.0 is not in the registry any more" in medical.notes
    assert exit_code((legal, medical), tell=False) == ExitCode.UNSATISFIED
    assert exit_code((medical,), tell=False) == ExitCode.OK
    assert exit_code((medical,), tell=True) == ExitCode.UNSATISFIED


class Many:
    """A registry of many names, that counts who asks and how many at once."""

    location = "many"

    def __init__(self, answer: Callable[[PackageName], tuple[Listed, ...]]) -> None:
        self.answer = answer
        self.asked: list[str] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        self._together = threading.Barrier(MAX_ASKERS)

    def versions(self, name: PackageName) -> tuple[Listed, ...]:
        with self._lock:
            self.asked.append(str(name))
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            self._together.wait(timeout=20)  # nobody gets on before as many ask as may
            return self.answer(name)
        finally:
            with self._lock:
                self._now -= 1


def test_every_name_is_asked_once_and_several_at_a_time(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 3 * MAX_ASKERS
    version = parse_version("1.0.0")
    names = [PackageName.parse(f"acme/n{number:02}") for number in range(count)]
    entries = tuple(LockedPackage(alias=name.name, name=name, version=version, registry="many") for name in names)
    write_lockfile(yard.project, Lockfile(entries=entries))
    yard.yaml()
    many = Many(
        lambda name: (Listed(version=version), Listed(version=parse_version(f"1.0.{name.name[1:].lstrip('0') or 0}")))
    )
    monkeypatch.setattr(Environment, "registry_of", lambda *args, **options: many)
    rows = find_outdated(yard.environment)
    assert [row.entry.name for row in rows] == names
    assert [str(row.latest) for row in rows] == [f"1.0.{number}" for number in range(count)]
    assert sorted(many.asked) == [str(name) for name in names]
    assert many.most == MAX_ASKERS


def test_versions_for_another_base_are_no_news(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing that tells the base, as the Hub's index does."""
    released(yard, "1.0.0")
    locked(yard)
    here = BaseModelRef(id="tiny-llama", fingerprints=fingerprint_base(yard.base))
    lock = yard.environment.lock
    write_lockfile(yard.project, replace(lock, base=LockedBase(base=here, source="folder")))
    other = BaseModelRef(id="other", fingerprints=fingerprint_base(tiny_llama(yard.root / "other", seed=5)))
    listed = [Listed(version=parse_version("1.0.0"), base_model=here)]
    monkeypatch.setattr(DirectoryRegistry, "versions", lambda self, name: tuple(listed))
    listed.append(Listed(version=parse_version("1.1.0"), base_model=other))
    (row,) = find_outdated(yard.environment)
    assert (str(row.allowed), str(row.latest), row.outdated) == ("1.0.0", "1.0.0", False)
    assert row.notes == ("1.1.0 is made for another base model",)
    listed.append(Listed(version=parse_version("1.0.5"), base_model=here))
    assert told(yard) == ("1.0.5", "1.0.5", True)


def test_offline_and_the_hub(yard: Yard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """HF_HUB_OFFLINE is set for every test: a lock of the Hub's cannot be looked up, one of a folder's can."""
    released(yard, "1.0.0", "1.1.0")
    (yard.project / "adapters.yaml").write_text('project_version: "1.0"\nadapters: {legal: acme/legal}\n')
    locked(yard, registry="hub")
    monkeypatch.chdir(yard.project)
    with pytest.raises(NetworkError):
        find_outdated(yard.environment)
    assert main(["outdated", "--json"]) == ExitCode.NETWORK
    out, err = capsys.readouterr()
    assert out == "" and "HF_HUB_OFFLINE" in err
    locked(yard)
    assert main(["outdated"]) == 0


def test_the_hub_is_asked_what_it_has(
    yard: Yard, hub: Hub, hub_client: HubClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    user = hub.add_user("alice", organizations=("acme",))
    monkeypatch.setenv("HF_TOKEN", user.token)
    for seed, version in enumerate(("1.0.0", "1.1.0", "2.0.0")):
        package = tiny_lora(tmp_path / version, yard.base, name="legal", version=version, seed=seed)
        HubRegistry().publish(open_package(package), PackageName.parse("acme/legal"), progress=SILENT)
    HubRegistry().set_yanked(PackageRef.parse("acme/legal@1.0.0"), "leaks names")
    registry = HubRegistry()
    description = registry.describe(PackageRef.parse("acme/legal@1.0.0"))
    stored = registry.fetch(description, Store(yard.settings.store), progress=SILENT)
    entry = LockedPackage(
        alias="legal",
        name=stored.ref.name,
        version=stored.ref.version,
        registry="hub",
        revision=description.revision,
        manifest=stored.manifest,
        files=stored.files,
    )
    (yard.project / "adapters.yaml").write_text('project_version: "1.0"\nadapters: {legal: acme/legal<2}\n')
    write_lockfile(yard.project, Lockfile(entries=(entry,)))
    online = replace(yard.environment, settings=replace(yard.settings, offline=False))
    hub.forget()
    (row,) = find_outdated(online)
    assert (str(row.allowed), str(row.latest), row.yanked, row.outdated) == ("1.1.0", "2.0.0", "leaks names", True)
    assert len(hub.seen(path="*/acme/legal/refs")) == 1
    assert not hub.seen(path="*safetensors*")
    assert len(hub.requests) <= 6  # the repository, its refs, its index: nothing for each version
    # A branch that moved on since it was locked, and the commit itself, which cannot.
    for wanted, moved in (("main", True), (str(description.revision), False), ("v1.0.0", False)):
        (yard.project / "adapters.yaml").write_text(
            f'project_version: "1.0"\nadapters: {{legal: "acme/legal#{wanted}"}}\n'
        )
        online = replace(yard.environment, settings=replace(yard.settings, offline=False))
        (row,) = find_outdated(online)
        assert (row.error, row.moved, row.outdated) == (None, moved, moved), wanted
        assert [f"{wanted} is at" in note for note in row.notes] == [True] * moved


def test_the_command(yard: Yard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(yard.project)
    assert main(["outdated", "--exit-code"]) == 0
    assert "nothing is installed" in capsys.readouterr().err
    released(yard, "1.0.0", "1.1.0", "2.0.0")
    locked(yard)
    assert main(["outdated"]) == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines()] == [
        ["ALIAS", "NAME", "LOCKED", "WANTED", "LATEST"],
        ["legal", "acme/legal", "1.0.0", "1.1.0", "2.0.0"],
    ]
    assert main(["outdated", "--exit-code", "--json"]) == 1
    (data,) = json.loads(capsys.readouterr().out)
    assert (data["locked"], data["allowed"], data["latest"], data["outdated"]) == ("1.0.0", "1.1.0", "2.0.0", True)
    locked(yard, "acme/legal@2.0.0")
    yard.yaml("adapters:\n  legal: acme/legal\n")
    assert main(["outdated", "--exit-code"]) == 0
    out, err = capsys.readouterr()
    assert (out, "up to date" in err) == ("", True)
    assert main(["outdated", "--all"]) == 0
    assert "acme/legal" in capsys.readouterr().out
    yank(yard, "acme/legal@2.0.0", "bad \x1b[31m")
    assert main(["outdated"]) == 0
    out, err = capsys.readouterr()
    assert "was yanked: bad \\x1b[31m" in err and "adapt update legal" in err


def test_a_row_without_a_version_is_not_outdated() -> None:
    entry = LockedPackage(alias=None, name=PackageName.parse("a/b"), version=parse_version("1.0.0"), registry="hub")
    assert not Row(entry=entry).outdated
