"""Faults of the machine and of strangers, provoked for real, seen from the command line (docs/reliability.md)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.cli.main import main
from adapterhub.errors import ExitCode
from adapterhub.package import open_package, require_intact
from adapterhub.settings import Settings
from tests.factory import edit_json, tiny_llama, tiny_lora
from tests.hub.faults import Stall
from tests.hub.fixtures import hub_environment
from tests.hub.server import running_hub
from tests.ops.world import World

ADAPT = (sys.executable, "-m", "adapterhub.cli.main")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture
def world(tmp_path: Path, settings: Settings, base: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(root=tmp_path, settings=settings, base=base)
    world.yaml()
    monkeypatch.chdir(world.project)
    return world


class Adapt:
    """`adapt` in this process, and what it printed."""

    def __init__(self, capsys: Any) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *words: str) -> int:
        self._capsys.readouterr()
        code = main(words)
        self.out, self.err = self._capsys.readouterr()
        assert "Traceback" not in self.err
        return code


@pytest.fixture
def adapt(capsys: Any) -> Adapt:
    return Adapt(capsys)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_below(folder: Path) -> dict[str, bytes]:
    """Return every regular file below a folder with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


# Files from the future


def test_a_lockfile_of_a_later_major_is_refused_and_left_alone(world: World, adapt: Adapt) -> None:
    world.publish("acme/legal")
    assert adapt("install", "acme/legal") == 0
    edit_json(world.project / "adapters.lock", lock_version="99.0")
    before = files_below(world.project)
    for words in (("install", "acme/legal"), ("sync",), ("list",), ("sync", "--frozen")):
        assert adapt(*words) == ExitCode.USAGE
        assert "99.0 is newer than this adapterhub reads" in adapt.err
        assert "pip install -U adapterhub" in adapt.err
    assert files_below(world.project) == before


def test_a_lockfile_of_a_later_minor_is_read(world: World, adapt: Adapt) -> None:
    world.publish("acme/legal")
    assert adapt("install", "acme/legal") == 0
    edit_json(world.project / "adapters.lock", lock_version="1.999", flavour="new")
    shutil.rmtree(world.project / ".adapters")
    assert adapt("sync", "--frozen") == 0
    require_intact(open_package(world.adapter("legal")))


# Names that would leave their folder


@pytest.mark.parametrize(
    "name",
    ["../acme/legal", "acme/../legal", "/etc/passwd", "..", "../..", "acme/..", ".acme/legal", "acme/le\0gal",
     "acme\\legal", "acme/legal/more", "C:/legal", "ac\x1b[31mme/legal", "~/legal"],
)  # fmt: skip
def test_an_organisation_is_never_a_path(world: World, adapt: Adapt, name: str) -> None:
    world.publish("acme/legal")
    before = files_below(world.root)
    assert adapt("install", name) == ExitCode.USAGE
    assert "\x1b" not in adapt.err
    assert files_below(world.root) == before
    (world.project / "adapters.lock").write_text(
        json.dumps({"lock_version": "1.1", "base": None, "entries": [{"alias": "x", "name": name}]})
    )
    assert adapt("sync", "--frozen") == ExitCode.USAGE


@pytest.mark.parametrize(
    "path",
    ["../evil", "a/../../evil", "/tmp/evil", "a\0b", "a\nb", "C:evil", "C:\\evil", "\\\\host\\evil", "a\\..\\evil",
     "NUL", "con.json", "aux", "LPT1.safetensors", "evil.", "evil ", " evil", "a//b", "./a", "a\u202eb", "a:stream",
     "x" * 300],
)  # fmt: skip
def test_a_file_name_that_is_no_plain_relative_path_is_refused(world: World, adapt: Adapt, path: str) -> None:
    folder = world.publish("acme/legal")
    manifest = json.loads((folder / "adapter_manifest.json").read_text())
    manifest["files"].append({"path": path, "size": 1, "sha256": "0" * 64})
    (folder / "adapter_manifest.json").write_text(json.dumps(manifest))
    before = files_below(world.root)
    assert adapt("install", "acme/legal") in (ExitCode.USAGE, ExitCode.INTEGRITY)
    assert "files" in adapt.err
    assert files_below(world.root) == before


def test_file_names_that_differ_in_case_or_form_alone_are_refused(world: World, adapt: Adapt) -> None:
    folder = world.publish("acme/legal")
    manifest = json.loads((folder / "adapter_manifest.json").read_text())
    for first, second in (("Heads.safetensors", "heads.safetensors"), ("é.json", "e\u0301.json")):
        rows = [{"path": path, "size": 1, "sha256": "0" * 64} for path in (first, second)]
        edit_json(folder / "adapter_manifest.json", files=manifest["files"] + rows)
        assert adapt("install", "acme/legal") in (ExitCode.USAGE, ExitCode.INTEGRITY)
        assert "one file on some file systems" in adapt.err


# What strangers write


def test_terminal_escapes_in_metadata_never_reach_the_terminal(world: World, adapt: Adapt) -> None:
    def publish_with(name: str, **changes: Any) -> int:
        folder = world.build(name)
        edit_json(folder / "adapter_manifest.json", **changes)
        target = world.registry / "acme" / name / "1.0.0"
        shutil.copytree(folder, target)
        return adapt("install", f"acme/{name}")

    evil = "\x1b]0;owned\x07\x1b[2J\x9b31mred\u202egnp.exe"
    assert publish_with("summary", summary=evil) != 0
    assert "control characters" in adapt.err
    assert publish_with("license", license=evil) != 0
    # What is free-form is taken as it is, and is cleaned where it is shown.
    assert publish_with("extra", summary="safe \u202egnp.exe", extra={"evil": evil, evil: 1}) == 0, adapt.err
    for words in (("show", "extra"), ("list",), ("tree",), ("show", "extra", "--json"), ("list", "--json")):
        assert adapt(*words) == 0, adapt.err
        for character in "\x1b\x07\x9b\u202e":
            assert character not in adapt.out + adapt.err
    assert publish_with("evil-key", **{evil: 1}) != 0
    assert not any(character in adapt.out + adapt.err for character in "\x1b\x07\x9b\u202e")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]\n", "anchors and aliases are not allowed"),
        ("a: !!python/object/apply:os.system [touch owned]\n", "the tag"),
        ("a: !!binary aGVsbG8=\n", "the tag"),
        ("[" * 100_000, "nested more than"),
        ("{" * 100_000, "key must be text"),
        ("- " * 100_000, "nested more than"),
        ("a: " + "9" * 100_000, "400 digits"),
        ("[" + "0," * 200_000 + "0]", "more than"),
    ],
)
def test_a_yaml_bomb_ends_at_once(world: World, adapt: Adapt, text: str, said: str) -> None:
    (world.project / "adapters.yaml").write_text(text)
    begin = time.process_time()
    assert adapt("install", "acme/legal") == ExitCode.USAGE
    assert said in adapt.err
    assert "line 1" in adapt.err or "line 2" in adapt.err
    assert time.process_time() - begin < 10
    assert not (world.project / "owned").exists()


# The disk


def _run(words: tuple[str, ...], *, cwd: Path, env: dict[str, str], **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, **more)


def _with_mounts(script: str, *arguments: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount, in a user namespace of its own; skip where there are none."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs user namespaces (unshare -rm)")
    return _run(("unshare", "-rm", "sh", "-ec", script, "sh", *arguments), cwd=cwd, env=env)


def _environment(home: Path) -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    return {**os.environ, "ADAPTERHUB_HOME": str(home), "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def large(world: World) -> Path:
    """A published package of 2 MB of weights, in the folder it lies in."""
    folder = tiny_lora(world.root / "built" / "large", world.base, r=2048)
    target = world.registry / "acme" / "large" / "1.0.0"
    shutil.copytree(folder, target)
    assert (target / WEIGHTS).stat().st_size > 1 << 20
    return target


def test_a_full_disk_ends_with_9_and_the_next_install_is_whole(world: World, large: Path) -> None:
    home = world.root / "small-disk"
    home.mkdir()
    # A real tmpfs of 512 KiB; made larger, the same command goes through.
    script = """
        home=$1 python=$2
        mount -t tmpfs -o size=512k tmpfs "$home"
        code=0; "$python" -m adapterhub.cli.main install acme/large || code=$?
        echo "full: $code"; test ! -e adapters.lock; find "$home" -type f
        mount -o remount,size=64m "$home"
        "$python" -m adapterhub.cli.main install acme/large
        cmp .adapters/large/adapter_model.safetensors "$3" && echo whole
    """
    done = _with_mounts(
        script, str(home), sys.executable, str(large / WEIGHTS), cwd=world.project, env=_environment(home)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, digest = done.stdout.splitlines(), _sha256(large / WEIGHTS)
    assert first[0] == f"full: {int(ExitCode.LOCAL_IO)}"
    assert "No space left on device" in done.stderr
    assert "free some space" in done.stderr
    assert not any(f"/blobs/sha256/{digest[:2]}/{digest}" in line for line in first)
    assert first[-1] == "whole"


def test_a_file_that_may_not_grow_leaves_no_blob(world: World, large: Path) -> None:
    """The kernel refuses the write (RLIMIT_FSIZE) as a full disk does, without any right to mount."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, 256 << 10))

    home = world.root / "home"
    env = _environment(home)
    done = _run((*ADAPT, "install", "acme/large"), cwd=world.project, env=env, preexec_fn=limit)
    assert done.returncode == ExitCode.LOCAL_IO, done.stderr
    assert "File too large" in done.stderr
    assert not (world.project / "adapters.lock").exists()
    assert not list((home / "store" / "v1").glob(f"blobs/*/*/{_sha256(large / WEIGHTS)}"))
    done = _run((*ADAPT, "install", "acme/large"), cwd=world.project, env=env)
    assert done.returncode == 0, done.stderr
    require_intact(open_package(world.adapter("large")))


def test_a_read_only_store_serves_what_it_has_and_refuses_the_rest(world: World, large: Path) -> None:
    home = world.root / "home"
    world.publish("acme/legal")
    env = _environment(home)
    assert _run((*ADAPT, "install", "acme/legal"), cwd=world.project, env=env).returncode == 0
    script = """
        home=$1 python=$2
        mount --bind "$home" "$home"; mount -o remount,bind,ro "$home"
        rm -rf .adapters
        code=0; "$python" -m adapterhub.cli.main sync --frozen || code=$?; echo "sync: $code"
        "$python" -m adapterhub.cli.main list >/dev/null; echo "list: $?"
        code=0; "$python" -m adapterhub.cli.main install acme/large || code=$?; echo "install: $code"
    """
    done = _with_mounts(script, str(home), sys.executable, cwd=world.project, env=env)
    assert done.stdout.splitlines() == ["sync: 0", "list: 0", f"install: {int(ExitCode.LOCAL_IO)}"], done.stderr
    assert "read-only" in done.stderr.lower()
    require_intact(open_package(world.adapter("legal")))


def test_a_project_on_another_disk_than_the_store_is_whole(world: World, large: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or not os.access(other, os.W_OK) or other.stat().st_dev == world.root.stat().st_dev:
        pytest.skip("needs two file systems")
    home = other / f"adapterhub-test-{os.getpid()}"
    try:
        done = _run((*ADAPT, "install", "acme/large"), cwd=world.project, env=_environment(home))
        assert done.returncode == 0, done.stderr
        installed = world.adapter("large") / WEIGHTS
        (blob,) = [path for path in home.glob("store/v1/blobs/*/*/*") if path.stat().st_size > 1 << 20]
        assert blob.stat().st_nlink == 1  # no hard link crosses
        assert installed.read_bytes() == (large / WEIGHTS).read_bytes()
        require_intact(open_package(world.adapter("large")))
    finally:
        shutil.rmtree(home, ignore_errors=True)


# Endings


def _wait_for(what: Callable[[], bool], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)]
)
def test_a_signal_in_a_download_keeps_what_came(world: World, large: Path, number: int, code: ExitCode) -> None:
    sent = 1 << 20
    with running_hub() as hub:
        token, content = hub.add_user("acme").token, f"*{_sha256(large / WEIGHTS)}*"
        hub.add_repo("acme/remote", {path.name: path.read_bytes() for path in large.iterdir()}, tags=("v1.0.0",))
        (world.project / "adapters.yaml").write_text('project_version: "1.0"\nregistries: {"*": hub}\n')
        home = world.root / "home"
        env = hub_environment(hub, world.root / "hf", token) | {
            "ADAPTERHUB_HOME": str(home),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        env.pop("HF_HUB_OFFLINE", None)
        # The first request of these bytes is for their header alone.
        stall = hub.faults.add(Stall(after=sent, seconds=60), method="GET", path=content, skip=1, times=None)
        process = subprocess.Popen(
            (*ADAPT, "install", "acme/remote"), cwd=world.project, env=env, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            _wait_for(lambda: sum(path.stat().st_size for path in _parts(home)) >= sent or process.poll() is not None)
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        assert stall not in hub.faults.unused()
        assert process.returncode == code, said
        assert "Traceback" not in said
        assert sum(path.stat().st_size for path in _parts(home)) >= sent
        assert not (world.project / "adapters.lock").exists()
        hub.faults.clear()
        hub.forget()
        done = _run((*ADAPT, "install", "acme/remote"), cwd=world.project, env=env)
        assert done.returncode == 0, done.stderr
        asked = [line.request.headers.get("range", "") for line in hub.seen("GET", content)]
        assert f"bytes={sent}-" in " ".join(asked), asked
        require_intact(open_package(world.adapter("remote")))


def _parts(home: Path) -> list[Path]:
    return [path for path in (home / "store" / "v1" / "partials").rglob("*") if path.is_file()]


# Code


def test_code_in_a_package_is_neither_fetched_nor_run(world: World, adapt: Adapt) -> None:
    folder = world.publish("acme/legal")
    (folder / "evil.py").write_text(f"open({str(world.root / 'owned')!r}, 'w')\n")
    (folder / "__init__.py").write_text("import evil\n")
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    assert adapt("install", "acme/legal") == 0, adapt.err
    for words in (("show", "legal"), ("validate", ".adapters/legal"), ("verify",), ("list",)):
        assert adapt(*words) == 0, adapt.err
    assert not (world.root / "owned").exists()
    assert sorted(path.name for path in world.adapter("legal").iterdir() if path.name[0] != ".") == [
        "adapter_config.json",
        "adapter_manifest.json",
        WEIGHTS,
    ]
    assert b"system" not in b"".join(files_below(world.settings.home).values())
