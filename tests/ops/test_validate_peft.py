"""What PEFT itself saves, over what transformers itself saves, has no fault: the tables and names are theirs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.catalog.families import FAMILIES
from adapterhub.ops.validate import validate
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.report import Severity
from tests.catalog.family_configs import tiny_config
from tests.factory import tiny_llama

pytestmark = pytest.mark.engine

# Nothing of the base is recorded in what PEFT saves, and it names its base by path here.
ALWAYS = {"ADP204", "ADP205"}


SAVERS = {"encoder": "AutoModel", "decoder": "AutoModelForCausalLM", "encoder-decoder": "AutoModelForSeq2SeqLM"}


def faults(report) -> set[str]:
    return {item.code for item in report.findings if item.severity in (Severity.ERROR, Severity.WARNING)}


def not_checked(report) -> set[str]:
    return {item.code for item in report.findings if item.severity is Severity.NOT_CHECKED}


def told(report) -> str:
    return "\n".join(f"{item.code} {item.severity.value} {item.where}: {item.message}" for item in report.findings)


def save(model, folder, settings, **changes):
    """Save an adapter of a model with random B, so that it does something."""
    from peft import LoraConfig, get_peft_model

    peft = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **changes))
    peft.save_pretrained(folder)
    return validate(folder, base="base", settings=settings)


def keep_base(model, folder, settings):
    model.save_pretrained(folder)
    BaseStore(settings).add(read_base(folder, BaseModelRef(id="base"), "folder"))


def _traits(family) -> tuple[object, ...]:
    """What the checks treat apart."""
    named = tuple(sorted(family.stored_names.values()))
    return family.kind, bool(family.prefix), family.conv1d, bool(family.experts), bool(family.routers), named


# The first family of each kind, and those that the tests name; the others are held by the built model's own names.
_FIRST = {_traits(family): family.name for family in reversed(FAMILIES)}
SAVED = [row for row in FAMILIES if row.name in {*_FIRST.values(), "t5", "modernbert"}]


@pytest.mark.parametrize("family", SAVED, ids=lambda family: family.name)
@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION"])
def test_every_family_with_its_default_targets(family, task, tmp_path, settings):
    import transformers

    from adapterhub.catalog.tasks import TASKS

    config = tiny_config(family.model_types[0], pad_token_id=0)
    loader = getattr(transformers, TASKS[task].auto_class)
    if family.kind != "decoder" and task == "CAUSAL_LM":
        pytest.skip(f"an {family.kind}")
    if type(config) not in loader._model_mapping:
        pytest.skip("transformers has no such class")
    if family.encoder_decoder and task == "SEQ_CLS":
        # PEFT does not save the head, which is called classification_head here.
        keep_base(getattr(transformers, SAVERS[family.kind]).from_config(config), tmp_path / "base", settings)
        model = loader.from_pretrained(tmp_path / "base")
        report = save(model, tmp_path / "a", settings, task_type=task, target_modules=list(family.default_targets))
        assert faults(report) - ALWAYS == {"ADP308"}, told(report)
        assert {"ADP301", "ADP302", "ADP305", "ADP307", "ADP314"} <= set(report.passed)
        return
    saver = SAVERS[family.kind]
    keep_base(getattr(transformers, saver).from_config(config), tmp_path / "base", settings)
    # PEFT itself cannot do all-linear here: it wraps pre_classifier, which it then wants to save whole.
    refused = (family.name == "distilbert" and task == "SEQ_CLS") or family.refused
    # And here it adapts a layer that no file holds, so that it has other numbers each time it is loaded.
    unsaved = {"ADP308"} if task == "SEQ_CLS" and family.name in ("deberta", "deberta-v2", "modernbert") else set()
    for targets in (list(family.default_targets), "all-linear")[: 1 if refused else 2]:
        model = loader.from_pretrained(tmp_path / "base")
        folder = tmp_path / f"adapter-{targets if isinstance(targets, str) else 'default'}"
        report = save(model, folder, settings, task_type=task, target_modules=targets)
        expected = unsaved if targets == "all-linear" else set()
        assert faults(report) - ALWAYS == expected, told(report)
        assert {"ADP301", "ADP302", "ADP303", "ADP305", "ADP314"} - expected <= set(report.passed)


@pytest.mark.parametrize("family", [row for row in FAMILIES if row not in SAVED], ids=lambda family: family.name)
@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION"])
def test_the_built_model_names_its_modules_as_the_tables_do(family, task):
    import torch
    import transformers

    from adapterhub.catalog.tasks import TASKS
    from adapterhub.ops._base_view import MADE, BaseFiles

    config = tiny_config(family.model_types[0], pad_token_id=0)
    loader = getattr(transformers, TASKS[task].auto_class)
    if type(config) not in loader._model_mapping or (family.kind != "decoder" and task == "CAUSAL_LM"):
        pytest.skip("transformers has no such class")
    with torch.device("meta"):
        stored = getattr(transformers, SAVERS[family.kind]).from_config(config).state_dict()
        model = loader.from_config(config)
    tensors = {name: SimpleNamespace(shape=tuple(item.shape)) for name, item in stored.items()}
    view = BaseFiles(config=config.to_dict(), tensors=tensors).view(bare=TASKS[task].bare)
    built = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not MADE & set(name.split("."))
    }
    assert built and {name: view.modules[name].shape for name in built if name in view.modules} == built


@pytest.mark.parametrize("family", SAVED, ids=lambda family: family.name)
def test_a_base_that_was_saved_without_its_head(family, tmp_path, settings):
    """Checkpoints of the bare model lack the prefix; the adapter of a model with a head has it."""
    import transformers

    loader, task = {
        "encoder": (transformers.AutoModelForTokenClassification, "TOKEN_CLS"),
        "decoder": (transformers.AutoModelForCausalLM, "CAUSAL_LM"),
        "encoder-decoder": (transformers.AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM"),
    }[family.kind]
    config = tiny_config(family.model_types[0], pad_token_id=0)
    keep_base(transformers.AutoModel.from_config(config), tmp_path / "base", settings)
    model = loader.from_pretrained(tmp_path / "base")
    report = save(model, tmp_path / "a", settings, task_type=task, target_modules=list(family.default_targets))
    assert faults(report) <= ALWAYS, told(report)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"target_modules": ["q_proj"], "bias": "all"}, {"ADP108"}),
        ({"target_modules": ["q_proj"], "bias": "lora_only"}, {"ADP108"}),
        ({"target_modules": ["q_proj"], "lora_bias": True}, {"ADP108"}),
        ({"target_modules": ["q_proj", "down_proj"], "use_dora": True}, {"ADP108"}),
        ({"target_modules": ["embed_tokens", "q_proj"]}, {"ADP108"}),
        ({"target_modules": ["lm_head", "q_proj"]}, {"ADP108"}),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}, {"ADP108"}),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}, {"ADP108"}),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, {"ADP108"}),
        ({"target_modules": r".*layers\.1\..*(q|v)_proj"}, {"ADP108"}),
        ({"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*\.0\..*"}, {"ADP108"}),
        ({"target_modules": ["q_proj", "v_proj"], "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 5}}, {"ADP108"}),
        ({"target_modules": None, "task_type": "CAUSAL_LM"}, set()),
    ],
)
def test_every_form_that_peft_saves(changes, expected, tmp_path, settings):
    from transformers import AutoModelForCausalLM

    base = tiny_llama(tmp_path / "base")
    BaseStore(settings).add(read_base(base, BaseModelRef(id="base"), "folder"))
    report = save(AutoModelForCausalLM.from_pretrained(base), tmp_path / "a", settings, **changes)
    assert faults(report) - ALWAYS == expected, told(report)
    assert "ADP314" in report.passed


def test_layers_that_peft_replicates_are_not_checked(tmp_path, settings):
    from transformers import AutoModelForCausalLM

    base = tiny_llama(tmp_path / "base")
    BaseStore(settings).add(read_base(base, BaseModelRef(id="base"), "folder"))
    changes = {"target_modules": ["q_proj"], "layer_replication": [(0, 2), (0, 2)], "task_type": "CAUSAL_LM"}
    report = save(AutoModelForCausalLM.from_pretrained(base), tmp_path / "a", settings, **changes)
    assert faults(report) <= ALWAYS, told(report)
    assert "ADP403" in not_checked(report)


def test_a_resized_vocabulary_and_tied_embeddings_are_told(tmp_path, settings):
    from transformers import AutoModelForCausalLM

    base = tiny_llama(tmp_path / "base", tie=True)
    BaseStore(settings).add(read_base(base, BaseModelRef(id="base"), "folder"))
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(270)
    report = save(model, tmp_path / "a", settings, target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert faults(report) - ALWAYS == {"ADP208"}
    model = AutoModelForCausalLM.from_pretrained(base)
    both = {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "task_type": "CAUSAL_LM"}
    assert faults(save(model, tmp_path / "b", settings, **both)) - ALWAYS == {"ADP309"}
    model = AutoModelForCausalLM.from_pretrained(base)
    tied = {"target_modules": ["q_proj", "embed_tokens"], "task_type": "CAUSAL_LM", "ensure_weight_tying": True}
    assert faults(save(model, tmp_path / "c", settings, **tied)) - ALWAYS == set()


def test_a_classifier_without_a_task_type_has_no_head(tmp_path, settings):
    """PEFT does not save the head unless task_type says there is one; nothing in the files tells that it is missing."""
    from transformers import AutoModelForSequenceClassification

    base = tiny_llama(tmp_path / "base")
    BaseStore(settings).add(read_base(base, BaseModelRef(id="base"), "folder"))
    model = AutoModelForSequenceClassification.from_pretrained(base)
    report = save(model, tmp_path / "a", settings, target_modules=["q_proj"])
    assert faults(report) - ALWAYS == {"ADP108"}
