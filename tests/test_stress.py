"""Twenty kills at random moments on one store, each promise checked after each; kill_stress.py does two hundred."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.stress import VERBS, Broken, Stress

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the actors are forked")

KILLS = 20
REPOSITORY = Path(__file__).parents[1]


def run_stress(root: Path, kills: int, verbs: str) -> dict[str, object]:
    """Run the harness in a process of its own and return what it counted."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.stress", str(root), "--kills", str(kills), "--verbs", verbs],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counted = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(counted, dict)
    assert sum(counted["killed"].values()) == kills
    return counted


def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    run_stress(tmp_path / "shop", KILLS, "install,sync,publish,gc")


@pytest.fixture
def shop(tmp_path: Path) -> Stress:
    """A shop with one published version, one blob, and a lockfile that names both."""
    shop = Stress(root=tmp_path, random=Random(0), verbs=VERBS)
    version = shop.registry / "acme" / "p0" / "1.0.0"
    version.mkdir(parents=True)
    for name in ("adapter_manifest.json", "adapter_config.json", "adapter_model.safetensors"):
        (version / name).write_bytes(b"as published")
    shop.check_registry()
    return shop


@pytest.mark.parametrize("damage", ["flip", "remove a file", "remove all"])
def test_the_harness_notices_a_published_version_that_changed(shop: Stress, damage: str) -> None:
    version = shop.registry / "acme" / "p0" / "1.0.0"
    if damage == "flip":
        (version / "adapter_model.safetensors").write_bytes(b"as publishee")
    elif damage == "remove a file":
        (version / "adapter_model.safetensors").unlink()
    else:
        version.rename(shop.root / "elsewhere")
    with pytest.raises(Broken):
        shop.check_registry()


def test_the_harness_notices_a_blob_that_lies(shop: Stress) -> None:
    from adapterhub.store.content import VERIFIED_TIME

    blob = shop.home / "store" / "v1" / "blobs" / "sha256" / "00" / ("0" * 64)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"torn")
    shop.check_store()  # not verified yet: it will be hashed before it is used
    os.utime(blob, ns=(VERIFIED_TIME, VERIFIED_TIME))
    with pytest.raises(Broken, match="damaged"):
        shop.check_store()
