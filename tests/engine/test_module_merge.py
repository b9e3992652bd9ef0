"""PEFT's own merge, one module at a time and streamed: the same weights as PEFT's, in little memory, or a refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adapterhub.algebra.fuse import FuseReport, fuse, plan_fuse
from adapterhub.algebra.read_alone import is_read_here
from adapterhub.catalog.methods import METHODS, method_of_config
from adapterhub.catalog.own_methods import BASELINE
from adapterhub.engine.module_merge import read_by_peft
from adapterhub.engine.peft_adapter import put_on
from adapterhub.errors import IncompatibleError
from adapterhub.ops._merged import write_config
from adapterhub.package import open_package
from tests.catalog.family_configs import tiny_config
from tests.engine.peft_reference import difference, logits_of, plain_model
from tests.engine.test_methods import CASES
from tests.engine.test_peft_adapter import IDS, OTHERS, adapter
from tests.factory import VOCAB, edit_json, edit_tensors, read_tensors, tiny_llama, write_tensors

pytestmark = pytest.mark.engine


def only_peft_s(case: str) -> bool:
    """Say whether only PEFT can merge a case."""
    method = METHODS[CASES[case][0]]
    package: Any = SimpleNamespace(config={"peft_type": method.peft_type})
    return method.foldable and not is_read_here(package)


MERGED = [case for case in OTHERS if only_peft_s(case)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


def merged(
    base: Path, folder: Path, out: Path, *, task: str = "CAUSAL_LM", dtype: Any = None, **how: Any
) -> FuseReport:
    package = open_package(folder)
    method = method_of_config(package.config)
    assert method is not None
    changes = read_by_peft(package, method, base, task=task, threads=1)
    out.mkdir(parents=True)
    config = json.loads((base / "config.json").read_text())
    report = fuse(plan_fuse(base, changes, config), out, **how)
    write_config(config, out, untied=report.untied, dtype=None)
    return report


def peft_logits(base: Path, folder: Path) -> Any:
    from peft import PeftModel

    return logits_of(PeftModel.from_pretrained(plain_model(base), str(folder)).eval(), IDS)


def test_every_method_that_only_peft_merges_is_tried() -> None:
    told: Any = {row.name: SimpleNamespace(config={"peft_type": row.peft_type}) for row in METHODS.values()}
    wanted = {
        row.name for row in METHODS.values() if row.buildable and row.foldable and not is_read_here(told[row.name])
    }
    assert {CASES[case][0] for case in MERGED} == wanted - {
        row.name for row in METHODS.values() if row.group == BASELINE
    }
    assert len(wanted) >= 20


# Methods at their plainest are in the matrix of tests/equivalence.
PLAIN = [case for case in MERGED if case in METHODS and case != "vblora"]
VARIANTS = [case for case in MERGED if case not in METHODS]


@pytest.mark.parametrize(
    "case", ["vblora", *VARIANTS, *(pytest.param(case, marks=pytest.mark.exhaustive) for case in PLAIN)]
)
def test_the_checkpoint_is_the_active_adapter(base: Path, tmp_path: Path, case: str) -> None:
    folder = adapter(base, case, tmp_path / "adapter")
    report = merged(base, folder, tmp_path / "out")
    active, bare = peft_logits(base, folder), logits_of(plain_model(base), IDS)
    assert difference(logits_of(plain_model(tmp_path / "out"), IDS), active) < 1e-5
    assert difference(active, bare) > 1e-3
    assert report.modules and report.kept > 0.999


@pytest.mark.parametrize("case", ["hra", "tinylora", "unilora"])
def test_over_16_bits_it_is_peft_s_float32_merge_rounded_once(tmp_path: Path, case: str) -> None:
    import torch

    base = tiny_llama(tmp_path / "base", hidden=64, dtype="bfloat16", shards=3)
    folder = adapter(base, case, tmp_path / "adapter")
    merged(base, folder, tmp_path / "out", workers=1)
    method = METHODS[CASES[case][0]]
    exact = put_on(plain_model(base), open_package(folder), method).state_dict()
    ours = plain_model(tmp_path / "out", torch.bfloat16).state_dict()
    off = [(ours[name] != exact[name].to(torch.bfloat16)).double().mean().item() for name in ours]
    # Where the order of a sum decides, one ulp.
    assert sum(off) / len(off) < 1e-3
    assert all(torch.allclose(ours[name].float(), exact[name], rtol=2**-7, atol=1e-6) for name in ours)
    # Any number of threads, the same bytes; and files in which nothing changes are the base's own.
    report = merged(base, folder, tmp_path / "threads", workers=3, link=True)
    for file in report.files:
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "threads" / file).read_bytes()


@pytest.mark.parametrize("case", ["glora", "road"])
def test_a_bias_that_follows_the_weight_is_written_too(tmp_path: Path, case: str) -> None:
    base = tiny_llama(tmp_path / "plain")
    config = tiny_config("qwen2", vocab_size=VOCAB).to_dict() | {"architectures": ["Qwen2ForCausalLM"]}
    model = _random(config)
    model.save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (base / name).is_file():
            (tmp_path / "base" / name).write_bytes((base / name).read_bytes())
    folder = adapter(tmp_path / "base", case, tmp_path / "adapter")
    report = merged(tmp_path / "base", folder, tmp_path / "out")
    assert any(module.tensor.endswith(".bias") for module in report.modules)
    ours = logits_of(plain_model(tmp_path / "out"), IDS)
    assert difference(ours, peft_logits(tmp_path / "base", folder)) < 1e-5


def _random(config: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("targets", [["embed_tokens", "q_proj"], ["lm_head"]])
def test_tied_embeddings_are_parted_where_one_of_them_changes(tmp_path: Path, targets: list[str]) -> None:
    """PEFT's own merge would change both; with the adapter active, only one is another."""
    base = tiny_llama(tmp_path / "base", tie=True)
    folder = _tiny(base, tmp_path / "adapter", targets)
    active = peft_logits(base, folder)
    report = merged(base, folder, tmp_path / "out")
    assert report.untied
    assert difference(logits_of(plain_model(tmp_path / "out"), IDS), active) < 1e-5
    model = put_on(plain_model(base), open_package(folder), METHODS["tinylora"])
    assert difference(logits_of(model, IDS), active) < 1e-5
    assert model.config.tie_word_embeddings is False


def _tiny(base: Path, out: Path, targets: list[str], auto_class: str = "AutoModelForCausalLM") -> Path:
    import torch
    import transformers
    from peft import TinyLoraConfig, get_peft_model

    model = getattr(transformers, auto_class).from_pretrained(str(base))
    task = "CAUSAL_LM" if "Causal" in auto_class else "SEQ_2_SEQ_LM"
    adapted: Any = get_peft_model(model, TinyLoraConfig(target_modules=targets, task_type=task, r=2, u=8))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    adapted.save_pretrained(str(out), save_embedding_layers=False)
    return out


def test_a_weight_that_other_modules_share_unchanged_is_refused(tmp_path: Path) -> None:
    from transformers import T5ForConditionalGeneration

    T5ForConditionalGeneration(tiny_config("t5")).save_pretrained(tmp_path / "base")
    folder = _tiny(tmp_path / "base", tmp_path / "adapter", ["shared", "q"], "AutoModelForSeq2SeqLM")
    with pytest.raises(IncompatibleError, match="does not fit") as caught:
        merged(tmp_path / "base", folder, tmp_path / "out", task="SEQ_2_SEQ_LM")
    assert any("encoder.embed_tokens has the same weight" in line for line in caught.value.details)


@pytest.mark.parametrize("told", [{}, {"tie_word_embeddings": True, "scale_decoder_outputs": True}])
def test_t5_s_head_is_parted_and_its_outputs_are_scaled_as_before(tmp_path: Path, told: dict[str, bool]) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration

    base, out = tmp_path / "base", tmp_path / "out"
    T5ForConditionalGeneration(tiny_config("t5")).save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    left = {key: value for key, value in config.items() if key not in ("tie_word_embeddings", "scale_decoder_outputs")}
    (base / "config.json").write_text(json.dumps(left | told))
    folder = _tiny(base, tmp_path / "adapter", ["lm_head"], "AutoModelForSeq2SeqLM")
    assert merged(base, folder, out, task="SEQ_2_SEQ_LM").untied
    ids = torch.tensor([[5, 9, 33, 2]])

    def logits(model: Any) -> Any:
        with torch.no_grad():
            return model.eval()(input_ids=ids, decoder_input_ids=ids.flip(1)).logits

    active = logits(PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(str(base)), str(folder)))
    assert difference(logits(AutoModelForSeq2SeqLM.from_pretrained(str(out))), active) < 1e-5


# A fault of the file, and what is said of it; at the plan, or when the module's turn comes.
FAULTS = {
    "missing module": (lambda t: {n: v for n, v in t.items() if ".layers.1.self_attn.q_proj" not in n}, "no tensor"),
    "missing part": (lambda t: {n: v for i, (n, v) in enumerate(t.items()) if i}, "is not among the weights"),
    "stray": (lambda t: t | {"base_model.model.model.norm.hra_u": np.ones(3, np.float32)}, "no place for it"),
    "stray part": (lambda t: t | {next(iter(t)) + "_more": np.ones(3, np.float32)}, "no place for it"),
    "stray shared": (lambda t: t | {"base_model.hra_bank": np.ones(3, np.float32)}, "no place for it"),
    "not finite": (lambda t: {n: v * np.float32("nan") for n, v in t.items()}, "NaN"),
    "other shape": (lambda t: {n: v[:-1] for n, v in t.items()}, "in the file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_does_not_go_with_the_base_is_refused(base: Path, tmp_path: Path, fault: str) -> None:
    case = "gralora" if "part" in fault else "hra"
    folder = adapter(base, case, tmp_path / "adapter")
    change, words = FAULTS[fault]
    edit_tensors(folder / "adapter_model.safetensors", change)
    with pytest.raises(IncompatibleError) as caught:
        merged(base, folder, tmp_path / "out")
    assert words in " ".join((str(caught.value), *caught.value.details)), caught.value


def test_a_base_with_other_layers_or_widths_and_unknown_settings_are_refused(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, "c3a", tmp_path / "adapter")
    for name, other in {
        "shallow": tiny_llama(tmp_path / "shallow", layers=1),
        "wide": tiny_llama(tmp_path / "wide", hidden=64),
    }.items():
        with pytest.raises(IncompatibleError):
            merged(other, folder, tmp_path / f"out-{name}")
    edit_json(folder / "adapter_config.json", new_setting=7)
    with pytest.raises(IncompatibleError, match="not known of c3a"):
        merged(base, folder, tmp_path / "out")


_MEASURE = """
import json, resource, sys
from pathlib import Path
import adapterhub.engine.module_merge
from adapterhub.algebra.fuse import fuse, plan_fuse
from adapterhub.catalog.methods import METHODS
from adapterhub.package import open_package
import torch, transformers.models.llama.modeling_llama
torch.ones(8, 8) @ torch.ones(8, 8)
base, adapter, out = map(Path, sys.argv[1:])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
changes = adapterhub.engine.module_merge.read_by_peft(
    open_package(adapter), METHODS["miss"], base, task="CAUSAL_LM", threads=1
)
fuse(plan_fuse(base, changes, json.loads((base / "config.json").read_text())), out, workers=1)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_peak_memory_is_that_of_a_few_modules(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", layers=0, hidden=1024, heads=8)
    rng = np.random.default_rng(0)
    layers = range(24)
    # 24 matrices of 8 MiB, float32: 201 MB.
    modules = [f"model.layers.{i}.mlp.down_proj" for i in layers]
    write_tensors(
        base / "model.safetensors",
        {f"{name}.weight": rng.standard_normal((1024, 2048), np.float32) for name in modules},
    )
    edit_json(base / "config.json", num_hidden_layers=len(layers))
    small = tiny_llama(tmp_path / "small")
    folder = adapter(small, "miss", tmp_path / "a")
    edit_json(folder / "adapter_config.json", target_modules=["down_proj"], r=4)
    blocks = {f"base_model.model.{name}.miss_block": rng.standard_normal((4, 1024), np.float32) for name in modules}
    edit_tensors(folder / "adapter_model.safetensors", lambda _: blocks)
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", _MEASURE, str(base), str(folder), str(tmp_path / "out")]
    run = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    before, after = (int(word) / 1024 for word in run.stdout.split())
    written = read_tensors(tmp_path / "out")
    assert len(written) == len(modules) and (tmp_path / "out" / "model.safetensors").stat().st_size > 200e6
    assert after - before < 100, f"{before:.0f} MiB with torch, {after:.0f} MiB at the peak"
