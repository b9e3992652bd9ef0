"""Yanking in both registries: what changes, what does not, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub.errors import AuthorizationError, UnsatisfiedError, UsageError
from adapterhub.ops.publish import plan_publish, publish
from adapterhub.ops.yank import Yanked, YankPlan, plan_yank, yank
from adapterhub.settings import read_settings
from tests.factory import tiny_llama
from tests.hub.fixtures import HubClient
from tests.hub.server import Hub
from tests.ops.world import World


@pytest.fixture(params=["folder", "hub"])
def world(
    request: pytest.FixtureRequest, tmp_path: Path, hub: Hub, hub_client: HubClient, monkeypatch: pytest.MonkeyPatch
) -> World:
    """A project whose registry is a folder, then the Hub, with acme/legal 1.0.0 and 1.1.0 in it."""
    monkeypatch.setenv("HF_TOKEN", hub.add_user("alice", organizations=("acme",)).token)
    made = World(root=tmp_path, settings=read_settings(), base=tiny_llama(tmp_path / "tiny-llama"))
    made.yaml()
    if request.param == "hub":
        (made.project / "adapters.yaml").write_text('project_version: "1.0"\nregistries: {"*": hub}\n')
    for version in ("1.0.0", "1.1.0"):
        publish(plan_publish(made.build("legal", version), "acme/legal", environment=made.environment))
    return made


def plan(world: World, text: str = "acme/legal@1.1.0", **options: object) -> YankPlan:
    return plan_yank(text, environment=world.environment, cwd=world.project, **options)  # type: ignore[arg-type]


def do(world: World, text: str = "acme/legal@1.1.0", **options: object) -> Yanked:
    return yank(plan(world, text, **options))


def marks(world: World) -> dict[str, str | None]:
    from adapterhub.spec.refs import PackageName

    name = PackageName.parse("acme/legal")
    registry = world.environment.registry_of(name, given=None, cwd=world.project)
    return {str(item.version): item.yanked for item in registry.versions(name)}


def test_a_yanked_version_is_passed_over_and_taken_back(world: World) -> None:
    made = plan(world, reason="leaks\n  names")
    assert [step.action for step in made.steps] == ["yank"]
    assert marks(world) == {"1.0.0": None, "1.1.0": None}  # a plan changes nothing
    done = yank(made)
    assert (done.reason, done.changed) == ("leaks names", True)
    assert marks(world) == {"1.0.0": None, "1.1.0": "leaks names"}
    world.install("acme/legal")
    entry = world.environment.lock.by_alias("legal")
    assert entry is not None
    assert str(entry.version) == "1.0.0"
    assert do(world, undo=True).changed
    assert marks(world) == {"1.0.0": None, "1.1.0": None}
    json.dumps([made.to_data(), done.to_data()])


def test_again_changes_nothing_and_another_reason_does(world: World) -> None:
    assert do(world).changed
    assert marks(world)["1.1.0"] == ""
    again = plan(world)
    assert not again.changes
    assert not yank(again).changed
    assert do(world, reason="because").changed
    assert marks(world)["1.1.0"] == "because"
    assert not do(world, "acme/legal@1.0.0", undo=True).changed


@pytest.mark.parametrize("world", ["folder"], indirect=True)
@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("acme/legal", {}),
        ("acme/legal>=1", {}),
        ("legal@1.0.0", {}),
        ("acme/legal@1.0.0", {"undo": True, "reason": "x"}),
        ("acme/legal@1.0.0", {"reason": "x" * 501}),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(world: World, text: str, options: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        plan(world, text, **options)
    assert caught.value.hint


def test_a_version_that_is_not_there_lists_those_that_are(world: World) -> None:
    with pytest.raises(UnsatisfiedError) as caught:
        plan(world, "acme/legal@9.0.0")
    assert caught.value.hint == "available: 1.0.0, 1.1.0"
    with pytest.raises(UnsatisfiedError):
        plan(world, "acme/other@1.0.0")


@pytest.mark.parametrize("world", ["hub"], indirect=True)
def test_who_may_not_write_may_not_yank(world: World, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.add_user("mallory").token)
    with pytest.raises(AuthorizationError):
        do(world)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(AuthorizationError) as caught:
        do(world)
    assert "adapt login" in (caught.value.hint or "")
    assert marks(world)["1.1.0"] is None
