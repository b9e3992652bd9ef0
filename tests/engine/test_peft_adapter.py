"""One adapter of another method, loaded over its base: merged or before it, the outputs are plain PEFT's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.catalog.combinations import rule_of
from adapterhub.catalog.methods import METHODS
from adapterhub.engine import adapters
from adapterhub.engine.generate import encode_prompt, generate
from adapterhub.engine.stack import load_stack
from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.package import open_package
from adapterhub.spec.generation import Generation
from adapterhub.spec.stack import Parameters
from tests.engine.peft_reference import logits_of, plain_model
from tests.engine.test_methods import CASES, attach
from tests.engine.tiny import load, record
from tests.factory import edit_json, edit_tensors, read_tensors, tiny_llama

pytestmark = pytest.mark.engine

IDS = [72, 101, 108, 108, 111, 32, 116, 104, 101, 114, 101]
OTHERS = [case for case, (method, _) in CASES.items() if METHODS[method].peft_type != "LORA"]
# What PEFT cannot write into weights: prompts, networks beside layers, biases where there are none.
ACTIVE = [case for case in OTHERS if not METHODS[CASES[case][0]].foldable]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


def adapter(folder: Path, case: str, out: Path) -> Path:
    """Save an adapter whose every trained value is moved off its beginning."""
    import torch

    model = attach(load(folder), case)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    out.mkdir(parents=True, exist_ok=True)
    adapters.save(model.eval(), out, base_id="tiny-llama", base_revision=None)
    return out


def loaded(folder: Path, out: Path, weight: float = 1.0, **options: Any) -> Any:
    return load_stack(
        record(folder), [(open_package(out), weight)], device="cpu", **{"dtype": "float32", "threads": 1, **options}
    )


def peft_logits(folder: Path, out: Path) -> Any:
    """Return the logits of plain PEFT at the text's positions."""
    from peft import PeftModel

    return logits_of(PeftModel.from_pretrained(plain_model(folder), str(out)).eval(), IDS)[-len(IDS) :]


@pytest.mark.parametrize("case", OTHERS)
def test_the_outputs_are_plain_peft_s(folder: Path, tmp_path: Path, case: str) -> None:
    import torch
    from peft import PeftModel

    out = adapter(folder, case, tmp_path)
    model = loaded(folder, out).model
    ours, theirs, bare = (
        logits_of(model, IDS)[-len(IDS) :],
        peft_logits(folder, out),
        logits_of(plain_model(folder), IDS),
    )
    assert torch.allclose(ours, theirs, atol=2e-5, rtol=1e-5)
    assert (theirs - bare).abs().max() > 1e-3
    assert isinstance(model, PeftModel) == (case in ACTIVE)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("case", ["ia3", "oft", "trainable_tokens", "prefix_tuning"])
def test_a_16_bit_base_with_tied_embeddings(tmp_path: Path, case: str) -> None:
    import torch

    base = tiny_llama(tmp_path / "base", tie=True, dtype="bfloat16")
    out = adapter(base, case, tmp_path / "adapter")
    model = loaded(base, out, dtype="bfloat16").model
    ours, theirs = logits_of(model, IDS)[-len(IDS) :], peft_logits(base, out)
    assert next(model.parameters()).dtype == torch.bfloat16
    assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max()


@pytest.mark.parametrize(
    "case", ["prompt_tuning", "prefix_tuning", "ia3", "cartridge", "adaption_prompt", "beft", "shadow"]
)
def test_text_is_the_likeliest_token_after_token(folder: Path, tmp_path: Path, case: str) -> None:
    """With the cache and PEFT's own preparation of its inputs, the answer is that of passes without either."""
    ready = loaded(folder, adapter(folder, case, tmp_path))
    prompt = encode_prompt(ready.tokenizer, "hello", raw=True)
    ids = list(prompt.ids)
    for _ in range(8):
        ids.append(int(logits_of(ready.model, ids)[-1].argmax()))
    written: list[str] = []
    answer = generate(ready.model, ready.tokenizer, prompt, Generation(max_new_tokens=8), write=written.append)
    expected = ids[len(prompt.ids) :]
    if ready.tokenizer.eos_token_id not in expected:
        assert answer.new_tokens == 8
        assert answer.text == ready.tokenizer.decode(expected, skip_special_tokens=True)
    assert "".join(written) == answer.text


def test_a_trained_prompt_takes_room_in_the_context(folder: Path, tmp_path: Path) -> None:
    ready = loaded(folder, adapter(folder, "prompt_tuning", tmp_path))
    prompt = encode_prompt(ready.tokenizer, "x" * 505, raw=True)
    with pytest.raises(UsageError, match="508") as caught:
        generate(ready.model, ready.tokenizer, prompt, Generation(max_new_tokens=4))
    assert caught.value.hint == "--max-new-tokens 3"
    assert generate(ready.model, ready.tokenizer, prompt, Generation(max_new_tokens=3)).new_tokens <= 3


@pytest.mark.parametrize("case", ["ia3", "vera", "ln_tuning", "prompt_tuning", "adalora", "shadow", "shira"])
def test_a_base_with_other_layers_or_widths_is_refused(folder: Path, tmp_path: Path, case: str) -> None:
    out = adapter(folder, case, tmp_path / "adapter")
    for name, base in {
        "wide": tiny_llama(tmp_path / "wide", hidden=64),
        "shallow": tiny_llama(tmp_path / "shallow", layers=1),
    }.items():
        if case == "prompt_tuning" and name == "shallow":
            continue  # a prompt of its width fits any depth
        with pytest.raises(IncompatibleError, match="does not fit") as caught:
            loaded(base, out)
        assert caught.value.details


def test_a_tensor_too_few_or_too_many_is_refused(folder: Path, tmp_path: Path) -> None:
    out = adapter(folder, "ia3", tmp_path)
    weights = out / "adapter_model.safetensors"
    names = sorted(read_tensors(weights))
    edit_tensors(weights, lambda tensors: {name: tensors[name] for name in names[1:]})
    with pytest.raises(IncompatibleError) as caught:
        loaded(folder, out)
    assert caught.value.details == (f"{names[0]}: is not among the weights",)
    edit_tensors(weights, lambda tensors: tensors | {names[0]: tensors[names[1]], "stray": tensors[names[1]]})
    with pytest.raises(IncompatibleError) as caught:
        loaded(folder, out)
    assert "stray: the base has no place for it" in caught.value.details


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("vera", "r"),
        ("adalora", "init_r"),
        ("prompt_tuning", "num_virtual_tokens"),
        ("unilora", "r"),
        ("unilora", "theta_d_length"),
        ("vblora", "num_vectors"),
        ("tinylora", "u"),
        ("waveft", "n_frequency"),
        ("adaption_prompt", "adapter_len"),
        ("shadow", "shadow_num_hidden_layers"),
        ("peanut", "depth"),
    ],
)
def test_a_size_that_no_tensor_has_is_refused_before_it_is_taken(
    folder: Path, tmp_path: Path, case: str, name: str
) -> None:
    out = adapter(folder, case, tmp_path)
    edit_json(out / "adapter_config.json", **{name: 2**40})
    with pytest.raises(IncompatibleError, match="does not fit") as caught:
        loaded(folder, out)
    assert name in caught.value.details[0]


def test_values_that_are_not_finite_are_refused(folder: Path, tmp_path: Path) -> None:
    out = adapter(folder, "oft", tmp_path)
    edit_tensors(out / "adapter_model.safetensors", lambda tensors: {n: t * float("nan") for n, t in tensors.items()})
    with pytest.raises(IncompatibleError, match="NaN"):
        loaded(folder, out)


@pytest.mark.parametrize(
    "change",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "os"},
        {"layer_replication": [[0, 2]]},
        {"use_dora": True},
        {"new_setting": 7},
    ],
)
def test_a_setting_that_no_row_offers_is_refused(folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    out = adapter(folder, "adalora", tmp_path)
    edit_json(out / "adapter_config.json", **change)
    with pytest.raises(IncompatibleError, match="not known of adalora") as caught:
        loaded(folder, out)
    assert {line.partition(":")[0] for line in caught.value.details} == set(change)


def test_a_weight_or_a_combination_without_a_meaning_and_unknown_methods_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    out = adapter(folder, "ia3", tmp_path / "ia3")
    with pytest.raises(IncompatibleError, match=r"hra makes a weight of the weight it finds.*no coefficient but 1"):
        loaded(folder, adapter(folder, "hra", tmp_path / "hra"), weight=0.5)
    with pytest.raises(IncompatibleError, match="ia3 is no sum of low-rank factors, which svd"):
        loaded(folder, out, rule=rule_of("svd", Parameters(rank=2)))
    edit_json(out / "adapter_config.json", peft_type="XLORA")
    with pytest.raises(IncompatibleError, match="XLORA cannot be run yet"):
        loaded(folder, out)
