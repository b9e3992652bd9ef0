"""Heads of every make, saved with the adapter: PEFT alone loads them again, whatever else a task's class makes anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.bases import read_base
from adapterhub.catalog.families import family_of
from adapterhub.catalog.methods import check_hyperparameters, method_named
from adapterhub.catalog.tasks import task_named
from adapterhub.engine import adapters
from adapterhub.engine.base import choose_device, load_base
from adapterhub.errors import IncompatibleError
from adapterhub.spec.base_model import BaseModelRef
from tests.catalog.family_configs import tiny_config
from tests.factory import write_tokenizer

pytestmark = pytest.mark.engine
LABELS = ("a", "b", "c")


def attached(folder: Path, model_type: str, task: str, saver: str, method: str = "lora", **given: object) -> Any:
    """Save a base without the task's head, and put an adapter on it whose numbers are all other than at its start."""
    import torch
    import transformers

    torch.manual_seed(0)
    base = getattr(transformers, saver).from_config(tiny_config(model_type, pad_token_id=0))
    base.save_pretrained(folder)
    write_tokenizer(folder)
    family = family_of(model_type)
    assert family is not None
    targets = family.default_targets
    values = given or {"target_modules": targets if isinstance(targets, str) else list(targets), "r": 2}
    loaded = load_base(
        read_base(folder, BaseModelRef(id="base"), "folder"),
        device=choose_device("cpu"),
        dtype=torch.float32,
        task=task,
        labels=LABELS,
        seed=1,
    )
    checked = check_hyperparameters(method_named(method), values, where="test")
    model = adapters.attach(loaded, checked, task=task, seed=1, method=method)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return loaded, model


@pytest.mark.parametrize(
    ("model_type", "task", "saver", "made"),
    [
        ("bert", "SEQ_CLS", "AutoModelForMaskedLM", {"classifier", "pooler"}),
        ("roberta", "SEQ_CLS", "AutoModelForMaskedLM", {"classifier"}),
        ("distilbert", "SEQ_CLS", "AutoModel", {"classifier", "pre_classifier"}),
        ("deberta-v2", "SEQ_CLS", "AutoModel", {"classifier", "pooler"}),
        ("albert", "TOKEN_CLS", "AutoModel", {"classifier"}),
        ("gpt2", "SEQ_CLS", "AutoModelForCausalLM", {"score"}),
        ("gpt2", "TOKEN_CLS", "AutoModelForCausalLM", {"classifier"}),
    ],
)
def test_what_is_made_anew_is_trained_saved_and_loaded_by_peft(
    tmp_path: Path, model_type: str, task: str, saver: str, made: set[str]
) -> None:
    import torch
    import transformers
    from peft import PeftModel

    base, model = attached(tmp_path / "base", model_type, task, saver)
    assert set(base.made) == made
    adapters.save(model, tmp_path, base_id="base", base_revision=None)
    ids = torch.randint(1, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(99)  # what is made anew now is made otherwise
    auto_class = getattr(transformers, task_named(task).auto_class)
    plain = auto_class.from_pretrained(tmp_path / "base", num_labels=len(LABELS))
    again = PeftModel.from_pretrained(plain, tmp_path).eval()
    with torch.inference_mode():
        expected = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        found = again(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_last_token_is_told_by_what_fills_batches_up(tmp_path: Path) -> None:
    """The config's own pad token is another one than the tokenizer's, which fills batches up."""
    import torch

    base, model = attached(tmp_path, "gpt2", "SEQ_CLS", "AutoModelForCausalLM")
    assert base.model.config.pad_token_id == base.tokenizer.pad_token_id != 0
    filler = base.model.config.pad_token_id = 63  # within the tiny vocabulary
    short, long = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 6, 7, filler, filler]])
    with torch.inference_mode():
        alone = model.eval()(input_ids=short).logits
        padded = model(input_ids=long, attention_mask=(long != filler).long()).logits
    assert torch.allclose(alone, padded, atol=1e-6)


def test_prompts_that_hide_where_a_text_ends_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="no longer sees where a text ends"):
        attached(tmp_path / "p", "gpt2", "SEQ_CLS", "AutoModelForCausalLM", "prompt_tuning", num_virtual_tokens=2)
    attached(tmp_path / "prefix", "gpt2", "SEQ_CLS", "AutoModelForCausalLM", "prefix_tuning", num_virtual_tokens=2)
