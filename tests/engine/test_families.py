"""Rows of families against what transformers builds and PEFT adapts, on a tiny model of every type."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from adapterhub.catalog.families import ALL_LINEAR, FAMILIES, family_of
from adapterhub.catalog.method_targets import IA3_MODULES, NORMS
from adapterhub.catalog.tasks import TASKS
from adapterhub.errors import IncompatibleError
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


# One model type of each family, and every variant.
COUNTED = (*(family.model_types[0] for family in FAMILIES), *(name for name in NAMES if "/" in name))
EXPERTS = tuple(name for name in NAMES if (family := family_of(name)) is not None and family.experts)
# Only with parallel_attn off, as Falcon-RW has it.
NOT_HERE = {"falcon": {"post_attention_layernorm"}}


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
    # Other tasks differ by family, not by model type.
    for task in TASKS_OF[family.kind] if name in COUNTED else (main_task(name),):
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


@pytest.mark.parametrize("name", COUNTED)
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


@pytest.mark.parametrize("name", [name for name in NAMES if name in {*IA3_MODULES, *NORMS}])
def test_modules_of_ia3_and_of_norm_tuning_are_there(name: str) -> None:
    modules = dict(built(name, main_task(name)).named_modules())
    linear = linear_modules(built(name, main_task(name)))
    targets, forward = IA3_MODULES.get(name, ((), ()))
    assert set(forward) <= set(targets)
    for word in targets:
        assert [path for path in linear if under(path, (word,))], word
    for word in set(NORMS.get(name, ())) - NOT_HERE.get(name, set()):
        found = [module for path, module in modules.items() if under(path, (word,))]
        assert found and all("norm" in type(module).__name__.lower() for module in found), word


@pytest.mark.parametrize("name", EXPERTS)
def test_fused_experts_are_told_apart_from_linear_modules(name: str, folder: Any) -> None:
    family = family_of(name)
    assert family is not None
    model = built(name, "CAUSAL_LM")
    linear = linear_modules(model)
    parameters = dict(model.named_parameters())
    for word in family.experts:
        assert [path for path, item in parameters.items() if under(path, (word,)) and item.ndim == 3], word
        assert not [path for path in linear if under(path, (word,))]
    fused = {path for path, item in parameters.items() if item.ndim == 3}
    assert fused == {path for path in parameters if under(path, family.experts)}
    routers = {
        path.removesuffix(".weight") for path in parameters if under(path.removesuffix(".weight"), family.routers)
    }
    assert not routers & set(linear) and bool(routers) == bool(family.routers)
    shape = shape_of(name, folder, "CAUSAL_LM")
    assert not [path for path in shape.modules if under(path, family.routers) or ".experts." in path]
    if family.handed_over:
        assert set(shape.fused) == fused | {f"{path}.weight" for path in routers}
        assert {path: widths[0] for path, widths in shape.fused.items()} == {
            path: 4 if path in fused else 1 for path in shape.fused
        }
    else:
        assert not shape.fused


@pytest.mark.parametrize("name", EXPERTS)
def test_what_all_linear_covers_of_experts(name: str) -> None:
    """Where PEFT hands names over, experts and router alone; elsewhere all linear modules, and no expert."""
    from peft import LoraConfig, get_peft_model

    family = family_of(name)
    assert family is not None
    model = get_peft_model(built(name, "CAUSAL_LM"), LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=ALL_LINEAR))
    adapted = {path.partition(".lora_")[0] for path, item in model.named_parameters() if item.requires_grad}
    assert any(path.endswith(".experts") for path in adapted) == bool(family.handed_over)
    if family.handed_over:
        assert not [path for path in adapted if under(path, ("gate_proj", "up_proj", "down_proj"))]
        assert [path for path in adapted if path.endswith(".mlp.gate")]
    elif family.mlp:
        assert [path for path in adapted if under(path, family.mlp)]


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("qwen3_moe", {"target_modules": ["gate_proj", "q_proj"]}, "one tensor"),
        ("mixtral", {"target_modules": ["w3"]}, "one tensor"),
        ("mixtral", {"target_modules": ALL_LINEAR, "lora_dropout": 0.1}, "neither dropout nor DoRA"),
        ("mixtral", {"target_modules": ["gate"], "use_dora": True}, "neither dropout nor DoRA"),
        ("gpt_oss", {"target_modules": ["gate_up_proj"]}, "target_modules cannot reach"),
        ("gpt_oss", {"target_modules": ["router", "q_proj"]}, "target_modules cannot reach"),
        ("qwen2_moe", {"target_modules": ["mlp.gate"]}, "target_modules cannot reach"),
        ("mamba", {"target_modules": ALL_LINEAR}, "does nothing"),
        ("mamba", {"target_modules": ["in_proj", "out_proj"]}, "does nothing"),
    ],
)  # fmt: skip
def test_what_lora_cannot_reach_is_refused_by_us_and_by_peft(
    name: str, settings: dict[str, Any], told: str, folder: Any
) -> None:
    from peft import LoraConfig, get_peft_model

    shape = shape_of(name, folder, "CAUSAL_LM")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    with pytest.raises(IncompatibleError, match=told) as refused:
        trainable_parameters(shape, {"r": 4, **given}, where="test")
    family = family_of(name)
    assert family is not None and refused.value.hint == f"name {', '.join(family.default_targets)}"
    with pytest.raises((ValueError, TypeError)):
        get_peft_model(built(name, "CAUSAL_LM"), LoraConfig(r=4, task_type="CAUSAL_LM", **settings))


def test_names_that_peft_hands_over_are_counted_as_it_does(folder: Any) -> None:
    from peft import LoraConfig, get_peft_model

    for name, targets in (
        ("mixtral", ["gate"]),
        ("mixtral", ["w1", "w3", "q_proj"]),
        ("glm4_moe", ["down_proj", "v_proj"]),
        ("deepseek_v3", ["gate_proj", "up_proj", "down_proj"]),
        ("qwen2_moe", ["gate_proj", "up_proj"]),
    ):
        config = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=targets)
        model = get_peft_model(built(name, "CAUSAL_LM", real=True), config)
        trained = sum(item.numel() for item in model.parameters() if item.requires_grad)
        given = {"r": 4, "target_modules": tuple(targets)}
        assert trainable_parameters(shape_of(name, folder, "CAUSAL_LM"), given, where="test") == trained, (
            name,
            targets,
        )


def test_an_expression_on_handed_over_names_is_known_when_built(folder: Any) -> None:
    shape = shape_of("mixtral", folder, "CAUSAL_LM")
    assert trainable_parameters(shape, {"r": 4, "target_modules": ".*q_proj"}, where="test") is None
    given = {"r": 4, "target_modules": ALL_LINEAR, "exclude_modules": ("q_proj",)}
    assert trainable_parameters(shape, given, where="test") is None


def test_memory_of_fused_experts_is_estimated(folder: Any) -> None:
    """The adapter's part by its parameters; what is kept grows with the experts that are adapted."""
    from adapterhub.engine.batches import Batch
    from adapterhub.ops._estimate import Training, adapter_shape, estimate_memory

    shape = shape_of("mixtral", folder, "CAUSAL_LM")
    batch = Batch(rows=2, width=8, tokens=16, labelled=8, shared=0)
    needed = []
    for targets in (("q_proj",), ("q_proj", "w2"), ALL_LINEAR):
        adapter = adapter_shape(shape, {"r": 4, "target_modules": targets}, where="test")
        assert adapter is not None
        memory = estimate_memory(shape, adapter, Training(dtype="float32", device="cpu"), [batch])
        assert memory.adapter == 4 * adapter.parameters
        needed.append(memory.activations)
    assert needed[0] < needed[1] < needed[2]
