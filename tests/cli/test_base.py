"""`adapt base` as a process: streams, exit codes, hints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.factory import tiny_llama


def adapt(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adapterhub.cli.main", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "base")


def test_the_life_of_a_base(base: Path) -> None:
    empty = adapt("base", "list")
    assert empty.stdout.split()[:2] == ["NAME", "ARCHITECTURE"] and "adapt base add" in empty.stderr

    dry = adapt("base", "add", "tiny", "--from", base, "--dry-run")
    assert (dry.returncode, dry.stdout.splitlines()[0]) == (0, "base add:")
    assert json.loads(adapt("base", "list", "--json").stdout) == []

    added = adapt("base", "add", "tiny", "--from", base)
    assert (added.returncode, added.stdout) == (0, "")
    assert added.stderr.startswith("added tiny (LlamaForCausalLM, ")
    again = adapt("base", "add", "tiny", "--from", base, "--json")
    assert json.loads(again.stdout)["status"] == "unchanged" and again.stderr == ""

    (row,) = json.loads(adapt("base", "list", "--json").stdout)
    assert (row["id"], row["state"], row["path"]) == ("tiny", "intact", str(base.resolve()))
    assert row["fingerprints"]["weights"].startswith("sha256:")
    assert adapt("base", "list").stdout.splitlines()[1].split()[0] == "tiny"

    shown = adapt("base", "show", "tiny", "--verify")
    assert row["fingerprints"]["weights"] in shown.stdout and "verified" in shown.stderr
    assert json.loads(adapt("base", "show", "tiny", "--verify", "--json").stdout)["verified"] is True

    dry = adapt("base", "remove", "tiny", "--dry-run")
    assert "remove  the record of tiny" in dry.stdout
    removed = adapt("base", "remove", "tiny", "--json")
    assert json.loads(removed.stdout) == {"removed": "tiny", "path": str(base.resolve())}
    assert base.is_dir() and json.loads(adapt("base", "list", "--json").stdout) == []


def test_a_changed_folder(base: Path) -> None:
    adapt("base", "add", "tiny", "--from", base)
    data = bytearray((base / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (base / "model.safetensors").write_bytes(data)
    assert json.loads(adapt("base", "list", "--json").stdout)[0]["state"] == "touched"
    shown = adapt("base", "show", "tiny")
    assert shown.returncode == 0 and "adapt base show tiny --verify" in shown.stderr
    verified = adapt("base", "show", "tiny", "--verify", "--json")
    assert (verified.returncode, verified.stdout) == (3, "")
    assert verified.stderr.splitlines()[0] == "error: base model tiny is not what it was when it was added"
    assert "  - weights differs" in verified.stderr.splitlines()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("add", "tiny"), 2, "adapt base add tiny --from FOLDER"),
        (("add", "m", "--from", "hub:org/model"), 5, "offline, and main of this model is not"),
        (("add", "org/model#v1"), 5, "offline, and v1 of this model is not"),
        (("add", "m", "--from", "hub:model"), 2, "org/model#REV"),
        (("add", "m", "--from", "/nowhere"), 1, "no such file"),
        (("show", "none"), 1, "adapt base add none --from"),
        (("remove", "none"), 1, "no base model none"),
        (("show", "../none"), 2, "base model id"),
        (("ad", "x"), 2, "did you mean `adapt base add`?"),
    ],
)
def test_refusals(args: tuple[str, ...], code: int, words: str) -> None:
    done = adapt("base", *args)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr and "Traceback" not in done.stderr
