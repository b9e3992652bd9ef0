"""The training part of a recipe: what it says together, what its schema says of it, and the digests that stay."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from adapterhub.errors import InvalidFileError
from adapterhub.schemas import check
from adapterhub.spec.recipe import Recipe
from adapterhub.spec.training import _SINCE_1_2, TrainingSpec

RECIPE = {
    "recipe_version": "1.2",
    "name": "x",
    "version": "1.0.0",
    "base_model": "tiny",
    "data": {"train": "rows.jsonl"},
}


def read(**training: Any) -> TrainingSpec:
    return Recipe.from_data({**RECIPE, "training": training}).training


@pytest.mark.parametrize(
    ("training", "fault"),
    [
        ({"eval_strategy": "no", "load_best_model_at_end": True}, "load_best_model_at_end: goes by held-out rows"),
        ({"early_stopping_patience": 2}, "early_stopping_patience: goes by held-out rows"),
        ({"save_strategy": "best"}, "save_strategy: goes by held-out rows"),
        ({"lr_scheduler_type": "greedy"}, "lr_scheduler_type: goes by held-out rows"),
        ({"early_stopping_threshold": 0.1}, "says nothing without early_stopping_patience"),
        ({"eval_strategy": "steps", "lr_scheduler_type": "reduce_lr_on_plateau", "warmup_steps": 3}, "warmup_steps"),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"a": 1}}, "lr_scheduler_kwargs: says nothing"),
        ({"optim": "sgd", "adam_beta2": 0.5}, "adam_beta2: says nothing with optim: sgd"),
        ({"optim": "lion_32bit", "adam_epsilon": 1e-3}, "adam_epsilon: says nothing with optim: lion_32bit"),
        ({"loraplus_lr_embedding": 1e-3}, "says nothing without loraplus_lr_ratio"),
        ({"global_batch_size": 12}, "must be a multiple of per_device_train_batch_size (8)"),
        ({"global_batch_size": 16, "gradient_accumulation_steps": 3}, "both say how many rows a step has"),
        ({"max_steps": 0}, "max_steps: must be at least 1"),
    ],
)  # fmt: skip
def test_fields_that_say_nothing_together_are_faults(training: dict[str, Any], fault: str) -> None:
    with pytest.raises(InvalidFileError) as caught:
        read(**training)
    assert fault in str(caught.value)


def test_the_rows_of_a_step_say_how_many_batches_it_has() -> None:
    spec = read(global_batch_size=32)
    assert (spec.gradient_accumulation_steps, spec.step_rows) == (4, 32)
    assert read(**spec.to_data()) == spec  # both are written, and agree
    assert read(global_batch_size=8).gradient_accumulation_steps == 1


# A value other than the default for each field that only newer formats know, with what it needs beside it.
TOLD: dict[str, dict[str, Any]] = {
    "lr_scheduler_kwargs": {"lr_scheduler_kwargs": {"num_cycles": 0.5}},
    "optim_args": {"optim_args": "momentum=0.9"},
    "adam_beta1": {"adam_beta1": 0.8},
    "adam_beta2": {"adam_beta2": 0.8},
    "adam_epsilon": {"adam_epsilon": 1e-6},
    "loraplus_lr_ratio": {"loraplus_lr_ratio": 16},
    "loraplus_lr_embedding": {"loraplus_lr_embedding": 1e-5, "loraplus_lr_ratio": 2},
    "neftune_noise_alpha": {"neftune_noise_alpha": 5},
    "global_batch_size": {"global_batch_size": 16},
    "full_determinism": {"full_determinism": True},
    "eval_strategy": {"eval_strategy": "epoch"},
    "eval_steps": {"eval_steps": 5},
    "load_best_model_at_end": {"load_best_model_at_end": True, "eval_strategy": "steps"},
    "metric_for_best_model": {"metric_for_best_model": "eval_f1"},
    "greater_is_better": {"greater_is_better": False},
    "early_stopping_patience": {"early_stopping_patience": 3, "eval_strategy": "steps"},
    "early_stopping_threshold": {
        "early_stopping_threshold": 0.1, "early_stopping_patience": 3, "eval_strategy": "steps"
    },
    "save_strategy": {"save_strategy": "epoch"},
    "save_steps": {"save_steps": 7},
    "save_total_limit": {"save_total_limit": 1},
    "report_to": {"report_to": ["wandb", "tensorboard"]},
    "run_name": {"run_name": "first"},
    "project": {"project": "mine"},
    "logging_dir": {"logging_dir": "logs"},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(_SINCE_1_2))
def test_a_new_field_is_written_when_it_says_something_and_only_then(name: str) -> None:
    told = TOLD[name]
    assert check("recipe", {**RECIPE, "training": told}, where="x") == ()
    spec = read(**told)
    assert getattr(spec, name) != getattr(TrainingSpec(), name)
    assert not spec.is_first_form and name in spec.to_data()
    assert read(**spec.to_data()) == spec
    assert Recipe.from_data({**RECIPE, "training": told}).digest != Recipe.from_data(RECIPE).digest


def test_what_says_nothing_new_is_written_as_before() -> None:
    assert set(TrainingSpec().to_data()) == {field.name for field in fields(TrainingSpec)} - _SINCE_1_2
    assert read(save_steps=500, eval_strategy="no", report_to=[], greater_is_better=None).is_first_form
    assert not read(optim="sgd").is_first_form and not read(lr_scheduler_type="polynomial").is_first_form


VALUES = (None, True, 0, -1, 1.5, 3, 10**20, "", "x", "no", "steps", "best", "sgd", "a=1", [], ["wandb"], ["x"], {})


@pytest.mark.parametrize("name", [field.name for field in fields(TrainingSpec)])
def test_the_schema_refuses_what_the_decoder_refuses(name: str) -> None:
    together = ("goes by held-out rows", "says nothing", "must be a multiple", "both say", "must be above 0")
    for value in VALUES:
        refused = bool(check("recipe", {**RECIPE, "training": {name: value}}, where="x"))
        try:
            read(**{name: value})
        except InvalidFileError as error:
            assert refused or any(words in str(error) for words in together), (value, str(error))
        else:
            assert not refused, value


def test_which_way_is_better() -> None:
    assert not read(metric_for_best_model="eval_loss").higher_is_better
    assert read(metric_for_best_model="f1").higher_is_better
    assert not read(metric_for_best_model="f1", greater_is_better=False).higher_is_better
