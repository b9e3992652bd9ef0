"""Commands killed before every single step that changes a folder: nothing committed is lost, the next call ends it.

A child is forked, and an audit hook (PEP 578) sends it SIGKILL before its n-th rename, link or removal, for every n.
The moments between these steps are those of tests/test_stress.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from adapterhub.cli.main import main
from adapterhub.package import open_package, require_intact
from adapterhub.settings import Settings
from tests.factory import tiny_llama
from tests.ops.world import World

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the commands run in forked children")

STEPS = ("os.rename", "os.link", "os.remove")
MOST_STEPS = 200


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture
def world(tmp_path: Path, settings: Settings, base: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A project with one package installed and one in the registry; another to publish."""
    world = World(root=tmp_path, settings=settings, base=base)
    world.yaml()
    for seed, name in enumerate(("acme/legal", "acme/spanish")):
        world.publish(name, seed=seed)
    world.publish("acme/legal", "1.1.0", seed=7)
    world.install("acme/legal@1.0.0")
    world.build("acme/made", seed=9)
    monkeypatch.chdir(world.project)
    return world


def run(words: tuple[str, ...], *, die_at: int | None, log: Path) -> int:
    """Run `adapt` in a forked child that kills itself before a step; return its exit code, or minus the signal."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            if die_at is not None:
                _die_at(die_at)
            code = main(words)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _die_at(step: int) -> None:
    left = step

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in STEPS:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)


COMMANDS = {
    "install another": ("install", "acme/spanish"),
    "install another version": ("install", "acme/legal@1.1.0"),
    "sync": ("sync",),
    "uninstall": ("uninstall", "legal"),
    "gc": ("gc", "--grace", "0"),
    "publish": ("publish", "../built/acme-made-1.0.0-9", "--to", "acme/made"),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_a_command_killed_before_any_step_is_ended_by_the_next(world: World, what: str) -> None:
    words, log = COMMANDS[what], world.root / "log.txt"
    if what in ("sync", "gc"):  # so that there is something to do
        world.install("acme/spanish")
        shutil.rmtree(world.project / ".adapters" / "spanish")
    if what == "gc":
        assert main(["uninstall", "spanish"]) == 0
    _save(world, "start")
    for step in range(MOST_STEPS):
        code = run(words, die_at=step, log=log)
        if code == 0:  # it ended before that many steps
            assert step >= 2, "the command does nothing that could be cut off"
            _check(world, what)
            return
        assert code == -signal.SIGKILL, log.read_text()
        # What is damaged or missing after a crash is named, and never taken for whole.
        assert run(("verify",), die_at=None, log=log) in (0, 1, 3), log.read_text()
        # An uninstallation whose lockfile was written is done: there is nothing of that name any more.
        assert run(words, die_at=None, log=log) in ((0, 1) if what == "uninstall" else (0,)), log.read_text()
        assert run(("verify",), die_at=None, log=log) == 0, log.read_text()
        _check(world, what)
        _restore(world, "start")
    raise AssertionError("the command never ends")


def _check(world: World, what: str) -> None:
    """Hold what the command promises, and that the other packages are what they were."""
    aliases = {entry.alias: str(entry.version) for entry in world.environment.lock.entries}
    expected = {
        "install another": {"legal": "1.0.0", "spanish": "1.0.0"},
        "install another version": {"legal": "1.1.0"},
        "sync": {"legal": "1.0.0", "spanish": "1.0.0"},
        "uninstall": {},
    }.get(what, {"legal": "1.0.0"})
    assert aliases == expected
    for alias in expected:
        require_intact(open_package(world.adapter(alias)))
    if what == "publish":
        require_intact(open_package(world.registry / "acme" / "made" / "1.0.0"))


def _places(world: World) -> list[Path]:
    return [world.project, world.settings.home, world.registry]


def _save(world: World, name: str) -> None:
    for place in _places(world):
        shutil.copytree(place, world.root / name / place.name, symlinks=True)


def _restore(world: World, name: str) -> None:
    """Put everything back as it was; the working folder keeps its inode, since the test stands in it."""
    for place in _places(world):
        for item in place.iterdir():
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item)
            else:
                item.unlink()
        shutil.copytree(world.root / name / place.name, place, symlinks=True, dirs_exist_ok=True)
