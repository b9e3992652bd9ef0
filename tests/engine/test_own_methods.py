"""Bottleneck adapters, BitFit and fine-tuning of the base, against the equations of their papers written out."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapterhub.catalog.adapter_places import PLACES
from adapterhub.catalog.methods import METHODS, check_hyperparameters
from adapterhub.engine import adapters
from adapterhub.engine.base import LoadedBase
from adapterhub.engine.generate import encode_prompt, generate
from adapterhub.engine.stack import load_stack
from adapterhub.errors import IncompatibleError, InvalidFileError
from adapterhub.package import open_package
from adapterhub.spec.generation import Generation
from tests.catalog.family_configs import CONFIGS, tiny_config
from tests.engine.tiny import Recorder, examples, load, record
from tests.factory import edit_json, edit_tensors, read_tensors, tiny_gpt2, tiny_llama

pytestmark = pytest.mark.engine

IDS = [72, 101, 108, 108, 111, 32, 116, 104, 101, 114, 101]
HOULSBY = {"mh_adapter": True, "non_linearity": "swish", "reduction_factor": 8}
PFEIFFER = {"original_ln_before": True, "reduction_factor": 8}
PARALLEL = {"is_parallel": True, "reduction_factor": 2, "scaling": 4.0, "init_weights": "mam_adapter"}
NORMED = {"ln_before": True, "ln_after": True, "scaling": "channel", "non_linearity": "gelu_new"}
# What a tiny config needs besides, to be run: the width that positions turn.
RUNNABLE = {"deepseek_v3": {"head_dim": 4}}
PRESETS = {"houlsby": HOULSBY, "pfeiffer": PFEIFFER, "parallel": PARALLEL, "normed": NORMED}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gpt2(tmp_path_factory.mktemp("base") / "tiny")


def filled(method: str, **given: Any) -> Any:
    return check_hyperparameters(METHODS[method], given, where="test")


def attach(base: LoadedBase, method: str, *, task: str = "CAUSAL_LM", seed: int = 0, **given: Any) -> Any:
    return adapters.attach(base, filled(method, **given), task=task, seed=seed, method=method)


def moved(model: Any) -> Any:
    """Move everything trained off its beginning, and return the model in evaluation mode."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def built(model_type: str, auto_class: str = "AutoModel", **given: Any) -> LoadedBase:
    """Return a model of random weights from a small config, without a tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = tiny_config(model_type)
    config.update(given)
    model = getattr(transformers, auto_class).from_config(config).requires_grad_(False).eval()
    return LoadedBase(model=model, tokenizer=None, device=torch.device("cpu"), dtype=torch.float32)  # type: ignore[arg-type]


def output(model: Any) -> Any:
    """Return the last hidden states, of a decoder where there are two."""
    import torch

    config = model.base_model.config if hasattr(model, "active_peft_config") else model.config
    ids = torch.tensor([IDS]) % 30 + 2
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if config.is_encoder_decoder else {})}
    return model(**inputs)[0]


# --- bottlenecks ------------------------------------------------------------------------------------------------------


def bottleneck(layer: Any, slot: str, x: Any, given: dict[str, Any]) -> Any:
    """Return scaling · W_up·f(W_down·x) out of a layer's parameters, with the norms that a setting asks for."""
    import torch
    from torch.nn import functional as f

    named = {name: p for name, p in layer.named_parameters() if name.startswith(f"{slot}.")}
    weight = {name.removeprefix(f"{slot}."): p for name, p in named.items()}
    if given.get("ln_before"):
        x = f.layer_norm(x, x.shape[-1:], weight["adapter_norm_before.weight"], weight["adapter_norm_before.bias"])
    x = x @ weight["adapter_down.weight"].T + weight["adapter_down.bias"]
    way = given.get("non_linearity", "relu")
    x = x.clamp(min=0) if way == "relu" else x * torch.sigmoid(x) if way == "swish" else f.gelu(x, approximate="tanh")
    x = x @ weight["adapter_up.weight"].T + weight["adapter_up.bias"]
    x = x * (weight["scaling"] if given.get("scaling") == "channel" else given.get("scaling", 1.0))
    if given.get("ln_after"):
        x = f.layer_norm(x, x.shape[-1:], weight["adapter_norm_after.weight"], weight["adapter_norm_after.bias"])
    return x


def gpt2_by_hand(model: Any, given: dict[str, Any]) -> Any:
    """Run a GPT-2 whose norms come first layer by layer, its adapters by their equations."""
    import torch

    body, ids = model.transformer, torch.tensor([IDS])
    h = body.wte(ids) + body.wpe(torch.arange(len(IDS)))
    mask = torch.full((len(IDS), len(IDS)), float("-inf")).triu(1)
    for layer in body.h:
        q, k, v = (layer.ln_1(h) @ layer.attn.c_attn.weight + layer.attn.c_attn.bias).split(h.shape[-1], dim=-1)
        q, k, v = (x.view(1, len(IDS), 4, -1).transpose(1, 2) for x in (q, k, v))
        scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + mask).softmax(-1)
        a = (scores @ v).transpose(1, 2).reshape(h.shape) @ layer.attn.c_proj.weight + layer.attn.c_proj.bias
        if given.get("mh_adapter"):
            a = a + bottleneck(layer, "mh_adapter", a, given)
        h = h + a
        x = layer.ln_2(h)
        inner = torch.nn.functional.gelu(x @ layer.mlp.c_fc.weight + layer.mlp.c_fc.bias, approximate="tanh")
        m = inner @ layer.mlp.c_proj.weight + layer.mlp.c_proj.bias
        if given.get("original_ln_before"):
            h = h + m
            h = h + bottleneck(layer, "output_adapter", h, given)
        else:
            h = h + m + bottleneck(layer, "output_adapter", x if given.get("is_parallel") else m, given)
    return body.ln_f(h) @ body.wte.weight.T


@pytest.mark.parametrize("preset", PRESETS)
def test_a_decoder_computes_what_the_equations_say(gpt2: Path, preset: str) -> None:
    import torch

    base = load(gpt2)
    bare = base.model(torch.tensor([IDS])).logits
    model = moved(attach(base, "bottleneck", **PRESETS[preset]))
    ours = model(input_ids=torch.tensor([IDS])).logits
    assert torch.allclose(ours, gpt2_by_hand(model.get_base_model(), PRESETS[preset]), atol=2e-4, rtol=1e-4)
    assert (ours - bare).abs().max() > 1e-2


@pytest.mark.parametrize("preset", PRESETS)
def test_an_encoder_whose_norms_come_last(preset: str) -> None:
    import torch

    given = PRESETS[preset]
    model = moved(attach(built("bert", hidden_dropout_prob=0.0), "bottleneck", **given))
    base = model.get_base_model()
    h = base.embeddings(torch.tensor([IDS]) % 30 + 2)
    for layer in base.encoder.layer:
        context = layer.attention.self(h)[0]
        out = layer.attention.output
        a = context @ out.dense.weight.T + out.dense.bias
        if given.get("mh_adapter"):
            a = a + bottleneck(layer, "mh_adapter", a, given)
        x = out.LayerNorm(a + h)
        inner = torch.nn.functional.gelu(x @ layer.intermediate.dense.weight.T + layer.intermediate.dense.bias)
        m = inner @ layer.output.dense.weight.T + layer.output.dense.bias
        norm = torch.nn.functional.layer_norm, layer.output.LayerNorm
        u = m + x
        if given.get("original_ln_before"):
            u = u + bottleneck(
                layer, "output_adapter", norm[0](u, (32,), norm[1].weight, norm[1].bias, norm[1].eps), given
            )
        else:
            u = u + bottleneck(layer, "output_adapter", x if given.get("is_parallel") else m, given)
        h = norm[0](u, (32,), norm[1].weight, norm[1].bias, norm[1].eps)
    assert torch.allclose(output(model), h, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", [name for name in CONFIGS if name != "mamba"])
def test_every_family_has_its_places(model_type: str) -> None:
    """Each bottleneck acts and learns; one that adds nothing leaves the base's outputs as they were."""
    import torch

    rows = PLACES[model_type.partition("/")[0]]
    cross = len(rows) > 1
    ways: list[dict[str, Any]] = [
        {"mh_adapter": True, "cross_adapter": cross, "is_parallel": True},
        {"mh_adapter": True, "cross_adapter": cross},
        {"original_ln_before": True},
    ]
    # Of model types that share a row, one goes all ways.
    alone = model_type == next(name for name, row in PLACES.items() if row == rows)
    for given in ways if alone else ways[:1]:
        base = built(model_type, **RUNNABLE.get(model_type, {}))
        bare = output(base.model)
        model = attach(base, "bottleneck", init_weights="mam_adapter", reduction_factor=4, **given).eval()
        assert torch.equal(output(model), bare)
        wide = output(moved(model))
        assert (wide - bare).abs().max() > 1e-3
        wide.square().sum().backward()
        idle = [name for name, p in model.trained.items() if p.grad is None or not p.grad.abs().max() > 0]
        assert not idle
        layers = 1 if model_type == "albert" else 2
        slots = sum(bool(given.get(slot)) for slot in ("mh_adapter",)) + 1
        count = layers * slots * len(rows) + (layers if given.get("cross_adapter") else 0)
        assert len(model.trained) == 4 * count
        assert all(not p.requires_grad for name, p in model.named_parameters() if "_adapter." not in name)


def test_what_the_papers_do_not_have_is_refused(gpt2: Path) -> None:
    for given, word in (
        ({"original_ln_before": True, "mh_adapter": True}, "output_adapter alone, not mh_adapter"),
        ({"original_ln_before": True, "is_parallel": True}, "not is_parallel"),
        ({"output_adapter": False}, "nothing to train"),
        ({"scaling": "lerned"}, "learned or channel"),
        ({"leave_out": 3}, "list of layers"),
        ({"reduction_factor": 0}, "at least 0.01"),
        ({"reductionfactor": 2}, "did you mean 'reduction_factor'"),
    ):
        with pytest.raises(InvalidFileError, match=word):
            filled("bottleneck", **given)
    base = load(gpt2)
    for given, word in (
        ({"leave_out": [2]}, "2 layers, none is 2"),
        ({"leave_out": [0, 1]}, "every layer"),
        ({"cross_adapter": True, "output_adapter": False}, "no layer of the base model has a place"),
        ({"modules_to_save": ["lm_head"]}, "input embedding too"),
        ({"modules_to_save": ["scoree"]}, "no module of the base model is named scoree"),
    ):
        with pytest.raises(IncompatibleError, match=word):
            attach(base, "bottleneck", **given)
    with pytest.raises(IncompatibleError, match="do_layer_norm_before"):
        attach(built("opt", do_layer_norm_before=False), "bottleneck", **PFEIFFER)
    attach(base, "bottleneck", leave_out=[0])
    with pytest.raises(IncompatibleError, match="there already"):
        attach(base, "bottleneck")


def test_the_seed_decides_the_first_values(gpt2: Path) -> None:
    import torch

    for way, spread in (("bert", 0.02), ("houlsby", 0.01)):
        first, second, other = (
            attach(load(gpt2), "bottleneck", reduction_factor=0.5, init_weights=way, seed=seed).state()
            for seed in (5, 5, 6)
        )
        assert all(torch.equal(first[name], second[name]) for name in first)
        weight = "base_model.model.transformer.h.0.output_adapter.adapter_down.weight"
        assert not torch.equal(first[weight], other[weight])
        assert weight in first and first[weight].shape == (64, 32)
        assert first[weight].std().item() == pytest.approx(spread, rel=0.15)
        assert first[weight].abs().max() <= (2 * spread if way == "houlsby" else 1)


@pytest.mark.parametrize(("method", "given"), [("bottleneck", {**HOULSBY, "dropout": 0.1}), ("bitfit", {})])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_lowers_the_loss(gpt2: Path, tmp_path: Path, method: str, given: Any, checkpointing: bool) -> None:
    import torch

    from adapterhub.engine.train import train
    from adapterhub.spec.recipe import TrainingSpec

    base = load(gpt2)
    before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
    model = attach(base, method, **given)
    spec = TrainingSpec(
        learning_rate=3e-2,
        max_steps=6,
        per_device_train_batch_size=7,
        logging_steps=1,
        gradient_checkpointing=checkpointing,
    )
    rows = list(examples(base))
    train(model, base, rows, spec, pad_id=0, log=tmp_path / "log.jsonl", progress=Recorder.new())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.95 * lines[0]["loss"]
    names = dict(base.model.named_parameters())
    for name, values in before.items():
        name = name if name in names else f"{name.removesuffix('bias')}parametrizations.bias.original"
        assert torch.equal(names[name], values)


def test_checkpointing_changes_no_gradient(llama: Path) -> None:
    import torch

    found = []
    for checkpointing in (False, True):
        model = moved(attach(load(llama), "bottleneck", mh_adapter=True, is_parallel=True)).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=torch.tensor([IDS]), use_cache=False).logits.square().mean().backward()
        found.append({name: p.grad for name, p in model.trained.items()})
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-6) for name in found[0])


def test_a_copy_of_a_model_has_an_adapter_of_its_own(llama: Path) -> None:
    import torch

    for method, given in (("bottleneck", HOULSBY), ("bottleneck", PARALLEL), ("bitfit", {})):
        base = load(llama) if method == "bottleneck" else built("bert")
        model = moved(attach(base, method, **given))
        expected, copied = output(model), copy.deepcopy(model)
        assert torch.equal(output(copied), expected)
        with torch.no_grad():
            for parameter in copied.trained.values():
                parameter.add_(1.0)
        assert torch.equal(output(model), expected)
        assert not torch.equal(output(copied), expected)


@pytest.mark.parametrize("preset", ["houlsby", "pfeiffer", "parallel"])
def test_a_package_runs_as_it_was_trained(llama: Path, tmp_path: Path, preset: str) -> None:
    """In a process of its own its outputs are the same; with the cache, text is the likeliest token after token."""
    import torch

    model = moved(attach(load(llama), "bottleneck", **PRESETS[preset]))
    adapters.save(model, tmp_path, base_id="tiny-llama", base_revision=None)
    expected = model(input_ids=torch.tensor([IDS])).logits
    if preset == "houlsby":
        assert torch.equal(fresh_logits(llama, tmp_path), expected)
    ready = load_stack(record(llama), [(open_package(tmp_path), 1.0)], device="cpu", dtype="float32", threads=1)
    assert torch.equal(ready.model(torch.tensor([IDS])).logits, expected)
    assert not ready.model.training and not any(p.requires_grad for p in ready.model.parameters())
    prompt = encode_prompt(ready.tokenizer, "hello", raw=True)
    ids = list(prompt.ids)
    for _ in range(8):
        ids.append(int(ready.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    answer = generate(ready.model, ready.tokenizer, prompt, Generation(max_new_tokens=8))
    assert answer.text == ready.tokenizer.decode(ids[len(prompt.ids) :], skip_special_tokens=True)


def fresh_logits(base: Path, adapter: Path) -> Any:
    """Return the logits of a package loaded in a process of its own."""
    import torch

    body = (
        "import sys, torch; from pathlib import Path\n"
        "from tests.engine.tiny import record; from adapterhub.engine.stack import load_stack\n"
        "from adapterhub.package import open_package\n"
        "ready = load_stack(record(Path(sys.argv[1])), [(open_package(Path(sys.argv[2])), 1.0)], device='cpu',"
        " dtype='float32', threads=1)\n"
        f"torch.save(ready.model(torch.tensor([{IDS}])).logits.detach(), sys.argv[2] + '/logits.pt')\n"
    )
    subprocess.run([sys.executable, "-c", body, str(base), str(adapter)], check=True, timeout=120)
    return torch.load(adapter / "logits.pt")


def test_a_16_bit_base_keeps_its_dtype(tmp_path: Path) -> None:
    import torch

    base = tiny_llama(tmp_path / "base", dtype="bfloat16")
    loaded = load(base, torch.bfloat16)
    model = moved(attach(loaded, "bottleneck", **HOULSBY))
    assert {p.dtype for p in model.trained.values()} == {torch.float32}
    logits = model(input_ids=torch.tensor([IDS])).logits
    assert logits.dtype == torch.bfloat16
    exact = moved(attach(load(base), "bottleneck", **HOULSBY))(input_ids=torch.tensor([IDS])).logits
    assert (logits - exact).abs().max() < 0.05 * exact.abs().max()


def test_peft_refuses_what_it_does_not_know(gpt2: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    for method in ("bottleneck", "bitfit"):
        out = tmp_path / method
        out.mkdir()
        adapters.save(attach(load(gpt2), method), out, base_id="tiny", base_revision=None)
        with pytest.raises(KeyError, match=method.upper()):
            PeftModel.from_pretrained(load(gpt2).model, str(out))


def test_a_package_that_does_not_fit_is_refused(llama: Path, tmp_path: Path) -> None:
    weights = tmp_path / "adapter_model.safetensors"
    adapters.save(attach(load(llama), "bottleneck"), tmp_path, base_id="tiny-llama", base_revision=None)

    def run(base: Path = llama) -> Any:
        return load_stack(record(base), [(open_package(tmp_path), 1.0)], device="cpu", dtype="float32", threads=1)

    def refused(word: str, base: Path = llama, error: Any = IncompatibleError) -> None:
        with pytest.raises(error) as caught:
            run(base)
        assert word in f"{caught.value} {caught.value.details}"

    refused("is [2, 32], [4, 64] on this base", tiny_llama(tmp_path / "wide", hidden=64))
    refused("is not among the weights", tiny_llama(tmp_path / "deep", layers=3))
    refused("has no place for it", tiny_llama(tmp_path / "shallow", layers=1))
    names = sorted(read_tensors(weights))
    kept = weights.read_bytes()
    edit_tensors(weights, lambda tensors: {name: tensors[name] for name in names[1:]})
    refused(f"{names[0]}: is not among the weights")
    edit_tensors(weights, lambda tensors: tensors | {names[0]: tensors[names[1]] * float("nan")})
    refused("NaN")
    weights.write_bytes(kept)
    config = tmp_path / "adapter_config.json"
    edit_json(config, use_gating=True)
    refused("use_gating: True")
    edit_json(config, use_gating=False, reduction_factor=0.01)
    refused("[3199, 32] on this base")
    edit_json(config, reduction_factor="16")
    refused("expected a number", error=InvalidFileError)


# --- BitFit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["gpt2", "bert", "opt"])
def test_bitfit_trains_the_biases_as_torch_does(model_type: str) -> None:
    """The same steps on a plain model whose biases alone take gradients end at the same biases."""
    import torch

    base, plain = built(model_type), built(model_type).model
    model = attach(base, "bitfit")
    start = {name: p.detach().clone() for name, p in plain.named_parameters()}
    theirs = {name: p.requires_grad_(True) for name, p in plain.named_parameters() if name.endswith(".bias")}
    assert set(model.trained) == {f"base_model.model.{name}_delta" for name in theirs}
    for net, parameters in ((model, model.trained.values()), (plain, theirs.values())):
        optimizer = torch.optim.SGD(list(parameters), lr=0.05, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            (output(net) - 1).square().mean().backward()
            optimizer.step()
    assert torch.allclose(output(model), output(plain), atol=1e-5)
    for name, bias in theirs.items():
        delta = model.state()[f"base_model.model.{name}_delta"]
        assert torch.allclose(delta, bias - start[name], atol=1e-5)
    assert max((bias - start[name]).abs().max().item() for name, bias in theirs.items()) > 1e-2


def test_bitfit_of_named_modules_and_of_none() -> None:
    base = built("bert")
    model = attach(base, "bitfit", target_modules=["query", "intermediate.dense"])
    assert len(model.trained) == 4
    assert all(".query.bias_delta" in name or "intermediate.dense" in name for name in model.trained)
    with pytest.raises(IncompatibleError, match="named qury") as caught:
        attach(built("bert"), "bitfit", target_modules=["qury"])
    assert "query" in str(caught.value.hint)
    with pytest.raises(IncompatibleError, match=r"\(llama\) has none"):
        attach(built("llama"), "bitfit")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_biases_are_folded_into_the_base(tmp_path: Path, dtype: str) -> None:
    import torch

    base = tiny_gpt2(tmp_path / "base", dtype=dtype)
    before = load(base, getattr(torch, dtype)).model.state_dict()
    model = moved(attach(load(base, getattr(torch, dtype)), "bitfit"))
    adapters.save(model, tmp_path, base_id="tiny", base_revision=None)
    ready = load_stack(record(base), [(open_package(tmp_path), 1.0)], device="cpu", dtype=dtype, threads=1).model
    after = ready.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        delta = model.state().get(f"base_model.model.{name}_delta")
        expected = before[name] if delta is None else (before[name].float() + delta).to(before[name].dtype)
        assert torch.equal(tensor, expected), name
    assert torch.equal(ready(torch.tensor([IDS])).logits, model(input_ids=torch.tensor([IDS])).logits)


def test_tied_biases_stay_tied_and_are_saved_once() -> None:
    import torch

    base = built("bert", "AutoModelForMaskedLM")
    model = moved(attach(base, "bitfit"))
    heads = [name for name in model.trained if ".predictions." in name and "transform" not in name]
    assert heads == ["base_model.model.cls.predictions.bias_delta"]
    head = base.model.cls.predictions
    assert torch.equal(head.bias, head.decoder.bias)
    from adapterhub.engine.methods import bitfit

    expected = output(model)
    bitfit.fold(base.model)
    assert head.bias is head.decoder.bias
    assert torch.allclose(output(base.model), expected, atol=1e-5)


@pytest.mark.parametrize("method", ["bottleneck", "bitfit"])
def test_a_classifier_s_head_is_trained_and_saved(tmp_path: Path, method: str) -> None:
    import torch
    from safetensors.torch import load_file

    from adapterhub.engine.methods import own

    model = moved(attach(built("bert", "AutoModelForSequenceClassification", num_labels=3), method, task="SEQ_CLS"))
    config = adapters.save(model, tmp_path, base_id="tiny", base_revision=None)
    state = load_file(tmp_path / "adapter_model.safetensors")
    assert state["base_model.model.classifier.weight"].shape == (3, 32)
    assert "base_model.model.classifier.bias_delta" not in state
    again = built("bert", "AutoModelForSequenceClassification", num_labels=3).model
    own.put_on(again, config, state, method=METHODS[method], task="SEQ_CLS", where="test")  # type: ignore[arg-type]
    assert torch.allclose(output(again), output(model), atol=1e-6)


# --- the base itself --------------------------------------------------------------------------------------------------


def test_fine_tuning_of_all_or_of_the_last_layers(llama: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from adapterhub.engine.train import train
    from adapterhub.spec.recipe import TrainingSpec

    spec = TrainingSpec(learning_rate=1e-2, max_steps=3, per_device_train_batch_size=4)
    for method, given in (("full", {}), ("partial", {"top_k_layers": 1})):
        base, out = load(llama, torch.bfloat16 if method == "full" else None), tmp_path / method
        out.mkdir()
        before = {name: p.detach().float().clone() for name, p in base.model.named_parameters()}
        model = attach(base, method, **given)
        assert {p.dtype for p in model.trained.values()} == {torch.float32}
        train(model, base, list(examples(base)), spec, pad_id=0, log=tmp_path / "log", progress=Recorder.new())
        config = adapters.save(model, out, base_id="tiny-llama", base_revision=None)
        assert config["model_type"] == "llama" and str(tmp_path) not in json.dumps(config)
        again = AutoModelForCausalLM.from_pretrained(str(out), dtype=torch.float32)
        after = dict(again.named_parameters())
        changed = {name for name in before if not torch.equal(after[name], before[name])}
        if method == "full":
            assert changed == set(before)
        else:
            top = {name for name in before if name.startswith("model.layers.1.")}
            assert changed == top | {"model.norm.weight", "lm_head.weight"}
        # It is a base like any other: with its tokenizer, and readable by its headers.
        assert load(out).tokenizer.chat_template == base.tokenizer.chat_template


@pytest.mark.parametrize(
    ("model_type", "trained", "frozen"),
    [
        ("gpt2", {"ln_f.weight", "h.1.ln_1.weight"}, {"wte.weight", "wpe.weight", "h.0.ln_1.weight"}),
        ("bert", {"pooler.dense.weight", "encoder.layer.1.output.dense.bias"}, {"embeddings.LayerNorm.weight"}),
        ("bloom", {"ln_f.weight"}, {"word_embeddings_layernorm.weight", "word_embeddings.weight"}),
        ("t5", {"encoder.final_layer_norm.weight", "decoder.block.1.layer.2.layer_norm.weight"}, {"shared.weight"}),
        ("bart", {"decoder.layers.1.fc1.bias"}, {"encoder.layernorm_embedding.weight", "encoder.layers.0.fc1.bias"}),
    ],
)
def test_what_the_last_layers_are(model_type: str, trained: set[str], frozen: set[str]) -> None:
    model = attach(built(model_type), "partial", top_k_layers=1)
    assert trained <= set(model.trained)
    assert not frozen & set(model.trained)
    assert {name for name, p in model.base_model.named_parameters() if p.requires_grad} == set(model.trained)
    with pytest.raises(IncompatibleError, match="has 2 layers"):
        attach(built(model_type), "partial", top_k_layers=3)
