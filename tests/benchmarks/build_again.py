"""`adapt build` where nothing changed, against the bare interpreter."""

from __future__ import annotations

import json
import shutil
import statistics
import time

from tests.benchmarks.bench import RECIPES, Bench
from tests.benchmarks.harness import CommandError, Comparison, Process, Result, in_turns, note, processor_time, seconds

NAME = "build-again"
ROUNDS = 20
# Seconds that finding nothing to do may take beyond the interpreter's own.
BEYOND = 0.3


def run(bench: Bench) -> Result:
    """Build the medical recipe once, one step of it, then time the same command again from start to exit."""
    recipe = bench.clear("again")
    shutil.copytree(RECIPES / "medical", recipe)
    words = ("build", str(recipe / "recipe.yaml"), "--out", str(bench.clear("again-built")), "--json")
    words += ("--set", "training.max_steps=1", "--set", "evaluation.max_rows=2")
    note("  the build that is done once")
    bench.adapt(*words)
    time.sleep(2.1)  # after which the times of the package's files say something

    def again() -> Process:
        done = bench.adapt(*words)
        if json.loads(done.stdout)["nothing_to_do"] is not True:
            raise CommandError("a build with nothing to do did something")
        return done

    found = in_turns(
        {"adapt build, again": again, "python -c pass": lambda: bench.python("-c", "pass")},
        rounds=bench.rounds(ROUNDS),
        warm_up=True,
    )
    ours, theirs = found.values()
    beyond = statistics.median(seconds(ours)) - statistics.median(seconds(theirs))
    against = "`python -c pass`"
    return Result(
        name=NAME,
        title="`adapt build` with nothing to do",
        comparisons=(
            Comparison(what="start to exit", unit="s", against=against, ours=seconds(ours), theirs=seconds(theirs)),
            processor_time(against, ours, theirs),
        ),
        notes=(
            f"`adapt build` again, where nothing changed: {beyond:.3f} s beyond the interpreter's own start and exit "
            f"(goal {'met' if beyond <= BEYOND else 'MISSED'}: at most {BEYOND} s).",
        ),
    )
