"""`adapt merge` of two LoRAs into their base against a PEFT script, and against copying the same bytes."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.bench import LARGE_ADAPTERS, Bench, make_large
from tests.benchmarks.harness import Comparison, Process, Result, in_turns, peaks, processor_time, seconds

NAME = "merge"
ROUNDS = 5


def run(bench: Bench) -> Result:
    """Time all three from start to exit, each writing a checkpoint of the base's size to the same disk."""
    return _compared(bench, NAME, bench.base, bench.adapters, rounds=bench.rounds(ROUNDS), fast=8.0)


class Large:
    """The same of a checkpoint of 2.2 GB in five files, which the bench makes itself."""

    NAME = "merge-large"
    ROUNDS = 3

    @staticmethod
    def run(bench: Bench) -> Result:
        """Time all three; no memory bound of ours grows with the checkpoint."""
        base = make_large(bench)
        adapters = tuple(bench.folder / name for name in LARGE_ADAPTERS)
        return _compared(bench, Large.NAME, base, adapters, rounds=bench.rounds(Large.ROUNDS), fast=5.0)


def _compared(bench: Bench, name: str, base: Path, adapters: tuple[Path, ...], *, rounds: int, fast: float) -> Result:
    """Merge by `adapt` and by PEFT, and copy, in turns; `fast`: the goal against PEFT."""
    stack = ",".join(f"./{adapter.name}" for adapter in adapters)

    def ours() -> Process:
        return bench.adapt("merge", "--stack", stack, "--out", str(bench.clear("merged")))

    def peft() -> Process:
        out = str(bench.clear("merged-by-peft"))
        return bench.baseline("merge_with_peft", str(base), out, *map(str, adapters))

    def copy() -> Process:
        return bench.baseline("copy_files", str(base), str(bench.clear("copied")))

    found = in_turns({"adapt merge": ours, "PEFT": peft, "copy": copy}, rounds=rounds, warm_up=True)
    for folder in ("merged", "merged-by-peft", "copied"):
        bench.clear(folder)
    merge, script = found["adapt merge"], found["PEFT"]
    size = sum(path.stat().st_size for path in base.glob("*.safetensors")) / 1e6
    against = "PEFT: load, add both, `merge_and_unload`, save"
    times, memory = (seconds(merge), seconds(script)), (peaks(merge), peaks(script))
    return Result(
        name=name,
        title=f"`adapt merge` of two LoRAs into {size:.0f} MB of bf16",
        comparisons=(
            Comparison(what="start to exit", unit="s", against=against, ours=times[0], theirs=times[1], goal=fast),
            Comparison(what="peak memory", unit="MB", against=against, ours=memory[0], theirs=memory[1]),
            Comparison(
                what="start to exit",
                unit="s",
                against="copying the base's files, with `fsync`",
                ours=seconds(merge),
                theirs=seconds(found["copy"]),
                goal=1 / 3,
            ),
            processor_time(against, merge, script),
        ),
        notes=("`adapt merge` and the copy wait until the bytes are on the disk (`fsync`); the PEFT script does not.",),
    )
