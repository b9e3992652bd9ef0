"""`adapt run` with two adapters against transformers and PEFT with both active, and against the bare base."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tests.benchmarks.bench import Bench
from tests.benchmarks.harness import Comparison, Process, Result, in_turns, note, peaks, processor_time

NAME = "generate"
ROUNDS = 5
PROMPT = "Explain in a few paragraphs how bread is made, from the grain to the loaf."
TOKENS, QUICK_TOKENS = 128, 32
OURS, PEFT, BARE, AS_STORED = "adapt run", "transformers + PEFT", "transformers, bare", "transformers + PEFT, as stored"
# The advantages that are aimed at: of the start to the first token, and of the speed after it.
GOALS: dict[str, tuple[float | None, float]] = {PEFT: (1 / 0.6, 1.5), BARE: (None, 1.0)}


def run(bench: Bench) -> Result:
    """Stream one greedy answer each way; times are taken from outside, by when output arrives."""
    tokens = QUICK_TOKENS if bench.quick else TOKENS
    asked = [PROMPT, "--greedy", "--max-new-tokens", str(tokens)]
    note("  one run that says how many tokens it makes, in which dtype")
    told = json.loads(bench.adapt("run", "--stack", bench.stack, *asked, "--json").stdout)
    dtype, adapters = str(told["dtype"]), [str(path) for path in bench.adapters]

    def script(dtype: str, adapters: Sequence[str]) -> Process:
        return bench.baseline("generate", str(bench.base), dtype, str(tokens), PROMPT, *adapters)

    found = in_turns(
        {
            OURS: lambda: bench.adapt("run", "--stack", bench.stack, *asked),
            PEFT: lambda: script(dtype, adapters),
            AS_STORED: lambda: script("auto", adapters),
            BARE: lambda: script(dtype, ()),
        },
        rounds=bench.rounds(ROUNDS),
        warm_up=False,
    )
    made = {name: _told_tokens(processes[-1]) for name, processes in found.items() if name != OURS}
    made[OURS] = int(told["new_tokens"])
    names = {
        PEFT: f"transformers + PEFT, both active, {dtype}",
        AS_STORED: "the same in the checkpoint's dtype, bfloat16 (transformers' default)",
        BARE: f"transformers, the bare base, {dtype}",
    }
    comparisons = []
    for name, against in names.items():
        first, rate = GOALS.get(name, (None, None))
        comparisons.append(_first_token(found[OURS], found[name], against, goal=first))
        comparisons.append(_speed(found, made, name, against, goal=rate))
        comparisons.append(
            Comparison(
                what="peak memory", unit="MB", against=against, ours=peaks(found[OURS]), theirs=peaks(found[name])
            )
        )
        comparisons.append(processor_time(against, found[OURS], found[name]))
    return Result(
        name=NAME,
        title=f"`adapt run --stack a,b`, {tokens} greedy tokens, {dtype}",
        comparisons=tuple(comparisons),
        notes=(_same_text(found),),
    )


def _told_tokens(process: Process) -> int:
    """Return how many tokens a baseline says it made, on the last line of stderr."""
    return int(process.stderr.strip().splitlines()[-1])


def _first_token(ours: Sequence[Process], theirs: Sequence[Process], against: str, *, goal: float | None) -> Comparison:
    first = [tuple(process.first or process.seconds for process in group) for group in (ours, theirs)]
    return Comparison(what="start to first token", unit="s", against=against, ours=first[0], theirs=first[1], goal=goal)


def _speed(
    found: dict[str, list[Process]], made: dict[str, int], name: str, against: str, *, goal: float | None
) -> Comparison:
    rates = [
        tuple((made[group] - 1) / max(_streaming(process), 1e-9) for process in found[group]) for group in (OURS, name)
    ]
    return Comparison(
        what="speed after the first token",
        unit="tokens/s",
        against=against,
        ours=rates[0],
        theirs=rates[1],
        more_is_better=True,
        goal=goal,
    )


def _streaming(process: Process) -> float:
    """Return the seconds from the first piece of the answer to the last."""
    return (process.last or 0.0) - (process.first or 0.0)


def _same_text(found: dict[str, list[Process]]) -> str:
    ours, theirs = found[OURS][-1].stdout.strip(), found[PEFT][-1].stdout.strip()
    if ours == theirs:
        return f"Both adapters active in PEFT give the same {len(ours):,} characters."
    shared = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    return f"Both adapters active in PEFT give the same first {shared:,} of {len(ours):,} characters."
