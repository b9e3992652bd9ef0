"""The tree of packages: from adapters.yaml, the lock and the store, without any registry."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.cli.main import main
from adapterhub.documents import read_lockfile, write_lockfile
from adapterhub.ops.tree import draw, read_tree
from adapterhub.settings import Settings
from adapterhub.spec.refs import PackageName
from tests.factory import tiny_llama
from tests.ops.stacked import Yard, clinic, fetch, lock_of, requirements, without


@pytest.fixture
def yard(tmp_path: Path, settings: Settings) -> Yard:
    made = Yard(root=tmp_path, settings=settings, base=tiny_llama(tmp_path / "tiny-llama"))
    made.yaml()
    return made


def test_a_stack_s_members_stand_below_it_with_their_weights(yard: Yard) -> None:
    clinic(yard)
    shutil.rmtree(yard.registry)  # the lock and the store are enough
    assert draw(read_tree(yard.environment)) == [
        "tiny-llama (base model, folder)",
        "├── clinic: acme/clinic-es 1.0.0",
        "│   ├── acme/legal 1.0.0 (weight 0.75; wanted: acme/legal<2,>=1)",
        "│   └── acme/spanish 1.0.0 (weight 1)",
        "└── legal: acme/legal 1.0.0 (wanted: acme/legal>=1)",
    ]
    data = read_tree(yard.environment).to_data()
    json.dumps(data)
    assert data["packages"][0]["members"][0]["weight"] == 0.75  # type: ignore[index]


def test_without_the_stored_manifest_the_weights_are_unknown(yard: Yard) -> None:
    clinic(yard)
    entry = yard.environment.lock.by_name(PackageName.parse("acme/clinic-es"))
    assert entry is not None and entry.manifest is not None
    path = yard.settings.store / "manifests" / "sha256" / entry.manifest.hex[:2] / entry.manifest.hex
    path.chmod(0o644)
    path.write_bytes(b"{}")  # damaged: not believed
    assert "│   └── acme/spanish 1.0.0" in draw(read_tree(yard.environment))
    path.unlink()
    assert "│   └── acme/spanish 1.0.0" in draw(read_tree(yard.environment))


def test_what_is_missing_is_told(yard: Yard) -> None:
    clinic(yard)
    shutil.rmtree(yard.adapter("legal"))
    without(yard, "acme/spanish")
    lines = draw(read_tree(yard.environment), ascii_only=True)
    assert "|   `-- acme/spanish (weight 1; not locked)" in lines
    assert lines[-1] == "`-- legal: acme/legal 1.0.0 (wanted: acme/legal>=1; not installed)"
    assert all(line.isascii() for line in lines)


def test_a_lock_that_goes_round_ends(yard: Yard) -> None:
    clinic(yard)
    lock = read_lockfile(yard.project)
    turned = [
        replace(entry, requires=requirements("acme/clinic-es")) if str(entry.name) == "acme/legal" else entry
        for entry in lock.entries
    ]
    write_lockfile(yard.project, replace(lock, entries=tuple(turned)))
    lines = draw(read_tree(yard.environment))
    assert "│   │   └── acme/clinic-es 1.0.0 (members: see above)" in lines
    assert len(lines) == 6


def test_what_adapters_yaml_no_longer_asks_for(yard: Yard) -> None:
    clinic(yard)
    yard.yaml("adapters:\n  legal: acme/legal>=1\n")
    lines = draw(read_tree(yard.environment))
    assert "└── clinic: acme/clinic-es 1.0.0 (adapters.yaml no longer asks for it)" in lines
    yard.yaml()
    yard.publish("acme/medical")
    lock_of(yard, fetch(yard, "acme/medical@1.0.0"))
    tree = read_tree(yard.environment)
    assert [str(entry.ref) for entry in tree.unasked] == ["acme/medical@1.0.0"]
    assert tree.to_data()["unasked"] == ["acme/medical@1.0.0"]


def test_an_empty_project_says_so(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(yard.project)
    assert main(["tree"]) == 0
    out, err = capsys.readouterr()
    assert (out, "adapt install" in err) == ("", True)
    assert main(["tree", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["packages"] == []


@pytest.mark.parametrize(("encoding", "sign"), [("utf-8", "├── "), ("ascii", "|-- "), ("latin-1", "|-- ")])
def test_the_signs_follow_what_the_stream_can_write(yard: Yard, encoding: str, sign: str) -> None:
    clinic(yard)
    done = subprocess.run(
        [sys.executable, "-m", "adapterhub.cli.main", "tree"],
        cwd=yard.project,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    text = io.TextIOWrapper(io.BytesIO(done.stdout), encoding=encoding).read()
    assert f"{sign}clinic: acme/clinic-es 1.0.0" in text
    assert "\x1b" not in text and "\\u" not in text
