"""Installing from a folder registry: what is planned, what lies there afterwards, what is refused, what survives."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from adapterhub.bases import BaseStore
from adapterhub.environment import find_environment
from adapterhub.errors import IncompatibleError, IntegrityError, UnsatisfiedError, UsageError
from adapterhub.ops._edit import _locked
from adapterhub.ops._place import MARKER_FILE
from adapterhub.ops.install import install, parse_requirement, plan_install
from adapterhub.package import open_package, require_intact
from adapterhub.progress import SILENT
from adapterhub.registry.directory import DirectoryRegistry
from adapterhub.settings import Settings
from adapterhub.spec.refs import PackageName
from adapterhub.store import Store
from tests.factory import tiny_llama, tiny_lora
from tests.ops.world import Notes, World, flip_last_byte


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture(scope="module")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("other") / "tiny-llama", seed=1)


@pytest.fixture
def world(tmp_path: Path, settings: Settings, base: Path) -> World:
    made = World(root=tmp_path, settings=settings, base=base)
    made.yaml()
    return made


def test_an_installed_adapter_is_a_peft_folder_named_in_both_files(world: World) -> None:
    published = world.publish("acme/Legal-LoRA", "1.2.0")
    done = world.install("acme/Legal-LoRA")
    assert dict(done.paths) == {"legal": world.adapter("legal")}
    package = open_package(world.adapter("legal"))
    require_intact(package)
    assert package.manifest == open_package(published).manifest
    assert not package.derived
    names = {path.name for path in world.adapter("legal").iterdir()}
    assert names == {"adapter_config.json", "adapter_manifest.json", "adapter_model.safetensors", MARKER_FILE}
    here = world.environment
    assert str(here.project.adapters["legal"]) == "acme/Legal-LoRA"
    entry = here.lock.by_alias("legal")
    assert entry is not None
    assert (str(entry.ref), entry.registry) == ("acme/Legal-LoRA@1.2.0", "../registry")
    assert entry.manifest == package.manifest.digest
    assert entry.required_by == ("adapters.yaml",)
    assert [layer.alias for layer in here.resolve_stack(None).layers] == ["legal"]


def test_weights_are_linked_from_the_store(world: World) -> None:
    world.publish("acme/legal")
    world.install("acme/legal")
    store = Store(world.settings.store)
    (package,) = store.packages()
    weights = next(entry for entry in package.files if entry.path.endswith(".safetensors"))
    assert (world.adapter("legal") / weights.path).samefile(store.blob_path(weights.digest))


def test_planning_changes_nothing(world: World) -> None:
    world.publish("acme/legal")
    before = sorted(world.root.rglob("*"))
    assert world.actions("acme/legal") == ["fetch", "link", "write", "write"]
    assert sorted(world.root.rglob("*")) == before
    assert not world.settings.store.exists()


def test_a_second_install_does_nothing_and_needs_no_registry(world: World) -> None:
    world.publish("acme/legal")
    world.install("acme/legal")
    stamps = {path: path.stat().st_mtime_ns for path in world.project.rglob("*")}
    shutil.rmtree(world.registry)
    assert world.actions("acme/legal") == ["reuse"]
    assert world.actions() == ["reuse"]
    assert not plan_install(environment=world.environment).changes
    world.install("acme/legal")
    world.install()
    assert {path: path.stat().st_mtime_ns for path in world.project.rglob("*")} == stamps


def test_a_lock_brings_everything_back(world: World) -> None:
    world.publish("acme/legal")
    world.publish("acme/spanish", seed=2)
    world.install("acme/legal")
    world.install("acme/spanish", alias="es")
    world.publish("acme/legal", "1.1.0", seed=3)
    lock = (world.project / "adapters.lock").read_bytes()
    shutil.rmtree(world.project / ".adapters")
    assert world.actions() == ["reuse", "reuse", "link", "link"]
    world.install()
    shutil.rmtree(world.project / ".adapters")
    shutil.rmtree(world.settings.home)
    assert world.actions() == ["fetch", "fetch", "link", "link"]
    world.install()
    assert (world.project / "adapters.lock").read_bytes() == lock
    assert open_package(world.adapter("legal")).manifest.version.public == "1.0.0"
    assert open_package(world.adapter("es")).manifest.version.public == "1.0.0"


def test_adapters_yaml_alone_is_enough(world: World) -> None:
    world.publish("acme/legal", "1.0.0")
    world.publish("acme/legal", "2.0.0", seed=1)
    world.yaml("adapters: {old: 'acme/legal<2'}\n")
    world.install()
    assert str(open_package(world.adapter("old")).manifest.version) == "1.0.0"


def test_a_locked_version_stays_until_another_is_asked_for(world: World) -> None:
    world.publish("acme/legal", "1.0.0")
    world.install("acme/legal")
    world.publish("acme/legal", "1.1.0", seed=1)
    world.install("acme/legal")
    assert str(open_package(world.adapter("legal")).manifest.version) == "1.0.0"
    world.install("acme/legal>=1.1")
    assert str(open_package(world.adapter("legal")).manifest.version) == "1.1.0"
    assert str(world.environment.project.adapters["legal"]) == "acme/legal>=1.1"
    world.install("acme/legal@1.0.0")
    assert str(open_package(world.adapter("legal")).manifest.version) == "1.0.0"
    assert [path.name for path in (world.project / ".adapters").iterdir() if path.is_dir()] == ["legal"]


def test_what_adapters_yaml_no_longer_names_is_removed(world: World) -> None:
    world.publish("acme/legal")
    world.publish("acme/spanish", seed=2)
    world.install("acme/legal")
    world.install("acme/spanish")
    world.yaml("adapters: {legal: acme/legal}\n")
    assert world.actions() == ["reuse", "remove", "write"]
    world.install()
    assert not world.adapter("spanish").exists()
    assert [entry.alias for entry in world.environment.lock.entries] == ["legal"]


def test_comments_in_adapters_yaml_are_kept(world: World) -> None:
    world.publish("acme/legal")
    world.yaml("# chosen by the legal team\nadapters: {}\n")
    world.install("acme/legal")
    assert "# chosen by the legal team" in (world.project / "adapters.yaml").read_text()


def test_without_a_project_it_goes_to_the_user_s_environment(world: World) -> None:
    world.publish("acme/legal")
    (world.project / "adapters.yaml").unlink()
    here = world.environment
    assert here.is_user
    plan = plan_install(parse_requirement("acme/legal"), environment=here, registry="../registry", cwd=world.project)
    install(plan)
    again = find_environment(world.project, world.settings)
    assert again.find("legal", cwd=world.project).folder == world.settings.user_environment / ".adapters" / "legal"
    entry = again.lock.by_alias("legal")
    assert entry is not None
    assert entry.registry == str(world.registry)


def test_a_plain_peft_folder_is_installed_and_never_locked_by_a_derived_manifest(world: World) -> None:
    tiny_lora(world.registry / "someone" / "plain-lora", world.base, manifest=False)
    world.install("someone/plain-lora")
    entry = world.environment.lock.by_alias("plain")
    assert entry is not None
    assert entry.manifest is None
    assert len(entry.files) == 2
    assert open_package(world.adapter("plain")).derived
    assert world.actions() == ["reuse"]


# What is refused


def test_a_missing_version_lists_those_there_are(world: World) -> None:
    world.publish("acme/legal", "1.2.0")
    with pytest.raises(UnsatisfiedError) as caught:
        world.install("acme/legal@9.0.0")
    assert "1.2.0" in (caught.value.hint or "")
    assert not (world.project / ".adapters").exists()


def test_a_damaged_registry_copy_installs_nothing(world: World) -> None:
    folder = world.publish("acme/legal")
    flip_last_byte(folder / "adapter_model.safetensors")
    with pytest.raises(IntegrityError) as caught:
        world.install("acme/legal")
    assert caught.value.hint
    assert not (world.project / ".adapters").exists()
    assert not (world.project / "adapters.lock").exists()
    assert Store(world.settings.store).packages() == ()
    assert "acme/legal" not in (world.project / "adapters.yaml").read_text()


def test_a_damaged_second_package_installs_neither(world: World) -> None:
    world.publish("acme/legal")
    flip_last_byte(world.publish("acme/spanish", seed=2) / "adapter_model.safetensors")
    world.yaml("adapters: {legal: acme/legal, spanish: acme/spanish}\n")
    with pytest.raises(IntegrityError):
        world.install()
    assert not (world.project / ".adapters").exists()


def test_a_version_that_was_exchanged_is_not_what_was_locked(world: World) -> None:
    folder = world.publish("acme/legal")
    world.install("acme/legal")
    shutil.rmtree(folder)
    world.publish("acme/legal", seed=7)
    shutil.rmtree(world.settings.home)
    with pytest.raises(IntegrityError, match=r"adapters\.lock") as caught:
        world.install()
    assert "adapt uninstall legal" in (caught.value.hint or "")


def test_a_wrong_base_is_refused_before_weights_are_moved(world: World, other_base: Path) -> None:
    world.publish("acme/legal")
    world.add_base(other_base)
    world.yaml("base_model: tiny-llama\n")
    with pytest.raises(IncompatibleError) as caught:
        world.install("acme/legal")
    assert "--allow-base-mismatch" in (caught.value.hint or "")
    assert not world.settings.store.exists()
    done = world.install("acme/legal", allow_base_mismatch=True)
    assert done.plan.warnings
    entry = world.environment.lock.by_alias("legal")
    assert entry is not None
    assert entry.base_mismatch
    assert world.actions() == ["reuse"]


def test_the_base_is_locked_and_a_changed_one_is_noticed(world: World, other_base: Path) -> None:
    world.publish("acme/legal")
    world.add_base(world.base)
    world.yaml("base_model: tiny-llama\n")
    done = world.install("acme/legal")
    assert [line for line in done.plan.warnings if "licence" not in line] == []
    locked = world.environment.lock.base
    assert locked is not None
    assert (locked.base, locked.source) == (BaseStore(world.settings).read("tiny-llama").ref, "folder")
    world.add_base(other_base)
    with pytest.raises(IncompatibleError):
        world.install()


def test_a_given_base_is_checked_and_not_recorded(world: World, other_base: Path) -> None:
    world.publish("acme/legal")
    world.add_base(other_base, "other")
    with pytest.raises(IncompatibleError):
        world.install("acme/legal", base="other")
    with pytest.raises(UnsatisfiedError, match="absent"):
        world.install("acme/legal", base="absent")
    world.add_base(world.base, "right")
    world.install("acme/legal", base="right")
    assert world.environment.lock.base is None


def test_a_base_that_is_not_here_is_told_not_guessed(world: World) -> None:
    world.publish("acme/legal")
    world.yaml("base_model: another\n")
    done = world.install("acme/legal")
    assert any("not checked" in warning for warning in done.plan.warnings)


def test_weights_that_do_not_fit_are_refused_by_their_header(world: World, tmp_path: Path) -> None:
    wide = tiny_llama(tmp_path / "wide", hidden=64)
    world.publish("acme/legal")
    tiny_lora(world.registry / "someone" / "plain", world.base, manifest=False)
    world.add_base(wide)
    world.yaml("base_model: tiny-llama\n")
    with pytest.raises(IncompatibleError) as caught:
        world.install("someone/plain", allow_base_mismatch=True)
    assert any("shapes" in detail for detail in caught.value.details)
    assert not world.settings.store.exists()
    with pytest.raises(IncompatibleError) as caught:
        world.install("acme/legal")
    assert any("trained on" in detail for detail in caught.value.details)
    assert any("shapes" in detail for detail in caught.value.details)


def test_a_lock_s_base_is_enough_to_tell_another(world: World, other_base: Path, tmp_path: Path) -> None:
    world.publish("acme/legal")
    world.add_base(world.base)
    world.yaml("base_model: tiny-llama\n")
    world.install("acme/legal")
    BaseStore(world.settings).remove("tiny-llama")
    assert world.actions() == ["reuse"]
    assert world.environment.lock.base is not None
    tiny_lora(tmp_path / "theirs", other_base)
    registry = DirectoryRegistry(world.registry, location="registry")
    registry.publish(open_package(tmp_path / "theirs"), PackageName.parse("acme/theirs"), progress=SILENT)
    with pytest.raises(IncompatibleError):
        world.install("acme/theirs")


def test_a_taken_alias_is_refused(world: World) -> None:
    world.publish("acme/legal")
    world.publish("other/legal-lora", seed=2)
    world.install("acme/legal")
    with pytest.raises(UsageError, match="acme/legal") as caught:
        world.install("other/legal-lora")
    assert "--as" in (caught.value.hint or "")
    world.install("other/legal-lora", alias="theirs")
    with pytest.raises(UsageError, match="already"):
        world.install("acme/legal", alias="again")
    world.publish("acme/third", seed=3)
    with pytest.raises(UsageError, match="not an alias"):
        world.install("acme/third", alias="Not An Alias")
    with pytest.raises(UsageError, match="case"):
        world.install("Acme/Legal")


def test_an_alias_that_is_a_stack_is_refused(world: World) -> None:
    world.publish("acme/legal")
    world.publish("acme/default", seed=2)
    world.yaml("adapters: {legal: acme/legal}\nstacks: {default: legal}\n")
    with pytest.raises(UsageError, match="stack"):
        world.install("acme/default")


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_not_ours_is_never_overwritten(world: World, kind: str) -> None:
    world.publish("acme/legal")
    place = world.adapter("legal")
    place.parent.mkdir()
    if kind == "folder":
        place.mkdir()
        (place / "adapter_config.json").write_text("mine")
    elif kind == "file":
        place.write_text("mine")
    else:
        (world.root / "mine").mkdir()
        place.symlink_to(world.root / "mine")
    with pytest.raises(UsageError, match="did not install"):
        world.install("acme/legal")
    assert os.path.lexists(place)
    assert not (world.project / "adapters.lock").exists()


@pytest.mark.parametrize("change", ["edit", "add"])
def test_what_a_user_changed_is_kept_aside(world: World, change: str) -> None:
    world.publish("acme/legal")
    world.publish("acme/legal", "2.0.0", seed=1)
    world.install("acme/legal<2")
    name = "adapter_config.json" if change == "edit" else "notes.txt"
    (world.adapter("legal") / name).write_text("mine")
    notes = Notes()
    plan = plan_install(parse_requirement("acme/legal@2.0.0"), environment=world.environment, cwd=world.project)
    install(plan, progress=notes)
    kept = world.project / ".adapters" / ".kept" / "legal-1"
    assert (kept / name).read_text() == "mine"
    assert any(str(kept) in line for line in notes.lines)
    require_intact(open_package(world.adapter("legal")))
    assert str(open_package(world.adapter("legal")).manifest.version) == "2.0.0"


# What survives


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "adapter_manifest.json"])
def test_a_damaged_installed_file_is_repaired(world: World, name: str) -> None:
    world.publish("acme/legal")
    world.install("acme/legal")
    flip_last_byte(world.adapter("legal") / name)
    assert plan_install(environment=world.environment).changes
    world.install()
    require_intact(open_package(world.adapter("legal")))
    assert world.actions() == ["reuse"]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "adapter_manifest.json"])
def test_a_lost_installed_file_is_brought_back(world: World, name: str) -> None:
    world.publish("acme/legal")
    world.install("acme/legal")
    (world.adapter("legal") / name).unlink()
    world.install()
    require_intact(open_package(world.adapter("legal")))
    assert not (world.project / ".adapters" / ".kept").exists()


def test_a_zero_length_blob_is_fetched_again(world: World) -> None:
    world.publish("acme/legal")
    world.install("acme/legal")
    store = Store(world.settings.store)
    (package,) = store.packages()
    for entry in package.files:
        blob = store.blob_path(entry.digest)
        blob.unlink()
        blob.write_bytes(b"")
    shutil.rmtree(world.project / ".adapters")
    assert world.actions() == ["fetch", "link"]
    world.install()
    require_intact(open_package(world.adapter("legal")))


def test_an_install_cut_off_before_the_lock_is_finished_by_the_next(world: World) -> None:
    world.publish("acme/legal")
    world.install("acme/legal")
    (world.project / "adapters.lock").unlink()
    world.install()
    assert world.environment.lock.by_alias("legal") is not None
    (world.project / "adapters.lock").unlink()
    world.yaml()
    assert world.actions("acme/legal") == ["reuse", "write", "write"]


def _install(world: World, text: str) -> None:
    world.install(text)


def _processes(world: World, texts: list[str]) -> list[int | None]:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_install, args=(world, text)) for text in texts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    return [worker.exitcode for worker in workers]


def _leftovers(world: World) -> list[str]:
    found = [*(world.project / ".adapters").iterdir(), *(world.settings.store / "tmp").iterdir()]
    return [path.name for path in found if path.name.endswith(".tmp") or path.parent.name == "tmp"]


def test_eight_processes_install_the_same_package(world: World) -> None:
    world.publish("acme/legal")
    assert _processes(world, ["acme/legal"] * 8) == [0] * 8
    require_intact(open_package(world.adapter("legal")))
    assert [entry.alias for entry in world.environment.lock.entries] == ["legal"]
    assert _leftovers(world) == []


def test_eight_processes_install_eight_packages_and_none_is_lost(world: World) -> None:
    names = [f"acme/a{number}" for number in range(8)]
    for number, name in enumerate(names):
        world.publish(name, seed=number)
    assert _processes(world, names) == [0] * 8
    here = world.environment
    assert sorted(str(wanted) for wanted in here.project.adapters.values()) == names
    assert [str(entry.name) for entry in here.lock.entries] == names
    for number in range(8):
        require_intact(open_package(world.adapter(f"a{number}")))


def test_processes_that_install_other_versions_leave_one_whole(world: World) -> None:
    for number in range(4):
        world.publish("acme/legal", f"1.{number}.0", seed=number)
    assert _processes(world, [f"acme/legal@1.{number}.0" for number in range(4)]) == [0] * 4
    require_intact(open_package(world.adapter("legal")))
    world.install()
    entry = world.environment.lock.by_alias("legal")
    assert entry is not None
    assert open_package(world.adapter("legal")).manifest.version == entry.version
    assert str(world.environment.project.adapters["legal"]) == f"acme/legal@{entry.version}"


def test_locks_that_do_nothing_leave_whole_files(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    monkeypatch.setattr(filelock.FileLock, "acquire", lambda self, *args, **kwargs: None)
    names = [f"acme/a{number}" for number in range(4)]
    for number, name in enumerate(names):
        world.publish(name, seed=number)
    assert _processes(world, names) == [0] * 4
    here = world.environment
    assert set(map(str, here.project.adapters.values())) <= set(names)
    monkeypatch.undo()
    world.install()
    for alias in here.project.adapters:
        require_intact(open_package(world.adapter(alias)))


def test_a_file_system_without_locks_is_no_obstacle(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    def refuse(self: object, *args: object, **kwargs: object) -> None:
        raise NotImplementedError("no locks here")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    world.publish("acme/legal")
    world.install("acme/legal")
    assert world.environment.lock.by_alias("legal") is not None


def _hold_lock_and_die(path: Path) -> None:
    with _locked(path):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_lock_holder_blocks_nobody(world: World) -> None:
    world.publish("acme/legal")
    context = multiprocessing.get_context("fork")
    holder = context.Process(target=_hold_lock_and_die, args=(world.project / ".adapters" / ".lock",))
    holder.start()
    holder.join()
    assert holder.exitcode == -signal.SIGKILL
    world.install("acme/legal")
    assert world.environment.lock.by_alias("legal") is not None


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08])
def test_a_killed_install_is_finished_by_the_next(world: World, delay: float) -> None:
    for name in ("acme/legal", "acme/spanish"):
        world.publish(name, seed=len(name))
    world.yaml("adapters: {legal: acme/legal, spanish: acme/spanish}\n")
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=_install, args=(world, None))
    worker.start()
    time.sleep(delay)
    worker.kill()
    worker.join()
    for path in (world.project / "adapters.lock", world.project / "adapters.yaml"):
        assert not path.exists() or path.read_bytes().endswith(b"\n")
    world.install()
    for alias in ("legal", "spanish"):
        require_intact(open_package(world.adapter(alias)))
    assert world.actions() == ["reuse", "reuse"]


def test_json_of_plan_and_result(world: World) -> None:
    world.publish("acme/legal")
    plan = plan_install(parse_requirement("acme/legal"), environment=world.environment, cwd=world.project)
    data = json.loads(json.dumps(plan.to_data()))
    assert data["changes"] is True
    assert data["packages"][0]["alias"] == "legal"
    done = json.loads(json.dumps(install(plan).to_data()))
    (row,) = done["installed"]
    assert row["path"] == str(world.adapter("legal"))
    assert row["fetched_bytes"] == sum(path.stat().st_size for path in world.adapter("legal").glob("adapter_[cm]o*"))
