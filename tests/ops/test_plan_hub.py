"""`adapt plan` of a base that is on the Hub and not here: headers by ranged requests, no weight, nothing written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.ops.plan import plan_training
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from tests.factory import tiny_llama
from tests.hub.fixtures import HubClient
from tests.hub.server import Hub
from tests.ops.test_build import project

ID = "org/tiny"


@pytest.fixture
def online(settings: Settings, hub_client: HubClient) -> Settings:
    """Settings that may use the network, which is the Hub on loopback."""
    del hub_client
    return replace(settings, offline=False)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_base_on_the_hub_is_planned_from_its_headers(
    hub: Hub, hub_client: HubClient, online: Settings, tmp_path: Path, shards: int
) -> None:
    folder = tiny_llama(tmp_path / "base", layers=12, hidden=64, shards=shards)
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    hub.add_repo(ID, files)
    recipe = project(tmp_path / "project", base_model=ID)
    remote = plan_training(recipe, device="l4", settings=online)
    assert remote.base == f"{ID}#{hub.repo(ID).head.oid[:12]}" and "not downloaded" in remote.base_source
    assert remote.counted is False and not hub_client.cache.exists() and not online.bases.exists()
    asked = [line for line in hub.requests if line.path.endswith(".safetensors")]
    assert len({line.path for line in asked}) >= shards
    assert all("bytes=" in line.request.headers.get("range", "") for line in asked)

    (folder / "tokenizer.json").unlink()
    BaseStore(online).add(read_base(folder, BaseModelRef(id=ID), "folder"))
    local = plan_training(recipe, device="l4", settings=online)
    assert local.base_source == "on this machine"
    assert [option.to_data() for option in remote.options] == [option.to_data() for option in local.options]
    assert remote.trainable == local.trainable and remote.base_parameters == local.base_parameters
