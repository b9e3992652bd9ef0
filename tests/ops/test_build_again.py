"""Building again: nothing to do where nothing changed, and what changed where something did; the recipe's lock."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.cli.main import main
from adapterhub.documents import read_recipe_lock, write_recipe_lock
from adapterhub.errors import IntegrityError, LocalIOError, UnsatisfiedError
from adapterhub.files import write_atomic
from adapterhub.ops._build_again import Kept, ask, look_again
from adapterhub.ops._build_lock import lock_path
from adapterhub.ops._build_plan import BuildPlan
from adapterhub.ops._build_unfinished import unfinished, unfinished_folder
from adapterhub.ops.build import BuildResult, build, plan_build
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.digest import digest_file
from adapterhub.spec.recipe_lock import BuildInputs, RecipeLock
from tests.engine.tiny import Recorder
from tests.factory import tiny_llama
from tests.ops.test_build import project, tree

TRAINING = {"torch", "transformers", "peft", "accelerate", "numpy", "tokenizers"}
HEAVY = TRAINING | {"ruamel", "packaging", "rich", "jsonschema", "huggingface_hub"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a home, a recipe and what was built from it, from which each test takes a copy."""
    root = tmp_path_factory.mktemp("original")
    home = Settings(home=root / "home", threads=1)
    tiny_llama(root / "base")
    BaseStore(home).add(read_base(root / "base", BaseModelRef(id="tiny-llama"), "folder"))
    return root


class World:
    """A recipe that was built, with all that a build reads: `p/recipe.yaml` into `p/dist/tiny`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings = Settings(home=root / "home", threads=1)
        self.recipe = root / "p" / "recipe.yaml"
        self.out = root / "p" / "dist" / "tiny"

    def build(self, **options: Any) -> BuildResult:
        given = {"out": self.out, "settings": self.settings, "device": "cpu", **options}
        return build(self.recipe, **given)

    def plan(self, **options: Any) -> BuildPlan | Kept:
        given = {"out": self.out, "settings": self.settings, "device": "cpu", **options}
        return plan_build(self.recipe, **given)

    def look(self, settings: Settings | None = None) -> Kept | None:
        asked = ask(self.recipe, out=self.out, overrides=(), device="cpu", settings=settings or self.settings)
        return look_again(asked)

    @property
    def lock(self) -> RecipeLock:
        found = read_recipe_lock(lock_path(self.recipe))
        assert found is not None
        return found

    def adapt(self, *words: str, threads: str = "1") -> subprocess.CompletedProcess[str]:
        """Run a command that also tells which modules it loaded, in the last line of stderr."""
        body = (
            "import sys; from adapterhub.cli.main import main\n"
            f"code = main({list(words)!r})\n"
            "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr); sys.exit(code)"
        )
        env = {**os.environ, "ADAPTERHUB_HOME": str(self.settings.home), "ADAPTERHUB_THREADS": threads}
        return subprocess.run(
            [sys.executable, "-c", body], capture_output=True, text=True, env=env, cwd=self.root, timeout=300
        )


@pytest.fixture(scope="module")
def first(original: Path) -> World:
    """The world that was built once; tests that change something take `world`."""
    world = World(original)
    project(original / "p")
    time.sleep(0.2)  # so that the base counts as older than the build
    result = world.build()
    assert not result.kept
    return world


@pytest.fixture
def world(first: World, tmp_path: Path) -> World:
    """A copy of the recipe, its rows and its package, built again into a record of its own."""
    root = tmp_path / "world"
    shutil.copytree(first.root, root)
    copied = World(root)
    shutil.rmtree(root / "home" / "cache")
    tiny_base(copied)
    time.sleep(0.15)
    assert copied.build().kept  # by the lock alone: the record told of another folder
    return copied


def tiny_base(world: World, *, seed: int = 0) -> None:
    """Point the base's name to a folder of this world."""
    folder = world.root / f"base-{seed}"
    tiny_llama(folder, seed=seed)
    BaseStore(world.settings).add(read_base(folder, BaseModelRef(id="tiny-llama"), "folder"))


pytestmark = pytest.mark.engine


def test_the_lock_says_what_was_read_and_what_came_of_it(first: World) -> None:
    lock, data = first.lock, lock_path(first.recipe).read_bytes()
    assert lock_path(first.recipe).name == "recipe.lock"
    assert lock.canonical_bytes() == data
    assert str(first.root).encode() not in data
    assert lock.out == "dist/tiny"
    assert lock.manifest == digest_file(first.out / "adapter_manifest.json")[0]
    assert lock.inputs.data == {name: digest_file(first.root / "p" / name)[0] for name in ("train.jsonl", "eval.jsonl")}
    assert lock.inputs.base_model == BaseStore(first.settings).get("tiny-llama").ref
    import torch

    assert lock.inputs.packages["torch"] == version("torch")
    assert set(lock.inputs.packages) == {
        "accelerate", "adapterhub", "numpy", "peft", "tokenizers", "torch", "transformers",
    }  # fmt: skip
    assert lock.inputs.machine is not None
    assert torch.backends.cpu.get_cpu_capability() in lock.inputs.machine.device.split()
    assert (lock.inputs.machine.dtype, lock.inputs.machine.threads) == ("float32", 1)


def test_nothing_to_do_loads_nothing_that_trains(first: World) -> None:
    before = tree(first.root / "p")
    words = ("build", str(first.recipe), "--out", str(first.out), "--device", "cpu")
    done = first.adapt(*words)
    assert done.returncode == 0, done.stderr
    assert set(done.stderr.splitlines()[-1].split()) & HEAVY == set()
    assert "nothing to do" in done.stderr
    assert "tiny-lora 1.0.0" in done.stdout
    assert str(first.out) in done.stdout
    done = first.adapt(*words, "--json")
    data = json.loads(done.stdout)
    assert (data["nothing_to_do"], data["path"], data["digest"]) == (True, str(first.out), str(first.lock.manifest))
    assert data["metrics"]["eval_rows"] == 5
    assert data["steps"] == 0
    assert set(data) == set(first.build().to_data())
    assert set(done.stderr.splitlines()[-1].split()) & HEAVY == set()
    done = first.adapt(*words, "--dry-run")
    assert done.returncode == 0
    assert "nothing to do" in done.stdout
    assert set(done.stderr.splitlines()[-1].split()) & HEAVY == set()
    assert tree(first.root / "p") == before


def test_built_again_in_the_process(first: World) -> None:
    result = first.build()
    assert (result.kept, result.steps, result.manifest.digest) == (True, 0, first.lock.manifest)
    assert result.to_data()["nothing_to_do"] is True
    plan = first.plan()
    assert isinstance(plan, Kept)
    assert not plan.changes


Change = Callable[[World], None]


def rows(world: World) -> None:
    path = world.root / "p" / "train.jsonl"
    status = path.stat()
    data = path.read_bytes()
    path.write_bytes(data.replace(b"Question 3", b"Question 4", 1))
    # Same size, same time: only the inode's own time and the bytes tell.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def tools(world: World) -> None:
    inputs = world.lock.inputs
    older = replace(inputs, packages={**inputs.packages, "peft": "0.1.0"})
    write_recipe_lock(lock_path(world.recipe), replace(world.lock, inputs=older))
    shutil.rmtree(world.settings.cache)


def machine(world: World) -> None:
    inputs = world.lock.inputs
    assert inputs.machine is not None
    other = replace(inputs, machine=replace(inputs.machine, device="cpu s390x DEFAULT"))
    write_recipe_lock(lock_path(world.recipe), replace(world.lock, inputs=other))
    shutil.rmtree(world.settings.cache)


def field(world: World) -> None:
    data = json.loads(world.recipe.read_text())
    data["training"]["learning_rate"] = 2e-2
    data["summary"] = "Other words."
    world.recipe.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (rows, ("data train.jsonl changed",)),
        (tools, ("peft 0.1.0 → ",)),
        (machine, ("device cpu s390x DEFAULT → cpu ",)),
        (field, ("the recipe: summary ", "the recipe: training.learning_rate 0.01 → 0.02")),
        (lambda world: tiny_base(world, seed=7), ("the base's weights changed",)),
    ],
)
def test_what_changed_is_told_and_the_package_stays(world: World, change: Change, told: tuple[str, ...]) -> None:
    before = tree(world.out)
    change(world)
    lock = lock_path(world.recipe).read_bytes()
    assert world.look() is None
    for act in (world.build, world.plan):
        with pytest.raises(UnsatisfiedError, match="built from something else") as caught:
            act()
        assert len(caught.value.details) == len(told)
        assert all(text.startswith(start) for text, start in zip(caught.value.details, told, strict=True))
        assert "raise `version`" in str(caught.value.hint)
        assert "--force" in str(caught.value.hint)
    with pytest.raises(UnsatisfiedError, match=r"not what is locked|built from something else") as caught:
        world.build(locked=True)
    assert caught.value.details[0].startswith(told[0].partition(":")[0])
    assert tree(world.out) == before
    assert lock_path(world.recipe).read_bytes() == lock
    # Elsewhere it may be built, and the plan tells what is new.
    plan = world.plan(out=world.root / "other")
    assert isinstance(plan, BuildPlan)
    assert plan.since_lock
    assert dict(plan.facts())["since recipe.lock"]


def comment(world: World) -> None:
    world.recipe.write_text(world.recipe.read_text() + "\n# a comment\n")


def touched(world: World) -> None:
    os.utime(world.root / "p" / "eval.jsonl")


@pytest.mark.parametrize(
    "change",
    [
        comment,
        touched,
        lambda world: lock_path(world.recipe).unlink(),
        lambda world: shutil.rmtree(world.settings.cache),
    ],
    ids=["comment", "touched", "no lock", "no record"],
)
def test_what_means_nothing_changes_nothing(world: World, change: Change) -> None:
    before, lock = tree(world.out), lock_path(world.recipe).read_bytes()
    change(world)
    assert world.build().kept
    assert tree(world.out) == before
    assert lock_path(world.recipe).read_bytes() == lock
    assert world.look() is not None


def test_a_damaged_package_is_no_reason_to_do_nothing(world: World) -> None:
    path = world.out / "adapter_model.safetensors"
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert world.look() is None
    with pytest.raises(IntegrityError) as caught:
        world.build()
    assert "--force" in str(caught.value.hint)
    assert not world.build(force=True).kept
    assert world.build().kept


def test_another_number_of_threads_warns(world: World) -> None:
    two = replace(world.settings, threads=2)
    kept = world.look(two)
    assert kept is not None
    assert "1 threads, this is 2" in kept.warnings[0]
    plan = world.plan(out=world.root / "other", settings=two)
    assert isinstance(plan, BuildPlan)
    assert plan.threads == 2
    assert any("--locked takes 1" in text for text in plan.warnings)
    assert plan.since_lock == ("threads 1 → 2",)
    locked = world.plan(out=world.root / "other", settings=two, locked=True)
    assert isinstance(locked, BuildPlan)
    assert (locked.threads, locked.since_lock) == (1, ())
    assert not any("threads" in text for text in locked.warnings)
    inputs, many = world.lock.inputs, len(os.sched_getaffinity(0)) + 1
    assert inputs.machine is not None
    crowded = replace(inputs, machine=replace(inputs.machine, threads=many))
    write_recipe_lock(lock_path(world.recipe), replace(world.lock, inputs=crowded))
    plan = world.plan(out=world.root / "other", locked=True)
    assert isinstance(plan, BuildPlan)
    assert any(f"{many} threads are locked" in text for text in plan.warnings)
    world.plan(out=world.root / "other")  # one thread again, for the tests that follow


def test_force_replaces_the_package_and_nothing_of_a_person_s(world: World) -> None:
    before, inode = tree(world.out), world.out.stat().st_ino

    class Interrupting(Recorder):
        def advance(self, amount: int = 1) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.build(force=True, progress=Interrupting.new())
    assert tree(world.out) == before
    result = world.build(force=True)
    assert not result.kept
    assert result.manifest.digest == world.lock.manifest
    assert world.out.stat().st_ino != inode
    assert [path.name for path in world.out.parent.iterdir()] == ["tiny"]
    (world.out / "notes.txt").write_text("mine")
    with pytest.raises(LocalIOError, match="no build wrote") as caught:
        world.build(force=True)
    assert caught.value.details == ("notes.txt",)
    assert (world.out / "notes.txt").read_text() == "mine"


def test_another_build_s_package_is_not_taken_for_this_one(world: World) -> None:
    """Two folders of one recipe: the lock tells of the last, and the record of each."""
    other = world.root / "p" / "dist" / "other"
    seed = ["training.seed=4"]
    assert not world.build(out=other, overrides=seed).kept
    assert world.lock.out == "dist/other"
    assert world.build().kept
    assert world.lock.out == "dist/tiny"
    assert world.build(out=other, overrides=seed).kept
    shutil.rmtree(world.settings.cache)
    with pytest.raises(UnsatisfiedError) as caught:
        world.build()
    assert "tells of another package" in caught.value.details[0]
    outside = world.build(out=world.root / "elsewhere")
    assert not outside.kept
    assert world.lock.out is None
    assert outside.manifest.digest == world.lock.manifest


def test_a_locked_build_has_the_same_bytes_in_another_process(world: World) -> None:
    lock = lock_path(world.recipe).read_bytes()
    words = ("build", str(world.recipe), "--device", "cpu", "--json")
    done = world.adapt(*words, "--locked", "--out", "again", threads="2")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert (data["reproduced"], data["digest"]) == (True, str(world.lock.manifest))
    assert lock_path(world.recipe).read_bytes() == lock
    name = "adapter_model.safetensors"
    assert (world.root / "again" / name).read_bytes() == (world.out / name).read_bytes()
    done = world.adapt(*words, "--locked", "--out", "again", threads="2")
    assert json.loads(done.stdout)["nothing_to_do"] is True
    assert set(done.stderr.splitlines()[-1].split()) & HEAVY == set()


def test_a_locked_build_with_other_bytes_fails(world: World) -> None:
    wrong = replace(world.lock, manifest=digest_file(world.recipe)[0])
    write_recipe_lock(lock_path(world.recipe), wrong)
    result = world.build(out=world.root / "again", locked=True)
    assert (result.reproduced, result.exit_code) == (False, 1)
    assert any("not the locked ones" in text for text in result.warnings)
    assert world.lock == wrong


def test_a_lock_that_cannot_be_written_undoes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(path: Path, lock: RecipeLock) -> None:
        raise LocalIOError("cannot write the file: Read-only file system", where=str(path))

    # Root may write anywhere, so no folder can be made to refuse.
    monkeypatch.setattr("adapterhub.ops._build_lock.write_recipe_lock", refusing)
    lock_path(world.recipe).unlink()
    other = world.root / "p" / "dist" / "second"
    result = world.build(out=other)
    assert not result.kept
    assert any("nothing is locked" in text for text in result.warnings)
    assert world.build(out=other).kept
    shutil.rmtree(world.settings.cache)
    with pytest.raises(UnsatisfiedError, match="no lock tells what it was built from"):
        world.build(out=other)


def test_without_a_lock_nothing_is_locked(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_path(world.recipe).unlink()
    monkeypatch.setenv("ADAPTERHUB_HOME", str(world.settings.home))
    assert main(["build", str(world.recipe), "--out", str(world.root / "x"), "--locked", "--dry-run"]) == 1
    assert "there is no such lock" in capsys.readouterr().err


# --- what an interrupted build leaves ---------------------------------------------------------------------------------


@pytest.fixture
def inputs(first: World) -> BuildInputs:
    return first.lock.inputs


def test_checkpoints_stay_until_all_went_well(tmp_path: Path, inputs: BuildInputs, settings: Settings) -> None:
    out, notes = tmp_path / "dist" / "tiny", Recorder.new()

    def attempt(*, fail: bool, fresh: bool = False, of: BuildInputs = inputs) -> list[str]:
        with unfinished(out, of, fresh=fresh, settings=settings, progress=notes) as (folder, identity):
            assert identity == str(of.digest)
            found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
            if fail:
                folder.mkdir(parents=True, exist_ok=True)
                write_atomic(folder / "step", b"1")
                raise KeyboardInterrupt
        return found

    with pytest.raises(KeyboardInterrupt):
        attempt(fail=True)
    assert unfinished_folder(out).is_dir()
    assert "the same command goes on" in notes.notes[-1]
    # Other inputs are another training: they find nothing, and take nothing away.
    other = replace(inputs, python="3.99")
    with pytest.raises(KeyboardInterrupt):
        attempt(fail=True, of=other)
    killed = out.with_name(".tiny.4194999-00c0ffee.tmp")
    killed.mkdir()
    assert attempt(fail=False) == ["step"]
    assert list(out.parent.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        attempt(fail=True)
    assert attempt(fail=False, fresh=True) == []


def test_two_builds_of_one_folder_do_not_meet(tmp_path: Path, inputs: BuildInputs, settings: Settings) -> None:
    out, progress = tmp_path / "tiny", Recorder.new()
    body = (
        "import sys, time; from pathlib import Path; from filelock import FileLock\n"
        "lock = FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); time.sleep(60)"
    )
    with unfinished(out, inputs, fresh=False, settings=settings, progress=progress):
        [lock] = (settings.cache / "builds").glob("*.lock")
    holder = subprocess.Popen([sys.executable, "-c", body, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(LocalIOError, match="another process is building"),
            unfinished(out, inputs, fresh=False, settings=settings, progress=progress),
        ):
            raise AssertionError
    finally:
        holder.kill()
        holder.wait()
    with unfinished(out, inputs, fresh=False, settings=settings, progress=progress):
        pass
