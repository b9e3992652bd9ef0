"""The recipes of published results: each can be built as it stands, and says what its source says.

They are not run: their base models and rows come from the Hub.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.documents import parse_yaml
from adapterhub.ops._recipes import fill_hyperparameters, read_recipe_with, refuse_unsupported
from adapterhub.schemas import check
from adapterhub.spec.data import SourceSpec

FOLDER = Path(__file__).parents[1] / "recipes" / "published"
GLUE = "nyu-mll/glue"
# file: base, GLUE's task, its classes in GLUE's order, alpha, dropout, learning rate, epochs, batch, what is published.
# The LoRA paper's rows are of its tables 2 and 9.
TABLE = {
    "roberta-base-sst2": ("roberta-base", "sst2", "negative positive", 8, 0.0, 5e-4, 60, 16, "95.1"),
    "roberta-base-mrpc": ("roberta-base", "mrpc", "not_equivalent equivalent", 8, 0.0, 4e-4, 30, 16, "89.7"),
    "roberta-base-cola": ("roberta-base", "cola", "unacceptable acceptable", 8, 0.0, 4e-4, 80, 32, "63.4"),
    "roberta-base-qnli": ("roberta-base", "qnli", "entailment not_entailment", 8, 0.0, 4e-4, 25, 32, "93.3"),
    "roberta-base-rte": ("roberta-base", "rte", "entailment not_entailment", 8, 0.0, 5e-4, 80, 32, "86.6"),
    "roberta-large-mrpc": ("roberta-large", "mrpc", "not_equivalent equivalent", 16, 0.1, 3e-4, 20, 32, ".9247"),
    "bert-tiny-sst2": ("bert_uncased_L-2_H-128_A-2", "sst2", "negative positive", 16, 0.0, 3e-4, 4, 32, "83.2"),
}


def test_the_table_is_of_all_recipes() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(TABLE)
    told = (FOLDER / "README.md").read_text("utf-8")
    for name, (*_, published) in TABLE.items():
        assert f"`{name}.yaml`" in told and published in told
    assert "STS-B" in told


@pytest.mark.parametrize("name", TABLE)
def test_a_published_recipe(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    base, task, labels, alpha, dropout, rate, epochs, batch, published = TABLE[name]
    text = path.read_text("utf-8")
    assert "# Not run here" in text and published in text.partition("recipe_version")[0]
    assert check("recipe", parse_yaml(text.encode(), where=name), where=name) == ()

    recipe = read_recipe_with(path, ())
    refuse_unsupported(recipe, str(path))
    filled = fill_hyperparameters(recipe, model_type="bert" if "bert_" in base else "roberta", where=str(path))
    assert (recipe.base_model.rpartition("/")[2], recipe.task, recipe.method) == (base, "SEQ_CLS", "lora")
    assert (filled["r"], filled["lora_alpha"], filled["lora_dropout"]) == (8, alpha, dropout)
    assert tuple(filled["target_modules"]) == ("query", "value")  # type: ignore[arg-type]

    data, training = recipe.data, recipe.training
    assert data.train == (SourceSpec(dataset=GLUE, name=task, split="train"),)
    assert data.eval == (SourceSpec(dataset=GLUE, name=task, split="validation"),)
    # GLUE's order: F1 is of the second class.
    assert data.labels == tuple(labels.split())
    assert (training.learning_rate, training.num_train_epochs, training.step_rows) == (rate, epochs, batch)
    assert (training.lr_scheduler_type, training.optim) == ("linear", "adamw_torch")
    if base == "roberta-base":
        assert (data.max_length, training.warmup_steps, training.load_best_model_at_end) == (512, 0.06, True)
        assert training.weight_decay == 0.1
        assert training.metric_for_best_model == ("matthews" if task == "cola" else "accuracy")
    if task == "qnli":
        assert dict(data.columns) == {"text": "question", "text_pair": "sentence"}
