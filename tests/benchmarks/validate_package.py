"""`adapt validate` against finding out by loading the adapter with PEFT."""

from __future__ import annotations

from tests.benchmarks.bench import Bench
from tests.benchmarks.harness import Comparison, Result, in_turns, peaks, processor_time, seconds

NAME = "validate"
ROUNDS = 5


def run(bench: Bench) -> Result:
    """Time both from start to exit, on one rank-16 adapter of SmolLM2 that fits."""
    package = str(bench.adapters[0])
    found = in_turns(
        {
            "adapt validate": lambda: bench.adapt("validate", package),
            "PEFT": lambda: bench.baseline("load_with_peft", str(bench.base), package),
        },
        rounds=bench.rounds(ROUNDS),
        warm_up=True,
    )
    ours, theirs = found["adapt validate"], found["PEFT"]
    against = "loading it with transformers and PEFT"
    return Result(
        name=NAME,
        title="`adapt validate PACKAGE`",
        comparisons=(
            Comparison(what="start to exit", unit="s", against=against, ours=seconds(ours), theirs=seconds(theirs)),
            Comparison(what="peak memory", unit="MB", against=against, ours=peaks(ours), theirs=peaks(theirs)),
            processor_time(against, ours, theirs),
        ),
    )
