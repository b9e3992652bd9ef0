"""The best step and early stopping, against transformers' own rules and by what the adapter then is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.engine import adapters
from adapterhub.engine.evaluate import row_losses
from adapterhub.engine.selection import Selection
from adapterhub.engine.train import HeldOut, train
from adapterhub.errors import UsageError
from adapterhub.progress import SILENT
from adapterhub.spec.training import TrainingSpec
from tests.engine.tiny import Recorder, examples, hyperparameters, load
from tests.factory import tiny_llama

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


def run(folder: Path, tmp_path: Path, **settings: Any) -> tuple[Any, Any, list[dict[str, float]], float]:
    """Train fast enough to overshoot; return the model, the result, the log, and the held-out loss at the end."""
    base = load(folder)
    start = {"learning_rate": 0.2, "seed": 1, "max_steps": 12, "lr_scheduler_type": "constant", "logging_steps": 2}
    spec = TrainingSpec(**{**start, "eval_strategy": "steps", "max_grad_norm": 0.0, **settings})
    model = adapters.attach(base, hyperparameters(), task="CAUSAL_LM", seed=1)
    rows = examples(base)
    recorder, log = Recorder.new(), tmp_path / "log.jsonl"
    held_out = HeldOut(examples=rows[4:], batch_size=2)
    result = train(
        model, base, rows[:4], spec, pad_id=0, log=log, progress=recorder, held_out=held_out,
        checkpoints=tmp_path / "checkpoints",
    )  # fmt: skip
    assert any("eval_loss" in fields for fields in recorder.fields)
    found = row_losses(
        model, rows[4:], batch_size=2, pad_id=0, device=base.device, dtype=base.dtype, label="", progress=SILENT
    )
    return model, result, [json.loads(line) for line in log.read_text().splitlines()], found.mean


def measured(lines: list[dict[str, float]]) -> dict[int, float]:
    return {int(line["step"]): line["eval_loss"] for line in lines if "eval_loss" in line}


def test_the_best_step_s_weights_come_back(folder: Path, tmp_path: Path) -> None:
    _, result, lines, last = run(folder, tmp_path, load_best_model_at_end=True)
    losses = measured(lines)
    assert list(losses) == [2, 4, 6, 8, 10, 12]  # eval_steps is logging_steps where not told
    best = min(losses, key=losses.__getitem__)
    assert best < 12, "a training that overshoots, or there is nothing to see"
    assert (result.best_step, result.best_value) == (best, losses[best])
    assert last == pytest.approx(losses[best], abs=1e-6)
    other = tmp_path / "other"
    other.mkdir()
    _, _, lines, last = run(folder, other)
    assert last == pytest.approx(measured(lines)[12], abs=1e-6)


def test_the_worst_step_s_where_a_higher_measure_counts_as_better(folder: Path, tmp_path: Path) -> None:
    _, result, lines, last = run(folder, tmp_path, load_best_model_at_end=True, greater_is_better=True)
    assert last == pytest.approx(max(measured(lines).values()), abs=1e-6) == result.best_value


def test_patience_ends_a_training(folder: Path, tmp_path: Path) -> None:
    _, result, lines, _ = run(folder, tmp_path, early_stopping_patience=1, logging_steps=5, eval_steps=1)
    losses = list(measured(lines).values())
    first_worse = next(i for i in range(1, len(losses)) if losses[i] >= min(losses[:i]))
    assert result.steps == first_worse + 1 == len(losses) < 12
    assert [line["step"] for line in lines if "loss" in line][-1] == result.steps  # the last line comes all the same


def test_the_measuring_goes_by_epochs(folder: Path, tmp_path: Path) -> None:
    settings = {"eval_strategy": "epoch", "per_device_train_batch_size": 1, "max_steps": 10, "learning_rate": 1e-3}
    _, _, lines, _ = run(folder, tmp_path, **settings)
    assert list(measured(lines)) == [4, 8, 10]


def test_checkpoints_of_the_best_alone(folder: Path, tmp_path: Path) -> None:
    _, _, lines, _ = run(folder, tmp_path, save_strategy="best", save_total_limit=20)
    losses, better = measured(lines), []
    for step, loss in losses.items():
        if loss < min([losses[other] for other in better], default=float("inf")):
            better.append(step)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [f"step-{s:08d}" for s in better]


@pytest.mark.parametrize("threshold", [0.0, 0.15])
@pytest.mark.parametrize("higher", [False, True])
def test_patience_counts_as_transformers_counts(threshold: float, higher: bool) -> None:
    from types import SimpleNamespace

    from transformers import EarlyStoppingCallback, TrainerControl, TrainerState

    values = [1.0, 0.9, 0.95, 0.7, 0.69, 0.8, 0.5, 0.6, 0.61, 0.62, 0.4]
    values = [-value for value in values] if higher else values
    spec = TrainingSpec(
        eval_strategy="steps", metric_for_best_model="eval_loss", greater_is_better=higher,
        early_stopping_patience=2, early_stopping_threshold=threshold,
    )  # fmt: skip
    theirs, state, control = EarlyStoppingCallback(2, threshold), TrainerState(), TrainerControl()
    arguments = SimpleNamespace(metric_for_best_model="eval_loss", greater_is_better=higher)
    ours = Selection(spec)
    for step, value in enumerate(values):
        theirs.on_evaluate(arguments, state, control, {"eval_loss": value})
        # As Trainer._determine_best_metric, which comes after the callbacks.
        if state.best_metric is None or (value > state.best_metric if higher else value < state.best_metric):
            state.best_metric = value
        ours.take(step, {"loss": value}, None)
        assert ours.has_enough == control.should_training_stop, step
        if ours.has_enough:
            break
    assert ours.has_enough


def test_a_measure_that_the_task_has_not_is_named() -> None:
    with pytest.raises(UsageError, match="does not measure accuracy") as caught:
        Selection(TrainingSpec(metric_for_best_model="accuracy")).take(1, {"loss": 1.0, "f1": 0.5}, None)
    assert caught.value.hint == "it measures loss, f1"
