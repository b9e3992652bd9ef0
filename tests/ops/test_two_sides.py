"""What encoders and decoders keep, held against autograd for every architecture of the table, and by hand."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from typing import Any

import pytest

from adapterhub.engine.batches import Batch
from adapterhub.ops._estimate import (
    HEAP_SHARE,
    AdapterShape,
    BaseShape,
    Training,
    activation_bytes,
    adapter_shape,
    base_shape,
    estimate_memory,
    forward_operations,
    step_operations,
)
from adapterhub.weights import TensorInfo

HIDDEN, INNER, HEADS, WORDS, LAYERS = 64, 160, 4, 512, 3
ROWS, SOURCE, TARGET = 4, 48, 24
BATCH = Batch(rows=ROWS, width=SOURCE, tokens=ROWS * SOURCE, labelled=ROWS * TARGET, target=TARGET)
CPU = Training(dtype="float32", device="cpu")


def config_of(model_type: str, **more: Any) -> Any:
    import transformers

    if model_type in ("t5", "mt5", "umt5"):
        sizes = {"d_kv": 12, "d_ff": INNER, "num_layers": LAYERS, "num_decoder_layers": LAYERS, "num_heads": HEADS}
        given = {**sizes, "dropout_rate": 0.0}
    else:
        sides = ("encoder", "decoder")
        given = {f"{side}_{name}": value for side in sides for name, value in
                 (("layers", LAYERS), ("ffn_dim", INNER), ("attention_heads", HEADS))}  # fmt: skip
        given |= {f"{side}_layerdrop": 0.0 for side in sides}  # layers that are passed over, by chance
        given |= {"dropout": 0.0, "max_position_embeddings": 128}
    special = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    given |= {"vocab_size": WORDS, "d_model": HIDDEN, **special, **more}
    return transformers.AutoConfig.for_model(model_type, **given)


def shape_of(model: Any) -> BaseShape:
    config = json.loads(model.config.to_json_string())
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    tensors = {
        name: TensorInfo(name=name, dtype="F32", shape=tuple(item.shape), file="x", start=0, end=4 * item.numel())
        for name, item in model.state_dict().items()
        if name not in tied and name != "final_logits_bias"  # a buffer
    }
    model_type = model.config.model_type
    return base_shape({**config, "model_type": model_type}, tensors, model_type, task="SEQ_2_SEQ_LM")


def build(model_type: str, **more: Any) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoModelForSeq2SeqLM.from_config(config_of(model_type, **more)).requires_grad_(False)


def adapted(shape: BaseShape, targets: list[str] | str) -> AdapterShape:
    given = tuple(targets) if isinstance(targets, list) else targets
    found = adapter_shape(shape, {"r": 8, "target_modules": given}, where="test")
    assert found is not None
    return found


def kept_by_autograd(model: Any, targets: list[str] | str, dtype: str = "float32") -> int:
    """Return the bytes that autograd keeps of a forward pass up to the logits, weights left out."""
    import torch
    from peft import LoraConfig, get_peft_model

    from adapterhub.engine.fused_layers import fused
    from adapterhub.engine.loss import autocast

    word = getattr(torch, dtype)
    model = model.to(word)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    peft = get_peft_model(model, LoraConfig(r=8, target_modules=targets, task_type="SEQ_2_SEQ_LM")).train()
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    own |= {parameter.untyped_storage().data_ptr() for parameter in peft.parameters()}
    storages: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    ids, labels = torch.randint(3, WORDS, (ROWS, SOURCE)), torch.randint(3, WORDS, (ROWS, TARGET))
    mask = torch.ones(ROWS, SOURCE, dtype=torch.long)
    mask[0, -3:] = 0  # as every batch of a training has some padding
    decoder = torch.cat([torch.zeros(ROWS, 1, dtype=torch.long), labels[:, :-1]], dim=1)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with fused(peft), hooks, autocast(torch.device("cpu"), word):
        peft(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder, use_cache=False)
    return sum(storages.values())


ARCHITECTURES = [
    *(("t5", more) for more in ({}, {"dropout_rate": 0.1}, {"feed_forward_proj": "gated-gelu", "dropout_rate": 0.1})),
    ("mt5", {}), ("umt5", {}),
    *(("bart", more) for more in ({}, {"dropout": 0.1}, {"attention_dropout": 0.1, "activation_dropout": 0.1})),
    ("mbart", {}), ("pegasus", {}), ("marian", {}), ("m2m_100", {}), ("blenderbot", {}), ("blenderbot-small", {}),
]  # fmt: skip


def t5() -> BaseShape:
    """Return the shape of a small T5 without writing its weights."""
    shapes = {"shared.weight": (WORDS, HIDDEN)}
    for side, sublayers in (("encoder", ("SelfAttention",)), ("decoder", ("SelfAttention", "EncDecAttention"))):
        for index in range(LAYERS):
            layer = f"{side}.block.{index}.layer"
            for number, name in enumerate((*sublayers, "DenseReluDense")):
                parts = ("wi", "wo") if name == "DenseReluDense" else ("q", "k", "v", "o")
                of = {"wi": (INNER, HIDDEN), "wo": (HIDDEN, INNER)}
                shapes |= {f"{layer}.{number}.{name}.{part}.weight": of.get(part, (HIDDEN, HIDDEN)) for part in parts}
                shapes[f"{layer}.{number}.layer_norm.weight"] = (HIDDEN,)
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        shapes |= {bias: (32, HEADS), f"{side}.final_layer_norm.weight": (HIDDEN,)}
    config = {"model_type": "t5", "d_model": HIDDEN, "num_heads": HEADS, "vocab_size": WORDS,
              "feed_forward_proj": "relu", "dropout_rate": 0.0, "tie_word_embeddings": True}  # fmt: skip
    tensors = {
        name: TensorInfo(name=name, dtype="F32", shape=shape, file="x", start=0, end=4 * math.prod(shape))
        for name, shape in shapes.items()
    }
    return base_shape(config, tensors, "t5", task="SEQ_2_SEQ_LM")


def test_memory_by_hand() -> None:
    shape = t5()
    memory = estimate_memory(shape, adapted(shape, ["q", "v"]), CPU, [BATCH])
    norm, attention, square = 4 * HIDDEN + 8, 4 * HIDDEN * 4 + 4 * HEADS, 4 * HEADS
    # A norm's input, queries, keys, values and output with a number a head, what q and v read, and their ranks.
    own = norm + attention + 4 * (HIDDEN + 2 * 8)
    mlp = norm + 4 * INNER
    source, target = ROWS * SOURCE, ROWS * TARGET
    encoder = source * (own + mlp) + square * source * SOURCE
    # Attention to the encoder: its keys and values are the source's, as is what v reads, once in all layers.
    cross = target * (norm + 4 * HIDDEN * 2 + 4 * HEADS + 4 * (HIDDEN + 8)) + source * 4 * (2 * HIDDEN + 8)
    decoder = target * (own + mlp) + square * TARGET * TARGET + cross + square * target * SOURCE
    rest = (source + target) * norm + source * 4 * HIDDEN
    assert memory.activations == LAYERS * (encoder + decoder) + rest
    assert memory.heap == round(HEAP_SHARE * memory.activations)
    assert memory.logits == 3 * 4 * target * WORDS
    layer = 4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER
    norms = (5 * LAYERS + 2) * HIDDEN
    parameters = WORDS * HIDDEN + 2 * 32 * HEADS + norms + LAYERS * (2 * layer + 4 * HIDDEN * HIDDEN)
    assert (shape.parameters, shape.depth) == (parameters, 2 * LAYERS)


def test_operations_by_hand() -> None:
    shape = t5()
    adapter, source, target = adapted(shape, ["q", "v"]), ROWS * SOURCE, ROWS * TARGET
    square, layer = HIDDEN * HIDDEN, 4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER
    products = source * layer + target * layer + 2 * square * (source + target)
    pairs = HIDDEN * (source * SOURCE + target * TARGET / 2 + target * SOURCE)
    head = HIDDEN * WORDS * target
    assert forward_operations(shape, BATCH) == LAYERS * (2 * products + 4 * pairs) + 2 * head
    trained = 8 * 2 * HIDDEN * (2 * source + 2 * target + target + source)
    expected = LAYERS * (4 * products + 14 * pairs + 6 * trained) + 4 * head
    assert step_operations(shape, adapter, CPU, BATCH) == expected
    again = step_operations(shape, adapter, replace(CPU, gradient_checkpointing=True), BATCH)
    assert again == expected + LAYERS * (2 * products + 4 * pairs)


def linear_names(shape: BaseShape) -> list[str]:
    assert shape.all_linear is not None
    return sorted({name.rpartition(".")[2] for name in shape.all_linear})


@pytest.mark.engine
@pytest.mark.parametrize("everything", [False, True], ids=["q and v", "all"])
@pytest.mark.parametrize(("model_type", "more"), ARCHITECTURES, ids=str)
def test_activations_are_what_autograd_keeps(model_type: str, more: dict[str, Any], everything: bool) -> None:
    model = build(model_type, **more)
    shape = shape_of(model)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    of_t5 = model_type in ("t5", "mt5", "umt5")
    names = linear_names(shape) if everything else ["q", "v"] if of_t5 else ["q_proj", "v_proj"]
    estimated = activation_bytes(shape, adapted(shape, names), CPU, BATCH)
    assert estimated == pytest.approx(kept_by_autograd(model, names), rel=0.05)


@pytest.mark.engine
@pytest.mark.parametrize(("model_type", "names"), [("t5", ["q", "v"]), ("bart", ["q_proj", "v_proj", "fc1"])])
def test_activations_in_16_bits(model_type: str, names: list[str]) -> None:
    model = build(model_type)
    shape = shape_of(model)
    estimated = activation_bytes(shape, adapted(shape, names), replace(CPU, dtype="bfloat16"), BATCH)
    measured = kept_by_autograd(model, names, "bfloat16")
    assert estimated == pytest.approx(measured, rel=0.2)


@pytest.mark.engine
@pytest.mark.parametrize(
    "targets",
    [
        r".*decoder.*\.(q_proj|v_proj)",
        r".*encoder\.layers\.2\..*\.q_proj",
    ],
)
def test_below_what_is_trained_nothing_is_kept(targets: str) -> None:
    model = build("bart")
    shape = shape_of(model)
    estimated = activation_bytes(shape, adapted(shape, targets), CPU, BATCH)
    measured = kept_by_autograd(model, targets)
    assert estimated == pytest.approx(measured, rel=0.15)
