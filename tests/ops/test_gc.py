"""Collecting: what a project, a user or a command at work needs stays, and killed commands leave nothing for ever."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from adapterhub.environment import find_environment
from adapterhub.errors import ExitCode, InvalidFileError
from adapterhub.ops._place import place
from adapterhub.ops.gc import GcPlan, gc, plan_gc
from adapterhub.ops.install import install, parse_requirement, plan_install
from adapterhub.ops.uninstall import plan_uninstall, uninstall
from adapterhub.ops.verify import verify
from adapterhub.progress import SILENT
from adapterhub.settings import Settings
from adapterhub.spec.lockfile import LOCK_FILE
from adapterhub.store import Store
from adapterhub.store.inventory import Kind, inventory
from adapterhub.store.roots import stored_of
from tests.factory import tiny_llama
from tests.ops.world import Notes, World

NONE = timedelta()
# An installation that stops for as long as it is told where a blob was found and is not laid out yet.
SLOW_INSTALL = """
import sys
from pathlib import Path
from adapterhub.environment import find_environment
from adapterhub.ops import _installation
from adapterhub.ops.install import install, parse_requirement, plan_install
place = _installation.place
def slowly(*arguments, **options):
    print("ready", flush=True)
    sys.stdin.readline()
    place(*arguments, **options)
_installation.place = slowly
here = Path(sys.argv[1])
install(plan_install(parse_requirement("acme/legal"), environment=find_environment(here), cwd=here))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture
def world(tmp_path: Path, settings: Settings, base: Path) -> World:
    made = World(root=tmp_path, settings=settings, base=base)
    made.yaml()
    made.publish("acme/legal")
    made.install("acme/legal")
    return made


def take_out(world: World, word: str) -> None:
    uninstall(plan_uninstall(word, environment=world.environment), progress=SILENT)


def plan(world: World, grace: timedelta = NONE) -> GcPlan:
    return plan_gc(settings=world.settings, grace=grace)


def refs(world: World) -> list[str]:
    return [str(package.ref) for package in Store(world.settings.store).packages()]


def stored_bytes(world: World) -> int:
    return sum(item.size for item in inventory(Store(world.settings.store)) if item.kind is not Kind.ROOT)


def test_what_is_installed_stays_and_what_was_taken_out_goes(world: World) -> None:
    made = plan(world)
    assert not made.changes
    assert gc(made).to_data()["removed"] == []
    take_out(world, "legal")
    young = plan(world, timedelta(hours=1))
    assert not young.changes
    assert young.to_data()["young"] == 1
    assert young.sweep.young_bytes > 0
    made = plan(world)
    assert [(step.action, step.subject) for step in made.steps] == [("remove", "acme/legal@1.0.0")]
    assert refs(world) == ["acme/legal@1.0.0"]
    before = stored_bytes(world)
    done = gc(made)
    assert done.to_data()["removed"] == ["acme/legal@1.0.0"]
    assert before - stored_bytes(world) == done.plan.frees == made.frees == made.steps[0].size
    assert refs(world) == []
    assert not plan(world).changes


def test_every_project_of_this_machine_and_the_user_s_environment_count(world: World, tmp_path: Path) -> None:
    second = World(root=tmp_path / "second", settings=world.settings, base=world.base)
    second.root.mkdir()
    second.yaml()
    second.publish("acme/other", seed=1)
    second.install("acme/other")
    elsewhere = tmp_path / "nowhere"
    elsewhere.mkdir()
    environment = find_environment(elsewhere, world.settings)
    assert environment.is_user
    third = second.publish("acme/mine", seed=2)
    requirement = parse_requirement("acme/mine")
    install(plan_install(requirement, environment=environment, registry=str(third.parents[2]), cwd=elsewhere))
    gc(plan(world))
    assert refs(world) == ["acme/legal@1.0.0", "acme/mine@1.0.0", "acme/other@1.0.0"]
    shutil.rmtree(second.project)
    made = plan(world)
    assert ("forget", str(second.project)) in [(step.action, step.subject) for step in made.steps]
    gc(made)
    assert refs(world) == ["acme/legal@1.0.0", "acme/mine@1.0.0"]
    assert verify(world.environment).exit_code is ExitCode.OK
    assert verify(environment).exit_code is ExitCode.OK


def test_a_broken_lockfile_stops_the_collection_and_is_named(world: World) -> None:
    take_out(world, "legal")
    (world.project / LOCK_FILE).write_text("{")
    with pytest.raises(InvalidFileError) as caught:
        plan(world)
    assert caught.value.where == str(world.project / LOCK_FILE)
    assert refs(world) == ["acme/legal@1.0.0"]


@pytest.mark.skipif(sys.platform == "win32", reason="ends a process by a signal")
@pytest.mark.parametrize("killed", [False, True])
def test_a_slow_installation_keeps_its_package_until_it_is_killed(world: World, killed: bool) -> None:
    take_out(world, "legal")
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW_INSTALL, str(world.project)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    gc(plan(world))
    assert refs(world) == ["acme/legal@1.0.0"]
    if killed:
        child.kill()
        child.communicate()
        made = plan(world)
        gc(made)
        assert refs(world) == []
        assert {item.kind for item in inventory(Store(world.settings.store))} <= {Kind.ROOT}
        world.install("acme/legal")
    else:
        child.communicate("\n", timeout=60)
        assert child.returncode == 0
    gc(plan(world))
    assert verify(world.environment).exit_code is ExitCode.OK
    assert world.adapter("legal").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="ends a process by a signal")
def test_killed_installations_leave_nothing_that_stays(world: World) -> None:
    """Killed at many moments, some of them within laying out a folder: verify tells, the next call completes."""
    command = [sys.executable, "-c", SLOW_INSTALL.replace("sys.stdin.readline()", "pass"), str(world.project)]
    for turn in range(4):
        shutil.rmtree(world.project / ".adapters")
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(turn * 0.0015)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        found = verify(world.environment)
        assert found.exit_code in (ExitCode.OK, ExitCode.UNSATISFIED)
        gc(plan(world))
        hidden = [path.name for path in (world.project / ".adapters").glob(".*.tmp")]
        assert hidden == []
        world.install()
        assert verify(world.environment).exit_code is ExitCode.OK


def leftover(world: World, name: str) -> Path:
    """Return a name that a process gave which is dead by now."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    return world.project / ".adapters" / f".{name}.{child.pid}-0123abcd.tmp"


def test_a_half_laid_out_folder_of_a_dead_process_goes(world: World) -> None:
    half = leftover(world, "medical")
    half.mkdir()
    (half / "adapter_config.json").write_text("{")
    lock = world.project / half.name.replace("medical", LOCK_FILE)
    lock.write_text("{")
    mine = world.project / ".adapters" / f".medical.{os.getpid()}-0123abcd.tmp"
    mine.mkdir()
    assert plan(world, timedelta(hours=1)).leftovers == ()
    made = plan(world)
    assert sorted(made.leftovers) == sorted([half, lock])
    assert half.exists(), "a plan changes nothing"
    gc(made)
    assert not half.exists()
    assert not lock.exists()
    assert mine.exists(), "its process is at work"
    assert verify(world.environment).exit_code is ExitCode.OK


@pytest.mark.parametrize("changed", [False, True])
def test_a_folder_that_was_being_taken_away_keeps_a_user_s_changes(world: World, changed: bool) -> None:
    """As after a kill between moving the old folder aside and keeping what was changed in it."""
    entry = world.environment.lock.by_alias("legal")
    assert entry is not None
    aside = leftover(world, "legal")
    world.adapter("legal").rename(aside)
    if changed:
        (aside / "notes.txt").write_text("mine")
    place(Store(world.settings.store), stored_of(entry), world.adapter("legal"), progress=SILENT)
    notes = Notes()
    gc(plan(world), progress=notes)
    assert not aside.exists()
    kept = world.project / ".adapters" / ".kept" / "legal-1" / "notes.txt"
    assert kept.exists() is changed
    assert bool(notes.lines) is changed


def test_a_plan_says_which_folders_cannot_be_reached(world: World, tmp_path: Path) -> None:
    disk = World(root=tmp_path / "disk", settings=world.settings, base=world.base)
    disk.root.mkdir()
    disk.yaml()
    disk.publish("acme/other", seed=1)
    disk.install("acme/other")
    gc(plan(world))
    disk.root.rename(tmp_path / "drawer")
    made = plan(world)
    assert str(disk.project) in made.warnings[0]
    assert made.to_data()["away"] == [str(disk.project)]
    gc(made)
    assert "acme/other@1.0.0" in refs(world)
