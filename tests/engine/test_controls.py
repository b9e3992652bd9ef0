"""The controls of a training against transformers' own Trainer: losses, rates, norms and weights, step by step."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from adapterhub.catalog.optimizers import OPTIMIZERS
from adapterhub.engine import adapters
from adapterhub.engine.data import LengthGroupedOrder, pad
from adapterhub.engine.loss import token_losses
from adapterhub.engine.optimize import make_optimizer, refuse_unready, training_arguments
from adapterhub.engine.train import HeldOut, train
from adapterhub.errors import UsageError
from adapterhub.progress import SILENT
from adapterhub.spec import training
from adapterhub.spec.training import TrainingSpec
from tests.engine.tiny import examples, hyperparameters, load
from tests.factory import tiny_llama

pytestmark = pytest.mark.engine
STEPS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


def spec_of(**settings: Any) -> TrainingSpec:
    start = {"learning_rate": 1e-2, "seed": 1, "max_steps": STEPS, "per_device_train_batch_size": 2, "logging_steps": 1}
    return TrainingSpec(**{**start, **settings})


def ours(folder: Path, tmp_path: Path, spec: TrainingSpec) -> tuple[dict[str, Any], list[dict[str, float]]]:
    base = load(folder)
    model = adapters.attach(base, hyperparameters(), task="CAUSAL_LM", seed=1)
    rows = examples(base)
    log = tmp_path / "log.jsonl"
    train(model, base, rows, spec, pad_id=0, log=log, progress=SILENT, held_out=HeldOut(examples=rows[:4]))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}, lines


def trainers(folder: Path, tmp_path: Path, spec: TrainingSpec) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Train by transformers' Trainer, with its own loop, optimizer and schedule."""
    from transformers import Trainer, TrainingArguments

    base = load(folder)
    model = adapters.attach(base, hyperparameters(), task="CAUSAL_LM", seed=1)
    rows = examples(base)
    order = LengthGroupedOrder([len(row.input_ids) for row in rows], spec.per_device_train_batch_size, spec.seed)

    class Plain(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return order

        def compute_loss(self, model: Any, inputs: Any, *_: Any, num_items_in_batch: Any = None, **__: Any) -> Any:
            return token_losses(model, inputs).sum() / num_items_in_batch

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            import torch

            batch, self.model = pad(rows[:4], pad_id=0), self.model.eval()
            with torch.no_grad():
                found = {"eval_loss": float(token_losses(self.model, batch).mean())}
            self.log(found)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
            return found

    names = (
        "learning_rate", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay",
        "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm", "optim", "optim_args", "seed",
        "adam_beta1", "adam_beta2", "adam_epsilon", "logging_steps", "eval_strategy", "eval_steps",
    )  # fmt: skip
    given = {name: getattr(spec, name) for name in names}
    given["lr_scheduler_kwargs"] = dict(spec.lr_scheduler_kwargs)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"), use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no",
        remove_unused_columns=False, metric_for_best_model="loss", greater_is_better=False, **given,
    )  # fmt: skip
    trainer = Plain(
        model, arguments, train_dataset=rows, eval_dataset=rows[:4], data_collator=lambda batch: pad(batch, pad_id=0)
    )
    trainer.model_accepts_loss_kwargs = True
    trainer.train()
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}, trainer.state.log_history


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_steps": 2, "max_grad_norm": 0.3, "gradient_accumulation_steps": 2, "weight_decay": 0.1},
        {"optim": "adamw_torch", "adam_beta1": 0.5, "adam_beta2": 0.6, "adam_epsilon": 1e-3, "warmup_steps": 0.3},
        {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}, "max_grad_norm": 0.0},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}, "optim": "adafactor"},
        {"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 1, "optim": "sgd", "optim_args": "momentum=0.9"},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.5}, "optim": "rmsprop"},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}, "warmup_steps": 1},
        {
            "lr_scheduler_type": "reduce_lr_on_plateau",
            "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5, "threshold": 10.0},
            "eval_strategy": "steps",
            "eval_steps": 2,
        },
    ],
    ids=lambda settings: settings.get("lr_scheduler_type", "cosine") + ", " + settings.get("optim", "adamw_torch"),
)  # fmt: skip
def test_every_step_is_the_trainer_s(folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    spec = spec_of(**settings)
    weights, lines = ours(folder, tmp_path, spec)
    expected, history = trainers(folder, tmp_path, spec)
    for name in ("loss", "learning_rate", "grad_norm", "eval_loss"):
        told = [line[name] for line in lines if name in line]
        theirs = [line[name] for line in history if name in line]
        assert told == pytest.approx(theirs, abs=1e-6), name
        assert len(told) == (STEPS if name != "eval_loss" else 3 * (spec.eval_strategy != "no"))
    # Where an optimizer divides by the size of a gradient near nothing, what rounding made of it shows.
    for name, tensor in expected.items():
        assert (tensor - weights[name]).abs().max().item() < 1e-5, name


def test_the_lists_are_transformers_own() -> None:
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    assert set(training.SCHEDULERS) == {item.value for item in SchedulerType}
    assert tuple(OPTIMIZERS) == training.OPTIMIZERS
    others = {item.value for item in OptimizerNames} - set(OPTIMIZERS)
    assert all(name.startswith(("galore", "apollo", "lomo", "adalomo")) for name in others)


def groups(optimizer: Any) -> list[dict[str, Any]]:
    return [
        {name: len(value) if name == "params" else value for name, value in group.items()}
        for group in optimizer.param_groups
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_the_trainer_s_or_says_what_is_missing(folder: Path, name: str) -> None:
    import torch
    from transformers import Trainer

    row, spec = OPTIMIZERS[name], spec_of(optim=name, weight_decay=0.1)
    if row.devices or find_spec(row.module) is None:
        with pytest.raises(UsageError, match=name) as caught:
            refuse_unready(spec, device="cpu", held_out=False, steps=STEPS)
        assert caught.value.where == "training.optim" and caught.value.hint
        return
    refuse_unready(spec, device="cpu", held_out=False, steps=STEPS)
    model = adapters.attach(load(folder), hyperparameters(modules_to_save=["norm"]), task="CAUSAL_LM", seed=1)
    arguments = training_arguments(torch.device("cpu"), spec, steps=STEPS)
    optimizer, expected = make_optimizer(model, spec, arguments), Trainer(model, arguments).create_optimizer()
    assert type(optimizer) is type(expected)
    assert groups(optimizer) == groups(expected)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not any(torch.equal(old, new) for old, new in zip(before, trained, strict=True))


@pytest.mark.parametrize(
    ("settings", "where", "words"),
    [
        ({"optim": "sgd", "optim_args": "momentun=0.9"}, "training.optim_args", "momentum"),
        ({"optim_args": "momentum=0.9"}, "training.optim_args", "it takes none"),
        ({"lr_scheduler_kwargs": {"surprise": 1}}, "training.lr_scheduler_kwargs", "documentation"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "training.lr_scheduler_kwargs", "documentation"),
        ({"eval_strategy": "epoch"}, "training.eval_strategy", "eval_split"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(settings: dict[str, Any], where: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        refuse_unready(spec_of(**settings), device="cpu", held_out=False, steps=STEPS)
    assert caught.value.where == where and words in str(caught.value.hint)


@pytest.mark.parametrize("name", training.LOGGERS)
def test_a_logger_that_is_not_installed_is_named(name: str) -> None:
    if find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(UsageError, match=f"{name} is not installed") as caught:
        refuse_unready(spec_of(report_to=(name,)), device="cpu", held_out=False, steps=STEPS)
    assert caught.value.hint == f"pip install {name}"


def test_loraplus_is_peft_s_optimizer(folder: Path) -> None:
    import torch
    from peft.optimizers import create_loraplus_optimizer

    spec = spec_of(loraplus_lr_ratio=16.0, weight_decay=0.1)
    model = adapters.attach(load(folder), hyperparameters(), task="CAUSAL_LM", seed=1)
    optimizer = make_optimizer(model, spec, training_arguments(torch.device("cpu"), spec, steps=STEPS))
    expected = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1, eps=1e-8
    )
    assert groups(optimizer) == groups(expected)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == (0.16 if "lora_B" in name else 0.01), name


def test_loraplus_needs_factors(folder: Path) -> None:
    import torch

    from adapterhub.catalog.methods import check_hyperparameters, method_named

    spec = spec_of(loraplus_lr_ratio=4.0)
    values = check_hyperparameters(method_named("prompt_tuning"), {"num_virtual_tokens": 2}, where="test")
    model = adapters.attach(load(folder), values, task="CAUSAL_LM", seed=1, method="prompt_tuning")
    with pytest.raises(UsageError, match="no factors B"):
        make_optimizer(model, spec, training_arguments(torch.device("cpu"), spec, steps=STEPS))


def test_noise_on_the_embeddings_is_drawn_while_training_alone(folder: Path, tmp_path: Path) -> None:
    import torch

    plain, _ = ours(folder, tmp_path, spec_of())
    noisy, _ = ours(folder, tmp_path, spec_of(neftune_noise_alpha=20.0))
    again, _ = ours(folder, tmp_path, spec_of(neftune_noise_alpha=20.0))
    assert all(torch.equal(noisy[name], again[name]) for name in noisy)
    assert not any(torch.equal(plain[name], noisy[name]) for name in plain)
    base = load(folder)
    model = adapters.attach(base, hyperparameters(), task="CAUSAL_LM", seed=1)
    embeddings = model.get_base_model().get_input_embeddings()
    train(
        model, base, examples(base), spec_of(neftune_noise_alpha=20.0, max_steps=1), pad_id=0,
        log=tmp_path / "log.jsonl", progress=SILENT,
    )  # fmt: skip
    assert not hasattr(embeddings, "neftune_noise_alpha") and not embeddings._forward_hooks


def test_determinism_is_torch_s_for_the_length_of_the_training(folder: Path, tmp_path: Path) -> None:
    import torch

    seen: list[bool] = []
    base = load(folder)
    model = adapters.attach(base, hyperparameters(), task="CAUSAL_LM", seed=1)
    model.register_forward_pre_hook(lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()))
    settings = {"pad_id": 0, "log": tmp_path / "log.jsonl", "progress": SILENT}
    train(model, base, examples(base), spec_of(full_determinism=True, max_steps=1), **settings)
    assert seen and all(seen)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_log_shorter_than_its_interval_has_a_last_line(folder: Path, tmp_path: Path) -> None:
    _, lines = ours(folder, tmp_path, spec_of(logging_steps=3))
    assert [line["step"] for line in lines] == [3, 5]
    _, every = ours(folder, tmp_path, spec_of())
    losses = [line["loss"] for line in every]
    assert [line["loss"] for line in lines] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 2])
