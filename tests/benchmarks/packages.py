"""Installing, syncing, verifying, listing and resolving against what each can be measured by."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.bench import Bench, adapt_command, environment
from tests.benchmarks.harness import CommandError, Comparison, Process, Result, in_turns, measure, note, seconds

SYNCED, CROWD, FEW, LARGE = 200, 10_000, 10, 4
ROUNDS = 15
START = '`python -c "pass"`'


def package_name(number: int) -> str:
    """Return the name of a package of the crowd; a thousand share an organisation."""
    return f"org{number // 1000}/adapter-{number}"


def prepared(bench: Bench, what: str, number: int) -> Bench:
    """Return a bench of its own, with a home of its own, made by prepare_packages."""
    folder = bench.folder / f"{what}-{number}"
    inner = replace(bench, folder=folder)
    done = folder / "done"
    if not done.is_file():
        note(f"  preparing: {number} packages ({what})")
        shutil.rmtree(folder, ignore_errors=True)
        root = Path(__file__).parents[2]
        words = [sys.executable, "-m", "tests.benchmarks.prepare_packages", what, str(folder), str(number)]
        measure(words, env=environment(folder), cwd=root)
        done.touch()
    return inner


def adapt(bench: Bench, *arguments: str) -> Process:
    """Measure one `adapt` command in the project of a prepared bench."""
    return measure([*adapt_command(), *arguments], env=environment(bench.folder), cwd=bench.folder / "project")


def without(bench: Bench, *names: str) -> None:
    """Take files and folders out of a project, so that the next command lays them out anew."""
    for name in names:
        path = bench.folder / "project" / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class Install:
    """Warm `adapt install` of one package, warm `adapt sync` of 200, and either when there is nothing to do."""

    NAME = "install"

    @staticmethod
    def run(bench: Bench) -> Result:
        """Time them from start to exit; the store has everything, the project nothing."""
        one = prepared(bench, "small", 1)
        many = prepared(bench, "small", 20 if bench.quick else SYNCED)
        for shop in (one, many):
            adapt(shop, "sync")

        def install() -> Process:
            without(one, ".adapters", "adapters.lock")
            return adapt(one, "install", package_name(0))

        def sync() -> Process:
            without(many, ".adapters")
            return adapt(many, "sync")

        found = in_turns(
            {
                "install one": install,
                "install one again": lambda: adapt(one, "install", package_name(0)),
                "sync": sync,
                "sync again": lambda: adapt(many, "sync"),
                "python": lambda: bench.python("-c", "pass"),
            },
            rounds=bench.rounds(ROUNDS),
            warm_up=True,
        )
        count = 20 if bench.quick else SYNCED
        rows = {
            "install one": "install of one package, in the store already",
            "install one again": "install of one package, nothing to do",
            "sync": f"sync of {count} packages, in the store already",
            "sync again": f"sync of {count} packages, nothing to do",
        }
        theirs = seconds(found["python"])
        return Result(
            name=Install.NAME,
            title="`adapt install`, `adapt sync`",
            comparisons=tuple(
                Comparison(what=what, unit="s", against=START, ours=seconds(found[key]), theirs=theirs)
                for key, what in rows.items()
            ),
        )


class Verify:
    """`adapt verify` against `sha256sum` on the same files."""

    NAME = "verify"

    @staticmethod
    def run(bench: Bench) -> Result:
        """Time both from start to exit, on four packages of 34 MB; each inode once for both."""
        shop = prepared(bench, "large", 1 if bench.quick else LARGE)
        files: dict[tuple[int, int], str] = {}
        for folder in (shop.folder / "project" / ".adapters", shop.folder / "home" / "store" / "v1" / "blobs"):
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.name.startswith("."):
                    status = path.stat()
                    files.setdefault((status.st_dev, status.st_ino), str(path))
        if shutil.which("sha256sum") is None:
            raise CommandError("there is no sha256sum here")
        size = sum(Path(path).stat().st_size for path in files.values())
        found = in_turns(
            {
                "adapt verify": lambda: adapt(shop, "verify"),
                "sha256sum": lambda: measure(["sha256sum", *files.values()]),
            },
            rounds=bench.rounds(ROUNDS),
            warm_up=True,
        )
        return Result(
            name=Verify.NAME,
            title="`adapt verify`",
            comparisons=(
                Comparison(
                    what=f"{size / 1e6:.0f} MB in {len(files)} files",
                    unit="s",
                    against="`sha256sum` of the same files",
                    ours=seconds(found["adapt verify"]),
                    theirs=seconds(found["sha256sum"]),
                ),
            ),
        )


class Crowd:
    """Listing and resolving where there are 10,000 packages, against where there are ten."""

    NAME = "crowd"

    @staticmethod
    def run(bench: Bench) -> Result:
        """Time each from start to exit; the store and the folder registry hold the same packages."""
        number = 300 if bench.quick else CROWD
        many, few = prepared(bench, "crowd", number), prepared(bench, "crowd", FEW)
        commands = {
            "list": ("list",),
            "lock": ("lock",),
            "install --dry-run ONE": ("install", "--dry-run", package_name(FEW - 1)),
            "install ONE": ("install", package_name(FEW // 2)),
            "search": ("search", "adapter-7", "--limit", "5"),
            "gc --dry-run": ("gc", "--dry-run"),
        }
        contestants = {}
        for what, words in commands.items():
            contestants[f"{what}, {number}"] = lambda words=words: adapt(many, *words)
            contestants[f"{what}, {FEW}"] = lambda words=words: adapt(few, *words)
        found = in_turns(contestants, rounds=bench.rounds(5), warm_up=True)
        return Result(
            name=Crowd.NAME,
            title=f"{number:,} packages in the registry and in the store",
            comparisons=tuple(
                Comparison(
                    what=f"`adapt {what}`",
                    unit="s",
                    against=f"the same with {FEW} packages",
                    ours=seconds(found[f"{what}, {number}"]),
                    theirs=seconds(found[f"{what}, {FEW}"]),
                )
                for what in commands
            ),
        )
