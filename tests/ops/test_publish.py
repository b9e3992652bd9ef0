"""Publishing: only what is sound, under a name and version that nobody has used for other bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.errors import (
    AdapterHubError,
    AuthorizationError,
    IncompatibleError,
    IntegrityError,
    InvalidFileError,
    NetworkError,
    UnsatisfiedError,
    UsageError,
)
from adapterhub.ops.publish import PublishPlan, plan_publish, publish
from adapterhub.registry import _hub_client
from adapterhub.settings import Settings, read_settings
from adapterhub.spec.plans import Plan
from tests.factory import edit_json, edit_tensors, tiny_llama, tiny_lora, write_json, write_tiny_manifest
from tests.hub.faults import Corrupt, Status
from tests.hub.fixtures import HubClient
from tests.hub.server import Hub
from tests.ops.world import World, flip_last_byte


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    made = World(root=tmp_path, settings=settings, base=tiny_llama(tmp_path / "tiny-llama"))
    made.yaml()
    return made


@pytest.fixture
def shared(world: World, hub: Hub, hub_client: HubClient, monkeypatch: pytest.MonkeyPatch) -> World:
    """The same world with the Hub for its registry, and a token that may write there."""
    monkeypatch.setenv("HF_TOKEN", hub.add_user("alice", organizations=("acme",)).token)
    monkeypatch.setattr(_hub_client, "sleep", lambda seconds: None)
    world.settings = read_settings()
    (world.project / "adapters.yaml").write_text('project_version: "1.0"\nregistries: {"*": hub}\n')
    return world


def plan(world: World, folder: Path, name: str = "acme/legal", **options: Any) -> PublishPlan:
    return plan_publish(folder, name, environment=world.environment, cwd=world.project, **options)


def test_a_published_package_installs(world: World) -> None:
    folder = world.build("legal", "1.2.0")
    made = plan(world, folder)
    assert [step.action for step in made.steps] == ["write"]
    assert made.changes
    assert not world.registry.exists()
    published = publish(made)
    assert (str(published.ref), published.created) == ("acme/legal@1.2.0", True)
    assert world.install("acme/legal").paths["legal"].is_dir()
    entry = world.environment.lock.by_alias("legal")
    assert entry is not None
    assert entry.manifest == published.digest
    json.dumps([made.to_data(), published.to_data()])


def test_the_same_bytes_again_change_nothing(world: World) -> None:
    folder = world.build("legal")
    publish(plan(world, folder))
    again = plan(world, folder)
    assert [step.action for step in again.steps] == ["keep"]
    assert not again.changes
    assert not publish(again).created


def test_other_bytes_are_refused_by_the_plan(world: World) -> None:
    publish(plan(world, world.build("legal")))
    with pytest.raises(UnsatisfiedError, match="never changes") as caught:
        plan(world, world.build("legal", seed=1))
    assert "1.0.1" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["legal", "acme/", "a/b/c", "../x", "acme/legal@1.0.0"])
def test_a_malformed_name_is_a_usage_error(world: World, name: str) -> None:
    with pytest.raises(UsageError):
        plan(world, world.build("legal"), name)


def test_without_a_registry_it_is_the_hub(world: World) -> None:
    (world.project / "adapters.yaml").write_text('project_version: "1.0"\n')
    with pytest.raises(NetworkError, match="offline"):
        plan(world, world.build("legal"))


def test_a_relative_registry_is_meant_from_where_it_is_typed(world: World) -> None:
    (world.project / "adapters.yaml").write_text('project_version: "1.0"\n')
    made = plan_publish(
        world.build("legal"), "acme/legal", environment=world.environment, registry="packages", cwd=world.root
    )
    publish(made)
    assert (world.root / "packages" / "acme" / "legal" / "1.0.0" / "adapter_manifest.json").is_file()


def test_a_plain_folder_has_to_be_packed_first(world: World) -> None:
    folder = tiny_lora(world.root / "plain", world.base, manifest=False)
    with pytest.raises(UnsatisfiedError) as caught:
        plan(world, folder)
    assert "adapt pack" in (caught.value.hint or "")


def test_changed_bytes_are_not_published(world: World) -> None:
    folder = world.build("legal")
    flip_last_byte(folder / "adapter_model.safetensors")
    with pytest.raises(IntegrityError) as caught:
        plan(world, folder)
    assert caught.value.details
    assert not world.registry.exists()


def test_a_package_that_does_not_fit_its_base_is_not_published(world: World) -> None:
    world.add_base(world.base)
    folder = tiny_lora(world.root / "wide", tiny_llama(world.root / "wide-base", hidden=64))
    with pytest.raises(IncompatibleError):
        plan(world, folder)


def test_bytes_that_change_after_the_plan_are_not_published(world: World) -> None:
    folder = world.build("legal")
    made = plan(world, folder)
    flip_last_byte(folder / "adapter_model.safetensors")
    with pytest.raises(IntegrityError):
        publish(made)
    assert not list(world.registry.rglob("*.safetensors"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_published(world: World, value: float) -> None:
    folder = world.build("legal")

    def spoil(tensors: dict) -> dict:  # type: ignore[type-arg]
        next(iter(tensors.values()))[0, 0] = value
        return tensors

    edit_tensors(folder / "adapter_model.safetensors", spoil)
    write_tiny_manifest(folder, world.base)
    with pytest.raises(AdapterHubError, match="validation") as caught:
        plan(world, folder)
    assert "ADP401" in caught.value.details[0]


def test_an_adapter_that_changes_nothing_is_warned_about(world: World) -> None:
    folder = world.build("legal")
    assert plan(world, folder).report.passed.count("ADP402") == 1

    def zero(tensors: dict) -> dict:  # type: ignore[type-arg]
        return {name: array * 0 if "lora_B" in name else array for name, array in tensors.items()}

    edit_tensors(folder / "adapter_model.safetensors", zero)
    write_tiny_manifest(folder, world.base)
    assert any("every B is zero" in warning for warning in plan(world, folder).warnings)


def test_what_the_registry_gives_back_is_compared(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(world, world.build("legal"))
    real = made.registry.publish

    def damaged(*args: object, **options: object) -> object:
        done = real(*args, **options)  # type: ignore[arg-type]
        flip_last_byte(world.registry / "acme/legal/1.0.0/adapter_model.safetensors")
        return done

    monkeypatch.setattr(made.registry, "publish", damaged)
    with pytest.raises(IntegrityError, match="gives back something else") as caught:
        publish(made)
    assert "adapt yank acme/legal@1.0.0" in (caught.value.hint or "")


def test_every_fault_is_named_not_the_first(world: World) -> None:
    publish(plan(world, world.build("legal")))
    folder = world.build("legal", seed=1)
    flip_last_byte(folder / "adapter_model.safetensors")
    with pytest.raises(IntegrityError, match="2 reasons") as caught:
        plan(world, folder)
    told = "\n".join(caught.value.details)
    assert "adapter_model.safetensors" in told
    assert "never changes" in told
    with pytest.raises(UsageError, match="2 reasons") as caught_too:
        plan(world, Path("nowhere"), "legal")
    assert any("org/name" in line for line in caught_too.value.details)
    assert any("no such folder" in line for line in caught_too.value.details)


def test_a_licence_that_promises_too_much_has_to_be_acknowledged(world: World) -> None:
    (world.base / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    world.add_base(world.base)
    folder = world.build("legal")
    edit_json(folder / "adapter_manifest.json", license="apache-2.0")
    with pytest.raises(UnsatisfiedError, match="cc-by-nc") as caught:
        plan(world, folder)
    assert "--acknowledge-licence" in (caught.value.hint or "")
    made = plan(world, folder, acknowledge_licence=True)
    assert any("cc-by-nc" in warning for warning in made.warnings)
    assert publish(made).created


def stack(world: World, **changes: object) -> Path:
    """Write a stack package."""
    tiny = write_tiny_manifest(world.build("member"), world.base)
    folder = world.root / "stack"
    folder.mkdir(exist_ok=True)
    requires = [{"requirement": "acme/medical>=1", "weight": 1.0}, {"requirement": "acme/es", "weight": 0.5}]
    data = tiny.to_data() | {
        "kind": "stack",
        "name": "clinic",
        "method": None,
        "task": None,
        "hyperparameters": {},
        "files": [],
        "requires": requires,
        "combination": "sum",
    }
    write_json(folder / "adapter_manifest.json", data | changes)
    return folder


def test_a_stack_is_published(world: World) -> None:
    made = plan(world, stack(world), "acme/clinic")
    assert publish(made).created
    assert isinstance(made, Plan)
    assert not plan(world, stack(world), "acme/clinic").changes


def test_a_stack_is_checked(world: World) -> None:
    folder = stack(
        world,
        combination="summ",
        requires=[
            {"requirement": "acme/medical", "weight": 1.0},
            {"requirement": "acme/Medical>=2", "weight": 1.0},
            {"requirement": "acme/es#main", "weight": 1.0},
            {"requirement": "acme/clinic", "weight": 1.0},
        ],
    )
    with pytest.raises(InvalidFileError, match="4 reasons") as caught:
        plan(world, folder, "acme/clinic")
    for text in ("'summ'", "acme/medical comes twice", "acme/es#main names a revision", "ask for itself"):
        assert any(text in line for line in caught.value.details), text


def test_published_on_the_hub_and_installed_from_there(shared: World, hub: Hub) -> None:
    folder = shared.build("legal", "1.2.0")
    made = plan(shared, folder)
    assert dict(made.facts())["registry"] == "hub"
    assert hub.seen("POST") == []  # a plan writes nothing
    assert publish(made).created
    assert len(hub.seen("GET", "/cdn/*")) > 0  # it was read back
    assert not plan(shared, folder).changes
    assert not publish(plan(shared, folder)).created
    assert [commit.title for commit in hub.repo("acme/legal").history("main")][1:] == ["initial commit"]
    shared.install("acme/legal")
    entry = shared.environment.lock.by_alias("legal")
    assert entry is not None
    assert (entry.registry, entry.revision) == ("hub", hub.repo("acme/legal").tags["v1.2.0"])


def test_the_plan_for_the_hub_names_every_fault(shared: World, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shared.build("legal")
    (folder / "README.md").write_text("---\na: [\n---\n")
    flip_last_byte(folder / "adapter_model.safetensors")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(IntegrityError, match="3 reasons") as caught:
        plan(shared, folder)
    for text in ("adapter_model.safetensors", "README.md: line", "needs a token"):
        assert any(text in line for line in caught.value.details), text
    assert hub.seen("POST") == []


def test_what_the_hub_gives_back_is_compared(shared: World, hub: Hub) -> None:
    made = plan(shared, shared.build("legal"))
    hub.faults.add(Corrupt(offset=-1), path="/cdn/*", times=None)
    with pytest.raises(IntegrityError, match="gives back something else"):
        publish(made)
    assert hub.faults.unused() == []


def test_a_hub_that_falls_silent_after_the_tag_is_a_network_error(shared: World, hub: Hub) -> None:
    made = plan(shared, shared.build("legal"))
    hub.faults.add(Status(status=503), path="/cdn/*", times=None)
    with pytest.raises(NetworkError, match="is published, and could not be read back") as caught:
        publish(made)
    assert "adapt install acme/legal@1.0.0" in (caught.value.hint or "")
    assert list(hub.repo("acme/legal").tags) == ["v1.0.0"]


def test_who_may_not_write_is_told_by_the_plan(shared: World, hub: Hub) -> None:
    hub.add_repo("other/legal")
    with pytest.raises(AuthorizationError):
        plan(shared, shared.build("legal"), "other/legal")
