"""What the tests of publishing to the Hub share: who publishes what, and a look at what the Hub then holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.package import open_package
from adapterhub.progress import SILENT
from adapterhub.registry import Published, _hub_client
from adapterhub.registry.hub import HubRegistry
from adapterhub.spec.index import AdapterIndex
from adapterhub.spec.refs import PackageName, PackageRef
from tests.factory import tiny_llama, tiny_lora
from tests.hub.fixtures import HubClient
from tests.hub.server import Hub
from tests.hub.state import Repo, User

NAME = PackageName.parse("acme/Legal-LoRA")
REF = PackageRef.parse("acme/Legal-LoRA@1.2.0")
COMMIT, TAG = "*/commit/main", "*/tag/*"
Publish = Callable[[Path], Published]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture
def built(tmp_path: Path, base: Path) -> Path:
    return tiny_lora(tmp_path / "built", base, name="legal", version="1.2.0")


@pytest.fixture
def alice(hub: Hub, hub_client: HubClient, monkeypatch: pytest.MonkeyPatch) -> User:
    """The user whose token is set; the waits between tries are left out."""
    user = hub.add_user("alice", organizations=("acme",))
    monkeypatch.setenv("HF_TOKEN", user.token)
    monkeypatch.setattr(_hub_client, "sleep", lambda seconds: None)
    return user


@pytest.fixture
def publish(alice: User) -> Publish:
    """Publish a folder as another process would."""
    return lambda folder: HubRegistry().publish(open_package(folder), NAME, progress=SILENT)


def repo(hub: Hub) -> Repo:
    return hub.repo("acme/Legal-LoRA")


def index(hub: Hub) -> AdapterIndex:
    return AdapterIndex.from_data(json.loads(repo(hub).head.files["adapter_index.json"].content))


def commits(hub: Hub) -> list[str]:
    """The titles of the history, oldest first, without the Hub's own first commit."""
    return [commit.title for commit in reversed(repo(hub).history("main"))][1:]
