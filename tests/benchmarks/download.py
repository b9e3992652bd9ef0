"""A cold `adapt install` from a Hub on loopback against `hf download` of the same repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.bench import Bench, environment
from tests.benchmarks.harness import CommandError, Comparison, Process, Result, in_turns, measure, peaks, seconds
from tests.benchmarks.packages import package_name, prepared

NAME = "download"
ROUNDS = 9
REPOSITORY = "shop/large"


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a package from a Hub in a process of its own, so that its memory is nobody's who is measured."""
    words = [sys.executable, "-m", "tests.benchmarks.download", str(folder)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(words, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(timeout=30)


def serve(folder: Path) -> None:
    """Be that process, until the standard input ends."""
    from tests.hub.server import running_hub

    with running_hub() as hub:
        hub.add_repo(REPOSITORY, {path.name: path.read_bytes() for path in folder.iterdir()}, tags=("v1.0.0",))
        print(hub.endpoint, flush=True)
        sys.stdin.read()


def run(bench: Bench) -> Result:
    """Time both from start to exit, with caches that are new each time; ours checks the content, theirs its size."""
    shop = prepared(bench, "large", 1 if bench.quick else 4)
    client = Path(sys.executable).with_name("hf")
    if not client.is_file():
        raise CommandError(f"there is no {client}")
    source = shop.folder / "registry" / package_name(0) / "1.0.0"
    with serving(source) as endpoint:
        room = bench.folder / "download"

        def fresh() -> dict[str, str]:
            shutil.rmtree(room, ignore_errors=True)
            (room / "project").mkdir(parents=True)
            (room / "project" / "adapters.yaml").write_text('project_version: "1.0"\nregistries: {"*": hub}\n')
            kept = {name: value for name, value in environment(room).items() if "proxy" not in name.lower()}
            kept.pop("HF_HUB_OFFLINE", None)
            return kept | {
                "HF_ENDPOINT": endpoint,
                "HF_HOME": str(room / "hf"),
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_HUB_DISABLE_UPDATE_CHECK": "1",
                "NO_PROXY": "127.0.0.1,localhost",
            }

        def ours() -> Process:
            env = fresh()
            script = str(Path(sys.executable).with_name("adapt"))
            return measure([script, "install", REPOSITORY], env=env, cwd=room / "project")

        def theirs() -> Process:
            env = fresh()
            return measure([str(client), "download", REPOSITORY, "--revision", "v1.0.0"], env=env, cwd=room)

        found = in_turns({"adapt install": ours, "hf download": theirs}, rounds=bench.rounds(ROUNDS), warm_up=True)
    size = sum(path.stat().st_size for path in source.iterdir())
    against = "`hf download`, which checks no content"
    adapt, hf = found["adapt install"], found["hf download"]
    return Result(
        name=NAME,
        title=f"`adapt install` from a Hub, {size / 1e6:.0f} MB, nothing cached",
        comparisons=(
            Comparison(
                what="start to exit", unit="s", against=against, ours=seconds(adapt), theirs=seconds(hf), goal=1.0
            ),
            Comparison(what="peak memory", unit="MB", against=against, ours=peaks(adapt), theirs=peaks(hf)),
        ),
        notes=("The Hub is the tests' own, on loopback: what is compared is the client's work, not a network.",),
    )


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
