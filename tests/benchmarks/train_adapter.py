"""`adapt build` against Trainer + PEFT as tutorials write it, and TRL: the same rows, adapter, batch and steps."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.bench import RECIPES, TARGETS, Bench, interpreter_with
from tests.benchmarks.harness import Comparison, Process, Result, in_turns, note, peaks, processor_time, seconds

NAME = "train"
ROUNDS = 3
STEPS, QUICK_STEPS = 12, 5
BATCH = 8
SEED = 0
R, ALPHA, RATE, WARMUP = 16, 32, 5e-4, 0.1
SAME_STEPS = 4
TRAINING_LOG = "training_log.jsonl"
TRL = "ADAPTERHUB_BENCH_TRL"
AGAINST_TRL = "TRL's SFTTrainer at its best settings for a CPU, fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training says of itself: real tokens, seconds of training alone, the loss of every step."""

    tokens: int
    seconds: float
    losses: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Real tokens a second: padding is not counted."""
        return self.tokens / self.seconds


def run(bench: Bench) -> Result:
    """Train some steps on the medical recipe's rows both ways, and first a few on one batch, which must agree."""
    rows = RECIPES / "medical" / "train.jsonl"
    steps = QUICK_STEPS if bench.quick else STEPS
    ours: list[Trained] = []
    theirs: list[Trained] = []
    agreement = _same_training(bench, rows)

    def build() -> Process:
        process, trained = _build(bench, rows, steps)
        ours.append(trained)
        return process

    def script() -> Process:
        process, trained = _script(bench, rows, steps)
        theirs.append(trained)
        return process

    interpreter, why = interpreter_with("trl", TRL)
    by_trl: list[Trained] = []

    def trl() -> Process:
        process, trained = _script(bench, rows, steps, baseline="train_with_trl", interpreter=interpreter)
        by_trl.append(trained)
        return process

    contestants = {"adapt build": build, "Trainer + PEFT": script, **({} if why else {"TRL": trl})}
    found = in_turns(contestants, rounds=bench.rounds(ROUNDS), warm_up=False)
    build_runs, script_runs = found["adapt build"], found["Trainer + PEFT"]
    of_trl = () if why else _against(AGAINST_TRL, build_runs, ours, found["TRL"], by_trl)
    against = "Trainer + PEFT as tutorials write it, fp32"
    others = {"Trainer + PEFT": theirs, "TRL": by_trl}
    return Result(
        name=NAME,
        title=f"`adapt build`, {steps} steps of {BATCH} chat rows, LoRA r={R} on all linears, fp32",
        comparisons=(*_against(against, build_runs, ours, script_runs, theirs), *of_trl),
        not_measured=((AGAINST_TRL, why),) if why else (),
        notes=(agreement, *(_losses(name, ours[-1], runs[-1]) for name, runs in others.items() if runs)),
    )


def _against(
    against: str,
    build_runs: Sequence[Process],
    ours: Sequence[Trained],
    runs: Sequence[Process],
    theirs: Sequence[Trained],
) -> tuple[Comparison, ...]:
    return (
        Comparison(
            what="training speed, real tokens",
            unit="tokens/s",
            against=against,
            ours=tuple(trained.rate for trained in ours),
            theirs=tuple(trained.rate for trained in theirs),
            more_is_better=True,
        ),
        Comparison(what="start to exit", unit="s", against=against, ours=seconds(build_runs), theirs=seconds(runs)),
        Comparison(what="peak memory", unit="MB", against=against, ours=peaks(build_runs), theirs=peaks(runs)),
        processor_time(against, build_runs, runs),
    )


def _same_training(bench: Bench, rows: Path) -> str:
    """Train both on one batch, over and over, so that both see the same rows in every step; compare every loss."""
    one_batch = bench.folder / "one-batch.jsonl"
    lines = rows.read_text("utf-8").splitlines()[:BATCH]
    one_batch.write_text("\n".join(lines) + "\n", "utf-8")
    note(f"  {SAME_STEPS} steps on one batch, both ways")
    ours, theirs = (train(bench, one_batch, SAME_STEPS)[1].losses for train in (_build, _script))
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return (
        f"Do both train the same thing? {SAME_STEPS} steps on one batch of {BATCH} rows: losses {_listed(ours)} and "
        f"{_listed(theirs)}, the greatest difference {difference:.1e}."
    )


def _losses(name: str, ours: Trained, theirs: Trained) -> str:
    means = [sum(trained.losses) / len(trained.losses) for trained in (ours, theirs)]
    return (
        f"Mean loss over the steps, beside {name}: {means[0]:.3f} and {means[1]:.3f} (rows in another order); "
        f"{ours.tokens:,} and {theirs.tokens:,} real tokens."
    )


def _listed(losses: Sequence[float]) -> str:
    return ", ".join(f"{loss:.4f}" for loss in losses)


def _build(bench: Bench, rows: Path, steps: int) -> tuple[Process, Trained]:
    """Build the medical recipe on these rows, without held-out rows: the script measures none either."""
    out = bench.clear("built")
    recipe = bench.folder / "recipe"
    recipe.mkdir(exist_ok=True)
    (recipe / "recipe.yaml").write_bytes((RECIPES / "medical" / "recipe.yaml").read_bytes())
    (recipe / "train.jsonl").write_bytes(rows.read_bytes())
    overrides = {
        "data.eval": "",
        "data.eval_split": "0",
        "hyperparameters.r": R,
        "hyperparameters.lora_alpha": ALPHA,
        "hyperparameters.target_modules": f"[{', '.join(TARGETS)}]",
        "training.dtype": "float32",
        "training.max_steps": steps,
        "training.per_device_train_batch_size": BATCH,
        "training.learning_rate": RATE,
        "training.warmup_steps": WARMUP,
        "training.lr_scheduler_type": "cosine",
        "training.seed": SEED,
        "training.logging_steps": 1,
    }
    settings = [word for field, value in overrides.items() for word in ("--set", f"{field}={value}")]
    process = bench.adapt("build", str(recipe / "recipe.yaml"), "--out", str(out), "--json", *settings)
    lines = [json.loads(line) for line in (out / TRAINING_LOG).read_text("utf-8").splitlines()]
    losses = tuple(line["loss"] for line in lines)
    return process, Trained(tokens=lines[-1]["tokens"], seconds=lines[-1]["seconds"], losses=losses)


def _script(
    bench: Bench, rows: Path, steps: int, *, baseline: str = "train_with_trainer", interpreter: str = sys.executable
) -> tuple[Process, Trained]:
    out = bench.clear("trained-by-script")
    options = {
        "r": R,
        "lora_alpha": ALPHA,
        "target_modules": TARGETS,
        "batch_size": BATCH,
        "learning_rate": RATE,
        "warmup": WARMUP,
        "seed": SEED,
        "steps": steps,
    }
    words = (str(bench.base), str(rows), str(out), json.dumps(options))
    process = bench.baseline(baseline, *words, interpreter=interpreter)
    measured = json.loads((out / "measured.json").read_text("utf-8"))
    return process, Trained(tokens=measured["tokens"], seconds=measured["seconds"], losses=tuple(measured["losses"]))
