"""Installing from the Hub on loopback: tags, revisions, plain adapters, the gate before weights move, the lock."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from adapterhub.errors import AuthorizationError, IncompatibleError, IntegrityError, NetworkError, UnsatisfiedError
from adapterhub.ops.sync import plan_sync, sync
from adapterhub.ops.update import plan_update, update
from adapterhub.package import open_package
from adapterhub.registry import _hub_client
from adapterhub.settings import read_settings
from adapterhub.spec.lockfile import LockedPackage
from tests.factory import tiny_llama, tiny_lora
from tests.hub.faults import Page, Status
from tests.hub.fixtures import HubClient
from tests.hub.server import Hub
from tests.ops.world import World, flip_last_byte

WEIGHTS = "*/adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama", hidden=128)


@pytest.fixture
def world(
    tmp_path: Path, private_home: Path, base: Path, hub_client: HubClient, monkeypatch: pytest.MonkeyPatch
) -> World:
    """A project whose names all come from the Hub; the waits between tries are left out."""
    monkeypatch.setattr(_hub_client, "sleep", lambda seconds: None)
    made = World(root=tmp_path, settings=read_settings(), base=base)
    made.project.mkdir()
    (made.project / "adapters.yaml").write_text('project_version: "1.0"\n')
    return made


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(hub: Hub, name: str, folder: Path, *, tag: str | None) -> str:
    """Put a package's files on the Hub, past `adapt publish`; return the commit."""
    with hub.store.changing():
        repo = hub.store.find("models", name) or hub.add_repo(name)
        hub.store.put_files(repo, files_of(folder))
        if tag is not None:
            repo.tags[tag] = repo.head.oid
        return repo.head.oid


def version(hub: Hub, world: World, name: str, text: str, *, seed: int = 0, **more: object) -> str:
    return put(hub, name, world.build(name, text, seed=seed, **more), tag=f"v{text}")


def locked(world: World, name: str) -> LockedPackage:
    return next(entry for entry in world.environment.lock.entries if str(entry.name) == name)


def test_a_version_is_its_tag_and_the_lock_pins_the_commit(hub: Hub, world: World) -> None:
    first = version(hub, world, "acme/legal-lora", "1.0.0")
    second = version(hub, world, "acme/legal-lora", "1.1.0", seed=1)
    world.install("acme/legal-lora<1.1")
    entry = locked(world, "acme/legal-lora")
    assert (entry.registry, entry.revision, str(entry.version)) == ("hub", first, "1.0.0")
    assert entry.manifest == open_package(world.adapter("legal")).manifest.digest
    assert hub.endpoint not in (world.project / "adapters.lock").read_text()
    world.install("acme/legal-lora>=1")
    assert locked(world, "acme/legal-lora").revision == first, "a locked version stays while it satisfies"
    update(plan_update(environment=world.environment, cwd=world.project))
    assert locked(world, "acme/legal-lora").revision == second


def test_what_is_locked_is_fetched_by_its_commit_wherever_tags_point_now(hub: Hub, world: World) -> None:
    commit = version(hub, world, "acme/legal-lora", "1.0.0")
    world.install("acme/legal-lora")
    weights = (world.adapter("legal") / "adapter_model.safetensors").read_bytes()
    version(hub, world, "acme/legal-lora", "1.0.0", seed=5)
    shutil.rmtree(world.settings.store)
    shutil.rmtree(world.project / ".adapters")
    sync(plan_sync(environment=world.environment, locked=True, cwd=world.project))
    assert (world.adapter("legal") / "adapter_model.safetensors").read_bytes() == weights
    assert locked(world, "acme/legal-lora").revision == commit
    with pytest.raises(IntegrityError, match="published anew with other bytes"):
        plan_update(environment=world.environment, cwd=world.project)


def test_a_branch_is_locked_at_its_commit_until_it_is_updated(hub: Hub, world: World) -> None:
    version(hub, world, "acme/legal-lora", "1.0.0")
    moving = put(hub, "acme/legal-lora", world.build("acme/legal-lora", "1.1.0", seed=3), tag=None)
    world.install("acme/legal-lora#main")
    entry = locked(world, "acme/legal-lora")
    assert (str(entry.version), entry.revision, entry.requested_revision) == ("1.1.0", moving, "main")
    later = put(hub, "acme/legal-lora", world.build("acme/legal-lora", "1.1.0", seed=4), tag=None)
    hub.forget()
    assert not world.plan().changes
    assert hub.requests == [], "what is locked and stored costs no request"
    update(plan_update(environment=world.environment, cwd=world.project))
    assert locked(world, "acme/legal-lora").revision == later
    world.install("acme/legal-lora@1.0.0")
    assert locked(world, "acme/legal-lora").requested_revision is None
    assert str(locked(world, "acme/legal-lora").version) == "1.0.0"


def test_a_plain_peft_repository_is_installed_and_says_so(hub: Hub, world: World) -> None:
    folder = tiny_lora(world.root / "plain", world.base, manifest=False)
    commit = put(hub, "someone/plain-lora", folder, tag=None)
    done = world.install("someone/plain-lora")
    entry = locked(world, "someone/plain-lora")
    assert (str(entry.version), entry.manifest) == (f"0.0.0+g{commit[:12]}", None)
    assert {file.path for file in entry.files} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert any("manifest" in note for note in done.plan.notes)
    shutil.rmtree(world.project / ".adapters")
    world.install()
    assert (world.adapter("plain") / "adapter_model.safetensors").is_file()
    with pytest.raises(UnsatisfiedError):
        world.plan("someone/plain-lora>=0.0.0")


def test_an_adapter_that_does_not_fit_is_refused_by_kilobytes(hub: Hub, world: World, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other" / "tiny-llama", hidden=128, seed=9)
    world.add_base(other)
    (world.project / "adapters.yaml").write_text('project_version: "1.0"\nbase_model: tiny-llama\n')
    big = tiny_lora(world.root / "big", world.base, r=256, lora_alpha=256)
    assert (big / "adapter_model.safetensors").stat().st_size > 10 * (1 << 16)
    put(hub, "acme/legal-lora", big, tag="v1.0.0")
    with pytest.raises(IncompatibleError):
        world.install("acme/legal-lora")
    asked = hub.seen("GET", WEIGHTS)
    assert asked
    for line in asked:
        first, _, last = line.request.headers["range"].removeprefix("bytes=").partition("-")
        assert int(last) - int(first) < 1 << 16
    assert not world.settings.store.exists()
    assert not (world.project / "adapters.lock").exists()


def test_gated_private_and_absent(hub: Hub, world: World) -> None:
    hub.add_repo("acme/gated", files_of(world.build("acme/gated")), gated="manual", tags=("v1.0.0",))
    hub.add_repo("acme/private", files_of(world.build("acme/private")), private=True, tags=("v1.0.0",))
    with pytest.raises(AuthorizationError) as caught:
        world.install("acme/gated")
    assert f"{hub.endpoint}/acme/gated" in f"{caught.value} {caught.value.hint}"
    for name in ("acme/private", "acme/absent"):
        with pytest.raises(UnsatisfiedError) as missing:
            world.install(name)
        assert "adapt login" in (missing.value.hint or "")
    assert not (world.project / "adapters.lock").exists()


def test_a_name_has_one_registry_and_is_looked_for_nowhere_else(hub: Hub, world: World) -> None:
    version(hub, world, "acme/legal-lora", "9.0.0", seed=7)
    version(hub, world, "other/legal-lora", "2.0.0", seed=8)
    world.registry.mkdir()
    (world.project / "adapters.yaml").write_text(
        'project_version: "1.0"\nregistries: {"acme/*": ../registry, "*": hub}\n'
    )
    with pytest.raises(UnsatisfiedError, match="acme/legal-lora"):
        world.plan("acme/legal-lora")
    assert hub.requests == []
    world.install("other/legal-lora")
    world.publish("acme/contract-lora")
    world.install("acme/contract-lora")
    assert {entry.registry for entry in world.environment.lock.entries} == {"hub", "../registry"}


def test_a_stack_package_from_the_hub_brings_members_of_both_registries(hub: Hub, world: World) -> None:
    version(hub, world, "other/spanish", "1.0.0")
    world.publish("acme/medical")
    (world.project / "adapters.yaml").write_text(
        'project_version: "1.0"\nregistries: {"acme/*": ../registry, "*": hub}\n'
    )
    stack = world.publish_stack("other/clinic", {"acme/medical": 1.0, "other/spanish": 0.5})
    put(hub, "other/clinic", stack, tag="v1.0.0")
    world.install("other/clinic")
    assert {str(entry.name): entry.registry for entry in world.environment.lock.entries} == {
        "acme/medical": "../registry",
        "other/clinic": "hub",
        "other/spanish": "hub",
    }


@pytest.mark.parametrize("fault", [Status(status=503), Page()], ids=["unavailable", "web page"])
def test_a_hub_that_is_ill_leaves_everything_as_it_was(hub: Hub, world: World, fault: object) -> None:
    version(hub, world, "acme/legal-lora", "1.0.0")
    hub.faults.add(fault, path="*", times=1000)  # type: ignore[arg-type]
    with pytest.raises(NetworkError):
        world.install("acme/legal-lora")
    assert not (world.project / "adapters.lock").exists()
    assert (world.project / "adapters.yaml").read_text() == 'project_version: "1.0"\n'


def test_bit_rot_in_the_store_is_fetched_again_at_the_locked_commit(hub: Hub, world: World) -> None:
    version(hub, world, "acme/legal-lora", "1.0.0")
    world.install("acme/legal-lora")
    weights = next(
        path for path in (world.settings.store / "blobs").rglob("*") if path.is_file() and path.stat().st_size > 4096
    )
    before = weights.read_bytes()
    shutil.rmtree(world.project / ".adapters")
    flip_last_byte(weights)
    world.install()
    assert weights.read_bytes() == before
