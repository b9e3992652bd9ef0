"""Training against a plain loop written here, and what happens when it goes wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from adapterhub.engine import adapters
from adapterhub.engine.data import LengthGroupedOrder, pad
from adapterhub.engine.train import TrainResult, count_steps, train
from adapterhub.errors import BuildError
from adapterhub.progress import SILENT
from adapterhub.spec.recipe import TrainingSpec
from tests.engine.tiny import Recorder, examples, hyperparameters, load
from tests.factory import tiny_llama

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


def run(folder: Path, log: Path, *, count: int = 7, progress: Any = SILENT, dtype: Any = None, **settings: Any) -> Any:
    """Train a fresh adapter; return it with what training said."""
    base = load(folder, dtype)
    spec = TrainingSpec(**{"learning_rate": 1e-2, "seed": 1, "num_train_epochs": 1, **settings})
    model = adapters.attach(base, hyperparameters(), task="CAUSAL_LM", seed=spec.seed)
    result = train(model, base, examples(base, count), spec, pad_id=0, log=log, progress=progress)
    return model, result


def weights(model: Any) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def reference(folder: Path, *, batch_size: int, accumulation: int, steps: int) -> tuple[dict[str, Any], list[float]]:
    """Train with a loop of our own: one row at a time, all logits, transformers' loss."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    base = load(folder)
    model = adapters.attach(base, hyperparameters(), task="CAUSAL_LM", seed=1).train()
    rows = examples(base)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=1, num_training_steps=steps)
    order = LengthGroupedOrder([len(row.input_ids) for row in rows], batch_size, seed=1)
    losses: list[float] = []
    while len(losses) < steps:
        indices = list(order)
        batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
        for start in range(0, len(batches), accumulation):
            if len(losses) == steps:
                break
            group = batches[start : start + accumulation]
            labelled = sum(rows[i].trained for batch in group for i in batch)
            total = 0.0
            for batch in group:
                for i in batch:  # a row at a time: no padding at all
                    tensors = pad([rows[i]], pad_id=0)
                    loss = model(**tensors).loss * rows[i].trained / labelled
                    loss.backward()
                    total += loss.item()
            torch.nn.utils.clip_grad_norm_(trained, 0.5)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(total)
    return weights(model), losses


@pytest.mark.parametrize(("batch_size", "accumulation", "steps"), [(3, 1, 5), (2, 2, 4)])
def test_training_is_a_plain_loop_s(
    folder: Path, tmp_path: Path, batch_size: int, accumulation: int, steps: int
) -> None:
    """Ragged rows, an incomplete last batch, two epochs: losses and weights agree with one row at a time."""
    recorder = Recorder.new()
    model, result = run(
        folder,
        tmp_path / "log.jsonl",
        progress=recorder,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        warmup_steps=1,
        weight_decay=0.1,
        max_grad_norm=0.5,
        logging_steps=1,
    )
    expected, losses = reference(folder, batch_size=batch_size, accumulation=accumulation, steps=steps)
    logged = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert logged == pytest.approx(losses, abs=2e-4)
    assert [fields["loss"] for fields in recorder.fields] == pytest.approx(losses, abs=1e-5)
    for name, tensor in weights(model).items():
        assert (tensor - expected[name]).abs().max().item() < 2e-4, name
    assert (recorder.steps, result.steps) == (steps, steps)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_train_epochs": 2, "per_device_train_batch_size": 3},
        {"num_train_epochs": 0.5, "per_device_train_batch_size": 2},
        {"num_train_epochs": 1.5, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
        {"num_train_epochs": 3, "per_device_train_batch_size": 100, "gradient_accumulation_steps": 4},
        {"max_steps": 2, "num_train_epochs": 50},
    ],
)
def test_steps_are_counted_as_they_are_made(folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    _, result = run(folder, tmp_path / "log.jsonl", **settings)
    assert result.steps == count_steps(7, TrainingSpec(**settings))


def test_the_log_and_the_result_count_real_tokens(folder: Path, tmp_path: Path) -> None:
    _, result = run(folder, tmp_path / "log.jsonl", per_device_train_batch_size=4, logging_steps=1)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    tokens = sum(len(example.input_ids) for example in examples(load(folder)))
    assert result.tokens == lines[-1]["tokens"] == tokens
    assert [line["step"] for line in lines] == [1, 2]
    assert set(lines[0]) == {
        "step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "seconds", "tokens_per_second"
    }  # fmt: skip
    assert result.loss == pytest.approx(sum(line["loss"] for line in lines) / 2, abs=1e-4)
    assert TrainResult(steps=1, loss=1.0, tokens=10, seconds=2.0).tokens_per_second == 5


def test_equal_seeds_give_equal_bits_and_other_seeds_do_not(folder: Path, tmp_path: Path) -> None:
    import torch

    runs = [weights(run(folder, tmp_path / "log.jsonl", seed=seed)[0]) for seed in (1, 1, 2)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return weights(run(folder, tmp_path_factory.mktemp("plain") / "log.jsonl", per_device_train_batch_size=3)[0])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("learning_rate", 2e-2),
        ("num_train_epochs", 2),
        ("max_steps", 1),
        ("per_device_train_batch_size", 2),
        ("lr_scheduler_type", "constant"),
        ("warmup_steps", 0.9),
        ("weight_decay", 5.0),
        ("max_grad_norm", 1e-3),
    ],
)
def test_every_setting_changes_what_is_learned(
    folder: Path, tmp_path: Path, plain: dict[str, Any], setting: str, value: Any
) -> None:
    import torch

    settings = {"per_device_train_batch_size": 3, setting: value}
    changed = weights(run(folder, tmp_path / "log.jsonl", **settings)[0])
    assert not all(torch.equal(plain[name], changed[name]) for name in plain)


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"optim": "adamw_torch_fused"}])
def test_what_saves_memory_or_time_learns_the_same(
    folder: Path, tmp_path: Path, plain: dict[str, Any], settings: dict[str, Any]
) -> None:
    other = weights(run(folder, tmp_path / "log.jsonl", per_device_train_batch_size=3, **settings)[0])
    for name, tensor in plain.items():
        assert (tensor - other[name]).abs().max().item() < 1e-4, name


def test_a_16_bit_base_trains_its_adapter_in_float32(folder: Path, tmp_path: Path) -> None:
    import torch

    model, result = run(folder, tmp_path / "log.jsonl", dtype=torch.bfloat16, max_steps=3)
    assert {tensor.dtype for tensor in weights(model).values()} == {torch.float32}
    assert next(model.get_base_model().parameters()).dtype == torch.bfloat16
    _, plain = run(folder, tmp_path / "log.jsonl", max_steps=3)
    assert result.loss == pytest.approx(plain.loss, rel=2e-2)


def test_a_loss_that_is_not_finite_names_its_rows(folder: Path, tmp_path: Path) -> None:
    import torch

    base = load(folder)
    rows = examples(base)
    victim = ord("-")
    with torch.no_grad():
        base.model.get_input_embeddings().weight[victim] = math.nan
    model = adapters.attach(base, hyperparameters(), task="CAUSAL_LM", seed=0)
    spec = TrainingSpec(per_device_train_batch_size=1, num_train_epochs=1, seed=0)
    with pytest.raises(BuildError, match="the loss is nan at step") as caught:
        train(model, base, rows, spec, pad_id=0, log=tmp_path / "log.jsonl", progress=SILENT)
    assert [row.place for row in rows if victim in row.input_ids] == ["rows.jsonl:7"]
    assert caught.value.details == ("in the batch: rows.jsonl:7",)


def test_an_interrupt_passes_through(folder: Path, tmp_path: Path) -> None:
    class Impatient(Recorder):
        def advance(self, amount: int = 1) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "log.jsonl", progress=Impatient.new())
