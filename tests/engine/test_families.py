"""Rows of families against what transformers builds and PEFT adapts, on a tiny model of every type."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from adapterhub.catalog.families import ALL_LINEAR, family_of
from adapterhub.catalog.tasks import TASKS
from adapterhub.ops._base_shape import BaseShape, base_shape
from adapterhub.ops._estimate import trainable_parameters
from tests.catalog.family_configs import CONFIGS, tiny_config

pytestmark = pytest.mark.engine

NAMES = tuple(CONFIGS)
TASKS_OF = {
    "decoder": ("CAUSAL_LM", "FEATURE_EXTRACTION"),
    "encoder": ("FEATURE_EXTRACTION", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"),
    "encoder-decoder": ("SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"),
}
# Names of a row that a variant has not.
ABSENT = {
    "t5": {"wi_0", "wi_1"},
    "t5/gated": {"wi"},
    "mt5": {"wi"},
    "umt5": {"wi"},
    "deberta-v2": {"pos_key_proj", "pos_query_proj"},
}
# Linear modules of a layer that are neither attention nor MLP: routers and gates, which weigh experts.
WEIGHING = {"qwen2_moe": {"mlp.shared_expert_gate"}, "llama4_text": {"feed_forward.router"}}
# Linear modules of the body outside its layers: from the width of embeddings to that of the layers.
WIDENING = {"electra": {"electra.embeddings_project"}, "albert": {"albert.encoder.embedding_hidden_mapping_in"}}
# Where our default targets are not PEFT's, the reason; families not named here have PEFT's, or PEFT has none.
ALL_ATTENTION = "all of attention and not queries and values alone: see catalog/families"
DIFFERENT = {
    **dict.fromkeys(
        (
            *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "stablelm", "mixtral"),
            *("llama4_text", "opt", "gptj", "gpt_neo", "gpt2", "gpt_bigcode", "gpt_neox", "bloom", "falcon", "mpt"),
            "codegen",
        ),
        ALL_ATTENTION,
    ),
    "phi": "all of attention, and not half of it with the MLP",
}


def main_task(name: str) -> str:
    family = family_of(name.partition("/")[0])
    assert family is not None
    return TASKS_OF[family.kind][0]


@cache
def saved(name: str, folder: Any) -> tuple[dict[str, Any], Any]:
    """Save a tiny model as its checkpoints are, encoders as they come from pre-training; return config and headers."""
    import transformers

    from adapterhub.weights import open_checkpoint

    family = family_of(name.partition("/")[0])
    assert family is not None
    head = {"decoder": "ForCausalLM", "encoder": "ForMaskedLM", "encoder-decoder": "ForSeq2SeqLM"}[family.kind]
    config = tiny_config(name)
    model = getattr(transformers, f"AutoModel{head}").from_config(config)
    path = folder / name.replace("/", "-")
    model.save_pretrained(path)
    return config.to_dict(), open_checkpoint(path).tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("families")


def shape_of(name: str, folder: Any, task: str) -> BaseShape:
    """Read a base's shape from config and headers alone."""
    config, tensors = saved(name, folder)
    return base_shape(config, tensors, name.partition("/")[0], task=task)


def built(name: str, task: str, *, real: bool = False) -> Any:
    """Build the model of a task, without its numbers unless asked for."""
    import torch
    import transformers

    loader = getattr(transformers, TASKS[task].auto_class)
    config = tiny_config(name)
    if real:
        return loader.from_config(config)
    with torch.device("meta"):
        return loader.from_config(config)


def linear_modules(model: Any) -> dict[str, tuple[int, int]]:
    """Return input and output width of every linear module."""
    from torch.nn import Linear
    from transformers import Conv1D

    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear | Conv1D):
            outputs, inputs = reversed(module.weight.shape) if isinstance(module, Conv1D) else module.weight.shape
            found[name] = (inputs, outputs)
    return found


def under(name: str, words: Any) -> bool:
    return any(name == word or name.endswith(f".{word}") for word in words)


@pytest.mark.parametrize("name", NAMES)
def test_the_row_is_what_transformers_builds(name: str) -> None:
    from transformers import Conv1D

    family = family_of(name.partition("/")[0])
    assert family is not None
    model = built(name, main_task(name) if family.kind != "encoder" else "TOKEN_CLS")
    modules = dict(model.named_modules())
    linear = linear_modules(model)
    body = f"{family.prefix}." if family.prefix else ""
    assert not family.prefix or family.prefix in modules
    for word in (*family.embeddings, *((family.head,) if family.head else ())):
        if word.endswith(("token_type_embeddings", "embed_positions", "position_embeddings")) and word not in modules:
            continue  # a setting of the config, or computed and not stored
        assert any(under(path, (word,)) for path in modules), word
    inside = {path for path in linear if any(path.startswith(f"{layers}.") for layers in family.layers)}
    expected = 1 if name == "albert" else 6 if family.encoder_decoder else 2
    for word in family.default_targets:
        assert sum(under(path, (word,)) for path in inside) == expected, word
        assert not [path for path in linear if under(path, (word,)) and path not in inside], word
    for group in (family.attention, family.mlp):
        for word in set(group) - ABSENT.get(name, set()):
            assert [path for path in inside if under(path, (word,))], word
    assert not [path for path in linear if under(path, ABSENT.get(name, ()))]
    attention = {path for path in inside if under(path, family.attention)}
    mlp = {path for path in inside if under(path, family.mlp)} - attention
    rest = inside - attention - mlp
    assert {path for path in rest if not under(path, WEIGHING.get(name, ()))} == set()
    outside = {path for path in linear if path.startswith(body)} - inside
    labels = ("lm_head", "classifier", "score", "head.dense")
    assert {path for path in outside if not under(path, labels)} == WIDENING.get(name, set())
    assert family.conv1d == any(isinstance(modules[path], Conv1D) for path in inside)


@pytest.mark.parametrize("name", NAMES)
def test_all_linear_by_headers_alone_is_what_peft_picks_on_the_model(name: str, folder: Any) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    family = family_of(name.partition("/")[0])
    assert family is not None
    for task in TASKS_OF[family.kind]:
        model = built(name, task)
        config = LoraConfig(task_type=task, target_modules=ALL_LINEAR)
        # PEFT trains layers of labels whole, and LoRA keeps away from them then.
        heads = ("qa_outputs", *TASKS["SEQ_CLS"].head_modules)
        picked = {
            path
            for path in _maybe_include_all_linear_layers(config, model).target_modules
            if path.partition(".")[0] not in heads
        }
        shape = shape_of(name, folder, task)
        assert shape.all_linear is not None
        assert set(shape.all_linear) == picked, task
        widths = linear_modules(model)
        assert {path: shape.in_out(path) for path in shape.all_linear} == {path: widths[path] for path in picked}, task


@pytest.mark.parametrize("name", NAMES)
def test_as_many_parameters_are_trained_as_was_estimated(name: str, folder: Any) -> None:
    from peft import LoraConfig, get_peft_model

    family = family_of(name.partition("/")[0])
    assert family is not None
    task = main_task(name)
    shape = shape_of(name, folder, task)
    for targets in (family.default_targets, ALL_LINEAR):
        if targets == ALL_LINEAR and family.refused:
            continue  # refused below
        modules = list(targets) if isinstance(targets, tuple) else targets
        model = get_peft_model(built(name, task, real=True), LoraConfig(r=4, task_type=task, target_modules=modules))
        trained = sum(item.numel() for item in model.parameters() if item.requires_grad)
        assert trained == trainable_parameters(shape, {"r": 4, "target_modules": targets}, where="test"), targets
        assert trained > 0


@pytest.mark.parametrize("name", [name for name in NAMES if "/" not in name])
def test_defaults_are_peft_s_or_knowingly_others(name: str) -> None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_S

    family = family_of(name)
    assert family is not None
    theirs = PEFT_S.get(name) or PEFT_S.get(name.removesuffix("_text"))
    if name not in DIFFERENT:
        assert theirs is None or set(theirs) == set(family.default_targets)
        return
    assert theirs is not None and set(theirs) != set(family.default_targets)
    if DIFFERENT[name] == ALL_ATTENTION:
        assert set(family.default_targets) == set(family.attention) > set(theirs)
    else:
        assert set(family.default_targets) == set(family.attention)
