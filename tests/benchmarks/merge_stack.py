"""`adapt merge` of two LoRAs into their base against a PEFT script, and against copying the same bytes."""

from __future__ import annotations

from tests.benchmarks.bench import Bench
from tests.benchmarks.harness import Comparison, Process, Result, in_turns, peaks, processor_time, seconds

NAME = "merge"
ROUNDS = 5


def run(bench: Bench) -> Result:
    """Time all three from start to exit, each writing a checkpoint of the base's size to the same disk."""

    def ours() -> Process:
        return bench.adapt("merge", "--stack", bench.stack, "--out", str(bench.clear("merged")))

    def peft() -> Process:
        out = str(bench.clear("merged-by-peft"))
        return bench.baseline("merge_with_peft", str(bench.base), out, *map(str, bench.adapters))

    def copy() -> Process:
        return bench.baseline("copy_files", str(bench.base), str(bench.clear("copied")))

    found = in_turns({"adapt merge": ours, "PEFT": peft, "copy": copy}, rounds=bench.rounds(ROUNDS), warm_up=True)
    for name in ("merged", "merged-by-peft", "copied"):
        bench.clear(name)
    merge, script = found["adapt merge"], found["PEFT"]
    size = sum(path.stat().st_size for path in bench.base.glob("*.safetensors")) / 1e6
    against = "PEFT: load, add both, `merge_and_unload`, save"
    return Result(
        name=NAME,
        title=f"`adapt merge` of two LoRAs into {size:.0f} MB of bf16",
        comparisons=(
            Comparison(what="start to exit", unit="s", against=against, ours=seconds(merge), theirs=seconds(script)),
            Comparison(what="peak memory", unit="MB", against=against, ours=peaks(merge), theirs=peaks(script)),
            Comparison(
                what="start to exit",
                unit="s",
                against="copying the base's files, with `fsync`",
                ours=seconds(merge),
                theirs=seconds(found["copy"]),
            ),
            processor_time(against, merge, script),
        ),
        notes=("`adapt merge` and the copy wait until the bytes are on the disk (`fsync`); the PEFT script does not.",),
    )
