"""`adapt --help` against what any click program needs to begin."""

from __future__ import annotations

from tests.benchmarks.bench import Bench
from tests.benchmarks.harness import Comparison, Result, in_turns, processor_time, seconds

NAME = "help"
ROUNDS = 30


def run(bench: Bench) -> Result:
    """Time both from start to exit; nothing of a package or a model is needed."""
    found = in_turns(
        {
            "adapt --help": lambda: bench.adapt("--help"),
            "import click": lambda: bench.python("-c", "import click"),
        },
        rounds=bench.rounds(ROUNDS),
        warm_up=True,
    )
    ours, theirs = found["adapt --help"], found["import click"]
    against = '`python -c "import click"`'
    return Result(
        name=NAME,
        title="`adapt --help`",
        comparisons=(
            Comparison(
                what="start to exit", unit="s", against=against, ours=seconds(ours), theirs=seconds(theirs), goal=0.5
            ),
            processor_time(against, ours, theirs),
        ),
    )
