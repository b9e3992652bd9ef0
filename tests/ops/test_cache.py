"""What is kept on this disk: counted as it lies there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from adapterhub.ops.cache import cache_info
from adapterhub.settings import Settings
from adapterhub.spec.lockfile import LOCK_FILE
from adapterhub.store.inventory import Kind
from adapterhub.store.roots import RootState
from tests.factory import tiny_llama
from tests.ops.world import World


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    made = World(root=tmp_path, settings=settings, base=tiny_llama(tmp_path / "tiny-llama"))
    made.yaml()
    return made


def test_nothing_is_kept_yet(settings: Settings) -> None:
    found = cache_info(settings)
    assert (found.store, found.store_bytes, found.packages, found.environments) == ((), 0, 0, ())
    assert (found.bases, found.cache_bytes) == (0, 0)
    assert not settings.store.exists()


def test_everything_is_counted_as_it_lies_there(world: World) -> None:
    world.publish("acme/legal")
    world.install("acme/legal")
    world.add_base(world.base)
    (world.settings.cache / "deep").mkdir(parents=True)
    (world.settings.cache / "deep" / "x").write_bytes(b"12345")
    (world.settings.store / "tmp" / "half").write_bytes(b"123")
    found = cache_info(world.settings)
    entry = world.environment.lock.by_alias("legal")
    assert entry is not None
    kinds = {use.kind: use for use in found.store}
    assert kinds[Kind.BLOB].files == len(entry.files)
    assert kinds[Kind.BLOB].size == sum(file.size for file in entry.files)
    assert kinds[Kind.TEMPORARY].size == 3
    assert found.store_bytes == sum(path.stat().st_size for path in world.settings.store.rglob("*") if path.is_file())
    assert found.packages == 1
    assert [(use.folder, use.state, use.packages) for use in found.environments] == [
        (world.project.resolve(), RootState.PRESENT, 1)
    ]
    assert found.bases == 1
    assert found.converted_bytes == 0
    assert found.referenced_bytes == (world.base / "model.safetensors").stat().st_size
    assert found.cache_bytes == 5
    data = found.to_data()
    assert data["store"]["kinds"]["blob"]["files"] == len(entry.files)  # type: ignore[index]


def test_folders_that_are_gone_or_broken_are_told(world: World) -> None:
    world.publish("acme/legal")
    world.install("acme/legal")
    (world.project / LOCK_FILE).write_text("{")
    (use,) = cache_info(world.settings).environments
    assert (use.state, use.packages) == (RootState.PRESENT, None)
    shutil.rmtree(world.project)
    (use,) = cache_info(world.settings).environments
    assert (use.state, use.packages) == (RootState.GONE, 0)
    world.settings.user_environment.mkdir(parents=True)
    assert len(cache_info(world.settings).environments) == 2


def test_a_converted_base_lies_here(world: World) -> None:
    from adapterhub.bases import BaseStore, read_base
    from adapterhub.spec.base_model import BaseModelRef

    store = BaseStore(world.settings)
    folder = store.model_folder("converted")
    shutil.copytree(world.base, folder)
    store.add(read_base(folder, BaseModelRef(id="converted"), "gguf"))
    world.add_base(world.base)
    found = cache_info(world.settings)
    assert found.bases == 2
    assert found.converted_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert found.referenced_bytes == (world.base / "model.safetensors").stat().st_size
