"""100,000 mutated inputs through every reader of strangers' bytes: `python -m tests.benchmarks.fuzz [--inputs N]`.

No race against anything, so no row of the table: it prints seeds and counts, and ends with 1 when something else than
an AdapterHubError escaped or an input took longer than a second of this process's own time. The seed printed repeats a
run exactly.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections import Counter
from multiprocessing import get_context
from random import Random, SystemRandom

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS

INPUTS = 100_000
SLOW = 1.0


def main() -> int:
    """Fuzz all targets, or those that are named; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"which: {', '.join(TARGETS)}; default: all")
    parser.add_argument("--inputs", type=int, default=INPUTS, help="how many inputs in all")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(2**32))
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no target is named {unknown[0]!r}: {', '.join(TARGETS)}")
    print(f"seed {options.seed}; {options.inputs} inputs over {len(names)} targets", flush=True)
    each = -(-options.inputs // len(names))
    begin = time.perf_counter()
    with get_context("fork").Pool(min(len(names), len(os.sched_getaffinity(0)))) as pool:
        rows = pool.starmap(fuzz, [(name, options.seed, each) for name in names], chunksize=1)
    findings = 0
    for name, accepted, seconds, faults in rows:
        print(f"  {name:15} {each} inputs, {accepted} accepted, {each - accepted} refused, {seconds:.1f} s")
        for what, (count, example) in faults.items():
            findings += count
            print(f"    FOUND {count}×: {what}\n      {example!r}")
    print(f"{each * len(names)} inputs in {time.perf_counter() - begin:.0f} s: {findings or 'nothing'} found")
    return 1 if findings else 0


def fuzz(name: str, seed: int, count: int) -> tuple[str, int, float, dict[str, tuple[int, bytes]]]:
    """Run one target; return how many inputs it accepted, the seconds, and each fault's count and shortest input."""
    target, random = TARGETS[name], Random(f"{seed} {name}")
    counts: Counter[str] = Counter()
    shortest: dict[str, bytes] = {}
    accepted = 0
    begin = time.perf_counter()
    for _ in range(count):
        data = mutated(target, random)
        started, what = time.process_time(), None
        try:
            accepted += target.accepts(data)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} at {place.filename}:{place.lineno}"
        if what is None and time.process_time() - started > SLOW:
            what = f"took longer than {SLOW} s"
        if what is not None:
            counts[what] += 1
            shortest[what] = min(shortest.get(what, data), data, key=len)
    return name, accepted, time.perf_counter() - begin, {what: (counts[what], shortest[what]) for what in counts}


if __name__ == "__main__":
    sys.exit(main())
