"""Every method merged by itself, tensor by tensor against PEFT's own merge_and_unload of the same file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.algebra.fuse import FuseReport, fuse, plan_fuse
from adapterhub.algebra.read_alone import read_alone, read_stack
from adapterhub.catalog.combinations import rule_of
from adapterhub.errors import IncompatibleError, InvalidFileError
from adapterhub.package import open_package
from tests.factory import edit_json, edit_tensors, read_tensors, tiny_gpt2, tiny_llama

pytestmark = pytest.mark.engine

LINEAR = {"llama": ["q_proj", "k_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"]}
INPUT = {"llama": ["down_proj"], "gpt2": ["mlp.c_proj"]}
EMBEDDING = {"llama": "embed_tokens", "gpt2": "wte"}


def lora(family: str, **how: Any) -> Any:
    from peft import LoraConfig

    given = {"r": 3, "lora_alpha": 7, "target_modules": LINEAR[family], **how}
    return LoraConfig(task_type="CAUSAL_LM", **given)


def _other(name: str, **how: Any) -> Callable[[str], Any]:
    def make(family: str) -> Any:
        import peft

        return getattr(peft, name)(task_type="CAUSAL_LM", **{"target_modules": LINEAR[family], **how})

    return make


def _ia3(family: str) -> Any:
    from peft import IA3Config

    targets = [*LINEAR[family], *(["up_proj"] if family == "llama" else [])]
    return IA3Config(task_type="CAUSAL_LM", target_modules=targets, feedforward_modules=INPUT[family])


def _tokens(family: str) -> Any:
    from peft import TrainableTokensConfig

    return TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[7, 258, 3], target_modules=[EMBEDDING[family]])


def _norms(family: str) -> Any:
    from peft import LNTuningConfig

    del family
    return LNTuningConfig(task_type="CAUSAL_LM")


METHODS: dict[str, tuple[Callable[[str], Any], tuple[str, ...]]] = {
    "lora": (lora, ("llama", "gpt2")),
    "dora": (lambda f: lora(f, use_dora=True), ("llama", "gpt2")),
    "adalora": (_other("AdaLoraConfig", init_r=4, target_r=2, total_step=10), ("llama", "gpt2")),
    "loha": (_other("LoHaConfig", r=5, alpha=3), ("llama",)),
    "lokr": (_other("LoKrConfig", r=2, alpha=3), ("llama",)),
    "lokr-both": (_other("LoKrConfig", r=1, alpha=3, decompose_both=True, decompose_factor=4), ("llama",)),
    "oft": (_other("OFTConfig", oft_block_size=8), ("llama",)),
    "oft-exact": (_other("OFTConfig", oft_block_size=16, use_cayley_neumann=False), ("llama",)),
    "oft-shared": (_other("OFTConfig", oft_block_size=8, block_share=True), ("llama",)),
    "oft-constrained": (_other("OFTConfig", oft_block_size=8, coft=True, eps=0.2), ("llama",)),
    "boft": (_other("BOFTConfig", boft_block_size=4), ("llama",)),
    "vera": (_other("VeraConfig", r=6), ("llama", "gpt2")),
    "ia3": (_ia3, ("llama", "gpt2")),
    "norms": (_norms, ("llama", "gpt2")),
    "tokens": (_tokens, ("llama", "gpt2", "tied")),
    "lora-tokens": (lambda f: lora(f, trainable_token_indices=[1, 250]), ("llama", "gpt2", "tied")),
    "lora-bias-all": (lambda f: lora(f, bias="all"), ("gpt2",)),
    "lora-bias": (lambda f: lora(f, bias="lora_only"), ("gpt2",)),
    "lora-own-bias": (lambda f: lora(f, lora_bias=True), ("gpt2",)),
    "lora-saved-norm": (lambda f: lora(f, modules_to_save=["norm" if f == "llama" else "ln_f"]), ("llama", "gpt2")),
    "lora-saved-head": (lambda f: lora(f, modules_to_save=["lm_head"]), ("llama",)),
    "ia3-saved-embedding": (
        _other("IA3Config", feedforward_modules=[], modules_to_save=["embed_tokens"]),
        ("llama",),
    ),
    "oft-bias": (_other("OFTConfig", oft_block_size=8, bias="all"), ("llama",)),
}
CASES = [(method, family) for method, (_, families) in METHODS.items() for family in families]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    gpt2, rng = tiny_gpt2(folder / "gpt2", layers=1), np.random.default_rng(2)
    edit_tensors(
        gpt2 / "model.safetensors",
        lambda tensors: {
            name: rng.normal(0, 0.1, value.shape) if name.endswith(".bias") else value
            for name, value in tensors.items()
        },
    )
    return {
        "llama": tiny_llama(folder / "llama", layers=1),
        "gpt2": gpt2,
        "tied": tiny_llama(folder / "tied", layers=1, tie=True),
        "half": tiny_llama(folder / "half", layers=1, dtype="bfloat16"),
    }


def trained(base: Path, config: Any, folder: Path, *, size: float = 0.3, base_id: str | None = None) -> Path:
    """Save an adapter whose every trainable value was moved at random; base_id: what it calls its base model."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
        generator = torch.Generator().manual_seed(5)
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data += size * noise
        model.save_pretrained(folder)
    if base_id is not None:
        edit_json(folder / "adapter_config.json", base_model_name_or_path=base_id)
    return folder


def merged_by_peft(base: Path, adapter: Path) -> dict[str, np.ndarray]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {name: value.detach().numpy().copy() for name, value in merged.state_dict().items()}


def merged_here(base: Path, adapter: Path, out: Path, **how: Any) -> tuple[dict[str, np.ndarray], FuseReport]:
    """Merge, and load what was written by plain transformers, which has to use every tensor."""
    import torch
    from transformers import AutoModelForCausalLM

    config = json.loads((base / "config.json").read_text())
    out.mkdir()
    report = fuse(plan_fuse(base, read_alone(open_package(adapter)), config, **how), out)
    if report.untied:
        config["tie_word_embeddings"] = False
    if report.vocabulary:
        config["vocab_size"] = report.vocabulary
    (out / "config.json").write_text(json.dumps(config))
    model, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}, report


def assert_equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].shape == value.shape, name
        assert np.abs(ours[name] - value).max() <= 1e-6 * np.abs(value).max(), name


@pytest.mark.parametrize(("method", "family"), CASES)
def test_agrees_with_peft(tmp_path: Path, bases: dict[str, Path], method: str, family: str) -> None:
    base = bases[family]
    adapter = trained(base, METHODS[method][0]("llama" if family == "tied" else family), tmp_path / "a")
    ours, report = merged_here(base, adapter, tmp_path / "out")
    theirs, before = merged_by_peft(base, adapter), read_tensors(base)
    assert_equal(ours, theirs)
    changed = [
        name for name, value in read_tensors(tmp_path / "out").items() if not np.array_equal(value, before[name])
    ]
    assert len(changed) >= 2 or "tokens" in method  # it does something
    assert set(changed) == {module.tensor for module in report.modules} | set(report.replaced)
    assert not report.untied


@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr", "oft", "boft", "vera", "ia3", "norms", "tokens"])
def test_bf16_is_one_rounding_of_pefts_float32(tmp_path: Path, bases: dict[str, Path], method: str) -> None:
    """PEFT merges in float32, and torch rounds that once: equal, or an ulp apart where the order of sums differs."""
    import torch

    base = bases["half"]
    adapter = trained(base, METHODS[method][0]("llama"), tmp_path / "a")
    ours, _ = merged_here(base, adapter, tmp_path / "out")
    different = total = 0
    for name, value in merged_by_peft(base, adapter).items():
        expected = torch.from_numpy(value).to(torch.bfloat16)
        got = torch.from_numpy(ours[name]).to(torch.bfloat16)
        assert torch.equal(got.float(), torch.from_numpy(ours[name])), name  # what was written is bf16
        steps = (got.view(torch.int16).int() - expected.view(torch.int16).int()).abs()
        assert int(steps.max()) <= 1, name
        different, total = different + int((steps > 0).sum()), total + steps.numel()
    assert different <= total / 1000


def test_what_a_config_or_its_tensors_say_amiss_is_refused(tmp_path: Path, bases: dict[str, Path]) -> None:
    base = bases["llama"]

    def faults(folder: Path) -> str:
        with pytest.raises((IncompatibleError, InvalidFileError)) as caught:
            read_alone(open_package(folder))
        return " ".join((caught.value.message, *caught.value.details))

    oft = trained(base, METHODS["oft"][0]("llama"), tmp_path / "oft")
    edit_json(oft / "adapter_config.json", spin="left")
    assert "spin: 'left'" in faults(oft)
    edit_json(oft / "adapter_config.json", spin=None, block_share=True)
    assert "oft_R [8, 28] holds no blocks" in faults(oft)
    vera = trained(base, METHODS["vera"][0]("llama"), tmp_path / "vera")
    edit_tensors(vera / "adapter_model.safetensors", lambda t: {k: v for k, v in t.items() if "vera_A" not in k})
    assert "save_projection: true" in faults(vera)
    ia3 = trained(base, METHODS["ia3"][0]("llama"), tmp_path / "ia3")
    edit_tensors(ia3 / "adapter_model.safetensors", lambda t: t | {"base_model.model.model.layers.0.odd": np.ones(3)})
    assert "model.layers.0.odd" in faults(ia3)
    tokens = trained(base, METHODS["tokens"][0]("llama"), tmp_path / "tokens")
    edit_json(tokens / "adapter_config.json", token_indices=[1, 2])
    assert "[3, 32] trained rows, and 2 ids" in faults(tokens)


def test_what_does_not_fit_the_base_is_refused(tmp_path: Path, bases: dict[str, Path]) -> None:
    def faults(folder: Path, base: Path) -> str:
        config = json.loads((base / "config.json").read_text())
        with pytest.raises(IncompatibleError) as caught:
            plan_fuse(base, read_alone(open_package(folder)), config)
        return " ".join((caught.value.message, *caught.value.details))

    base, other = bases["llama"], bases["gpt2"]
    tokens = trained(base, METHODS["tokens"][0]("llama"), tmp_path / "tokens")
    edit_json(tokens / "adapter_config.json", token_indices=[7, 264, 3])
    assert "token 264 was trained, the base has 264 rows" in faults(tokens, base)
    oft = trained(base, METHODS["oft"][0]("llama"), tmp_path / "oft")
    edit_tensors(
        oft / "adapter_model.safetensors",
        lambda t: {
            k.replace("model.layers", "transformer.h").replace("self_attn.q_proj", "attn.c_proj"): v
            for k, v in t.items()
            if "q_proj" in k
        },
    )
    assert "is stored (in, out)" in faults(oft, other)
    boft = trained(base, METHODS["boft"][0]("llama"), tmp_path / "boft")
    assert "changes a [32, 32] matrix" in faults(boft, tiny_llama(tmp_path / "wide", hidden=64))
    own = trained(other, METHODS["lora-own-bias"][0]("gpt2"), tmp_path / "own")
    edit_tensors(
        own / "adapter_model.safetensors",
        lambda t: {k.replace("transformer.h", "model.layers"): v for k, v in t.items()},
    )
    assert "of its" in faults(own, base)


def test_biases_beside_factors_have_a_coefficient_and_company_but_no_other_combination(
    tmp_path: Path, bases: dict[str, Path]
) -> None:
    base = bases["gpt2"]
    bias = open_package(trained(base, METHODS["lora-bias"][0]("gpt2"), tmp_path / "bias"))
    plain = open_package(trained(base, METHODS["lora"][0]("gpt2"), tmp_path / "plain"))
    assert read_stack([(bias, 1.0)]).whole
    assert not read_stack([(plain, 0.5), (plain, 1.0)]).whole
    for layers in ([(bias, 0.5)], [(bias, 1.0), (plain, 1.0)]):
        found = read_stack(layers)
        assert not found.whole and any(name.endswith(".bias") for name in found.tensors)
    with pytest.raises(IncompatibleError, match="which ties"):
        read_stack([(bias, 1.0)], rule_of("ties"))


def test_what_rounding_takes_of_a_tensor_saved_whole_is_measured(tmp_path: Path, bases: dict[str, Path]) -> None:
    base = bases["half"]
    adapter = trained(base, METHODS["norms"][0]("llama"), tmp_path / "a", size=1e-3)
    ours, report = merged_here(base, adapter, tmp_path / "out")
    exact = merged_by_peft(base, adapter)
    before = read_tensors(base)
    assert {module.tensor for module in report.modules} == set(report.replaced) and len(report.modules) == 3
    for module in report.modules:
        wanted, made = exact[module.tensor] - before[module.tensor], ours[module.tensor] - before[module.tensor]
        assert module.kept == pytest.approx(float((made * wanted).sum() / (wanted**2).sum()), rel=1e-3)
        assert module.delta_norm == pytest.approx(float(np.linalg.norm(wanted)), rel=1e-4)
    assert report.low  # steps of bfloat16 near 1 are several times as wide
