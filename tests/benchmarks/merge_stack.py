"""`adapt merge` of two LoRAs into their base against a PEFT script, mergekit, and copying the same bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.bench import LARGE_ADAPTERS, Bench, interpreter_with, make_large
from tests.benchmarks.harness import Comparison, Process, Result, in_turns, peaks, processor_time, seconds

NAME = "merge"
ROUNDS = 5
MERGEKIT = "ADAPTERHUB_BENCH_MERGEKIT"
LARGE_MERGEKIT = "ADAPTERHUB_BENCH_MERGEKIT_LARGE"
AGAINST = {
    "PEFT": "PEFT: load, add both, `merge_and_unload`, save",
    "mergekit": "mergekit: `task_arithmetic` of both, each as `model+lora`, in bf16",
}


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
        rounds = bench.rounds(Large.ROUNDS)
        return _compared(bench, Large.NAME, base, adapters, rounds=rounds, fast=5.0, slow=LARGE_MERGEKIT)


def _compared(
    bench: Bench,
    name: str,
    base: Path,
    adapters: tuple[Path, ...],
    *,
    rounds: int,
    fast: float,
    slow: str | None = None,
) -> Result:
    """Merge by `adapt`, PEFT and mergekit, and copy, in turns.

    fast: the goal against both. slow: the variable that has to be set too for mergekit to be measured.
    """
    stack = ",".join(f"./{adapter.name}" for adapter in adapters)

    def ours() -> Process:
        return bench.adapt("merge", "--stack", stack, "--out", str(bench.clear("merged")))

    def peft() -> Process:
        out = str(bench.clear("merged-by-peft"))
        return bench.baseline("merge_with_peft", str(base), out, *map(str, adapters))

    def mergekit() -> Process:
        out = str(bench.clear("merged-by-mergekit"))
        script = "merge_with_mergekit"
        return bench.baseline(script, str(base), out, *map(str, adapters), interpreter=interpreter)

    def copy() -> Process:
        return bench.baseline("copy_files", str(base), str(bench.clear("copied")))

    interpreter, why = interpreter_with("mergekit", MERGEKIT)
    if not why and slow and not os.environ.get(slow):
        why = f"it takes minutes a round at this size, so {slow}=1 has to ask for it"
    rivals: dict[str, Callable[[], Process]] = {"PEFT": peft, **({} if why else {"mergekit": mergekit})}
    found = in_turns({"adapt merge": ours, **rivals, "copy": copy}, rounds=rounds, warm_up=True)
    notes = [_weights(bench, base, rival, adapters) for rival in rivals]
    for folder in ("merged", "merged-by-peft", "merged-by-mergekit", "copied"):
        bench.clear(folder)
    size = sum(path.stat().st_size for path in base.glob("*.safetensors")) / 1e6
    merge = found["adapt merge"]
    comparisons = [row for rival in rivals for row in _against(AGAINST[rival], merge, found[rival], fast)]
    comparisons.append(
        Comparison(
            what="start to exit",
            unit="s",
            against="copying the base's files, with `fsync`",
            ours=seconds(merge),
            theirs=seconds(found["copy"]),
            goal=1 / 3,
        )
    )
    return Result(
        name=name,
        title=f"`adapt merge` of two LoRAs into {size:.0f} MB of bf16",
        comparisons=tuple(comparisons),
        not_measured=((AGAINST["mergekit"], why),) if why else (),
        notes=(
            "`adapt merge` and the copy wait until the bytes are on the disk (`fsync`); PEFT and mergekit do not.",
            *notes,
        ),
    )


def _against(against: str, ours: list[Process], theirs: list[Process], fast: float) -> tuple[Comparison, ...]:
    return (
        Comparison(
            what="start to exit", unit="s", against=against, ours=seconds(ours), theirs=seconds(theirs), goal=fast
        ),
        Comparison(what="peak memory", unit="MB", against=against, ours=peaks(ours), theirs=peaks(theirs)),
        processor_time(against, ours, theirs),
    )


def _weights(bench: Bench, base: Path, rival: str, adapters: tuple[Path, ...]) -> str:
    """Say how far a rival's weights are from ours, in a process of its own: this one imports next to nothing."""
    folder = f"merged-by-{rival.lower()}"
    folders = (base, bench.folder / "merged", bench.folder / folder, *adapters)
    compared = bench.baseline("compare_weights", *map(str, folders))
    told = json.loads(compared.stdout)
    return (
        f"{rival}'s weights and ours differ in {told['differ']:.1%} of the entries. From the exact sum in float32 they "
        f"are away by {told['one']:.0%} (ours) and {told['other']:.0%} of the change."
    )
