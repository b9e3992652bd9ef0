"""adapter_index.json on the Hub: what is not written again, and yanking."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.errors import (
    InvalidFileError,
    NetworkError,
    UnsatisfiedError,
)
from adapterhub.package import open_package
from adapterhub.registry.hub import HubRegistry
from adapterhub.spec.refs import PackageRef
from tests.hub.faults import LostAnswer, RacingCommit, Status
from tests.hub.server import Hub
from tests.hub.state import User
from tests.registry.publishing import COMMIT, NAME, REF, Publish, commits, index, repo


@pytest.mark.parametrize("content", [b"{", b'{"index_version": "2.0", "versions": []}', b'{"index_version": "1.9"}'])
def test_an_index_that_cannot_be_written_again_is_left_alone(
    hub: Hub, publish: Publish, built: Path, content: bytes
) -> None:
    hub.add_repo("acme/Legal-LoRA", {"adapter_index.json": content})
    with pytest.raises(InvalidFileError) as caught:
        publish(built)
    assert "upgrade" in (caught.value.hint or "")
    assert commits(hub) == ["Upload files"]


def test_yank_and_take_it_back(hub: Hub, publish: Publish, built: Path) -> None:
    publish(built)
    before = repo(hub).head.files
    assert HubRegistry().set_yanked(REF, "leaks names")
    assert HubRegistry().versions(NAME)[0].yanked == "leaks names"
    assert not HubRegistry().set_yanked(REF, "leaks names")
    assert HubRegistry().set_yanked(REF, None)
    assert not HubRegistry().set_yanked(REF, None)
    assert commits(hub)[1:] == ["Yank 1.2.0", "Take back the yank of 1.2.0"]
    assert repo(hub).head.files == before
    assert HubRegistry().describe(REF).manifest.version == REF.version
    with pytest.raises(UnsatisfiedError) as caught:
        HubRegistry().set_yanked(PackageRef.parse("acme/Legal-LoRA@9.9.9"), "")
    assert caught.value.hint == "available: 1.2.0"


def test_a_yank_survives_a_lost_answer_and_a_racing_commit(hub: Hub, publish: Publish, built: Path) -> None:
    publish(built)
    hub.faults.add(RacingCommit(), method="POST", path=COMMIT)
    hub.faults.add(LostAnswer(), method="POST", path=COMMIT, skip=1)
    assert HubRegistry().set_yanked(REF, "why")
    assert hub.faults.unused() == []
    assert commits(hub)[1:] == ["racing commit", "Yank 1.2.0"]
    hub.faults.add(Status(status=500), method="POST", path=COMMIT)
    with pytest.raises(NetworkError):
        HubRegistry().set_yanked(REF, None)
    assert index(hub).rows[0].yanked == "why"


def test_a_tag_without_a_row_gets_one_when_it_is_yanked(hub: Hub, alice: User, built: Path) -> None:
    manifest = open_package(built).manifest
    made = hub.add_repo("acme/Legal-LoRA", {"adapter_manifest.json": manifest.canonical_bytes()}, tags=("v1.2.0",))
    date = made.head.tick
    assert HubRegistry().set_yanked(REF, "old")
    row = index(hub).rows[0]
    assert (row.manifest, row.yanked, row.published.second) == (manifest.digest, "old", date)
    hub.add_repo("acme/plain", {"adapter_config.json": b"{}"}, tags=("v1.0.0",))
    with pytest.raises(UnsatisfiedError, match="plain adapter"):
        HubRegistry().set_yanked(PackageRef.parse("acme/plain@1.0.0"), "")
