from __future__ import annotations

import pytest

from adapterhub.errors import IncompatibleError
from adapterhub.ops._base_shape import BaseShape, base_shape
from adapterhub.ops._method_fit import fit_method
from adapterhub.spec.recipe import Recipe
from adapterhub.weights import TensorInfo

MODULES = {
    "llama": "model.layers.0.self_attn.q_proj",
    "bert": "bert.encoder.layer.0.attention.self.query",
    "t5": "encoder.block.0.layer.0.SelfAttention.q",
}


def shape(model_type: str) -> BaseShape:
    """Return a base of one matrix."""
    name = f"{MODULES[model_type]}.weight"
    tensors = {name: TensorInfo(name=name, dtype="F32", shape=(8, 8), file="x", start=0, end=256)}
    return base_shape({"model_type": model_type, "hidden_size": 8}, tensors, model_type)


def recipe(task: str) -> Recipe:
    data = {"recipe_version": "1.0", "name": "x", "version": "0.1.0", "base_model": "base", "method": "lora"}
    return Recipe.from_data({**data, "task": task, "data": {"train": "rows.jsonl"}}, where="r.yaml")


@pytest.mark.parametrize(
    ("model_type", "task", "fits"),
    [
        ("llama", "CAUSAL_LM", True),
        ("llama", "SEQ_2_SEQ_LM", False),
        ("llama", "SEQ_CLS", True),
        ("bert", "CAUSAL_LM", False),
        ("bert", "SEQ_2_SEQ_LM", False),
        ("bert", "SEQ_CLS", True),
        ("t5", "CAUSAL_LM", False),
        ("t5", "SEQ_2_SEQ_LM", True),
    ],
)
def test_a_base_of_another_kind_than_the_task_needs_is_refused(model_type: str, task: str, fits: bool) -> None:
    targets = {"r": 2, "target_modules": (MODULES[model_type].rpartition(".")[2],)}
    if fits:
        adapter = fit_method(shape(model_type), recipe(task), targets, where="r.yaml")
        assert adapter is not None and adapter.parameters == 2 * (8 + 8)
        return
    with pytest.raises(IncompatibleError, match=f"{task} needs") as refused:
        fit_method(shape(model_type), recipe(task), targets, where="r.yaml")
    assert refused.value.where == "r.yaml: task" and model_type in str(refused.value.hint)
