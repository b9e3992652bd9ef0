from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.cli.main import main
from adapterhub.errors import IncompatibleError, IntegrityError, LocalIOError, UnsatisfiedError, UsageError
from adapterhub.ops.merge import merge, plan_merge
from adapterhub.package import open_package, require_intact
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from tests.factory import edit_tensors, read_tensors, tiny_llama, tiny_lora, write_tokenizer


def add_base(folder: Path, settings: Settings, name: str = "tiny-llama") -> None:
    BaseStore(settings).add(read_base(folder, BaseModelRef(id=name), "folder"))


@pytest.fixture
def base(tmp_path: Path, settings: Settings) -> Path:
    folder = tiny_llama(tmp_path / "base")
    add_base(folder, settings)
    return folder


@pytest.fixture
def project(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two adapters, `./a` and `./b`, and no adapters.yaml."""
    tiny_lora(tmp_path / "a", base, r=4, name="a")
    tiny_lora(tmp_path / "b", base, r=2, use_rslora=True, target_modules=("q_proj", "down_proj"), seed=1, name="b")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_stack_becomes_a_checkpoint_with_all_that_goes_with_it(project: Path, base: Path, settings: Settings) -> None:
    (base / "LICENSE").write_text("the base's terms\n")
    (base / "modeling_evil.py").write_text("raise SystemExit\n")
    result = merge(plan_merge(project / "out", stack="./a,./b=0.5", settings=settings))
    names = {path.name for path in (project / "out").iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md", "LICENSE"} | tokenizer <= names
    assert "modeling_evil.py" not in names
    for name in (*tokenizer, "generation_config.json"):
        assert (project / "out" / name).read_bytes() == (base / name).read_bytes()
    assert json.loads((project / "out/config.json").read_text()) == json.loads((base / "config.json").read_text())
    card = (project / "out" / "README.md").read_text()
    for word in ("a", "b"):
        manifest = open_package(project / word).manifest
        assert f"| {word} | 1.0.0 | {1.0 if word == 'a' else 0.5:g} | manifest `{manifest.digest}` |" in card
    assert 'base_model: "tiny-llama"' in card
    assert result.report is not None and len(result.report.modules) == 6 and not result.warnings
    assert not list(project.glob(".out*"))


def test_the_plan_is_pure_and_tells_what_will_be(project: Path, settings: Settings) -> None:
    plan = plan_merge(project / "out", stack="./a,./b=0.5", settings=settings)
    assert not (project / "out").exists() and plan.changes
    facts = dict(plan.facts())
    assert facts["stack"] == "./a 1.0.0, ./b 1.0.0 × 0.5"
    assert facts["changes"] == "6 tensors, rank 2 to 6"
    assert plan.size == sum(value.nbytes for value in read_tensors(project / "base").values())
    assert plan.to_data()["bytes"] == plan.size


def test_as_adapter_writes_one_package_of_the_same_sum(project: Path, base: Path, settings: Settings) -> None:
    merge(plan_merge(project / "one", stack="./a,./b=-0.5", as_adapter=True, settings=settings))
    package = open_package(project / "one")
    require_intact(package)
    config: Any = package.config
    assert not package.derived and package.manifest.name == "one"
    assert config["r"] == config["lora_alpha"] == 6 and config["use_rslora"] is False
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert config["target_modules"] == tuple(sorted(config["target_modules"]))
    assert package.manifest.base_model.fingerprints == open_package(project / "a").manifest.base_model.fingerprints
    merge(plan_merge(project / "first", stack="./a,./b=-0.5", settings=settings))
    merge(plan_merge(project / "second", stack="./one", settings=settings))
    first, second = read_tensors(project / "first"), read_tensors(project / "second")
    assert not np.array_equal(
        first["model.layers.0.mlp.down_proj.weight"], read_tensors(base)["model.layers.0.mlp.down_proj.weight"]
    )
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, rtol=0, atol=1e-6)


def test_dtype_is_written_into_the_config(project: Path, settings: Settings) -> None:
    merge(plan_merge(project / "out", stack="./a", dtype="bfloat16", settings=settings))
    assert json.loads((project / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(UsageError, match="no dtype"):
        plan_merge(project / "other", stack="./a", dtype="int4", settings=settings)
    with pytest.raises(UsageError, match="factors are float32"):
        plan_merge(project / "other", stack="./a", dtype="float32", as_adapter=True, settings=settings)


def test_untied_embeddings_are_said_in_the_config(tmp_path: Path, settings: Settings) -> None:
    base = tiny_llama(tmp_path / "tied", tie=True)
    add_base(base, settings)
    head = tiny_lora(tmp_path / "head", base, target_modules=("embed_tokens",), manifest=False)
    edit_tensors(
        head / "adapter_model.safetensors",
        lambda t: {key.replace("model.embed_tokens", "lm_head"): value for key, value in t.items()},
    )
    merge(plan_merge(tmp_path / "out", stack=str(head), settings=settings))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert "lm_head.weight" in read_tensors(tmp_path / "out")


def test_a_weak_change_is_warned_of(tmp_path: Path, settings: Settings) -> None:
    base = tiny_llama(tmp_path / "half", dtype="bfloat16")
    add_base(base, settings)
    adapter = tiny_lora(tmp_path / "a", base)
    result = merge(plan_merge(tmp_path / "out", stack=f"{adapter}=0.00001", settings=settings))
    assert len(result.warnings) == 1 and "--dtype float32" in result.warnings[0]
    exact = merge(plan_merge(tmp_path / "wide", stack=f"{adapter}=0.00001", dtype="float32", settings=settings))
    assert not exact.warnings


def test_an_adapters_own_tokenizer_goes_with_the_merged_model(project: Path, base: Path, settings: Settings) -> None:
    write_tokenizer(project / "a", chat_template="{{ messages[0]['content'] }}")
    merge(plan_merge(project / "out", stack="./a", settings=settings))
    assert (project / "out" / "tokenizer.json").read_bytes() == (project / "a" / "tokenizer.json").read_bytes()
    config = json.loads((project / "out" / "tokenizer_config.json").read_text())
    template = project / "out" / "chat_template.jinja"
    assert "messages[0]" in (template.read_text() if template.exists() else config["chat_template"])


def test_without_a_stack_the_project_decides(project: Path, base: Path, settings: Settings) -> None:
    with pytest.raises(UsageError, match="nothing says which adapters"):
        plan_merge(project / "out", settings=settings)
    (project / "adapters.yaml").write_text(
        'project_version: "1.0"\nbase_model: tiny-llama\nstacks:\n  default: "./a,./b"\n  other: "./a"\n'
    )
    plan = plan_merge(project / "out", settings=settings)
    assert [layer.word for layer in plan.load.stack.layers] == ["./a", "./b"]
    (project / "adapters.yaml").write_text(
        'project_version: "1.0"\nbase_model: tiny-llama\nstacks:\n  one: "./a"\n  two: "./b"\n'
    )
    with pytest.raises(UsageError) as caught:
        plan_merge(project / "out", settings=settings)
    assert "one" in (caught.value.hint or "") and "two" in (caught.value.hint or "")


def test_another_base_of_the_same_shapes_is_exit_4(project: Path, settings: Settings) -> None:
    other = tiny_llama(project / "other-base", seed=9)
    add_base(other, settings, "other-llama")
    with pytest.raises(IncompatibleError):
        plan_merge(project / "out", stack="./a", base="other-llama", settings=settings)
    with pytest.raises(UnsatisfiedError):
        plan_merge(project / "out", stack="./a", base="no-such-base", settings=settings)


def test_a_changed_byte_is_an_integrity_error_and_nothing_is_written(project: Path, settings: Settings) -> None:
    weights = project / "a" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(IntegrityError):
        plan_merge(project / "out", stack="./a", settings=settings)
    assert not (project / "out").exists()


def test_what_lies_at_the_target_is_left_alone(project: Path, settings: Settings) -> None:
    (project / "out").mkdir()
    (project / "out" / "mine.txt").write_text("mine")
    with pytest.raises(LocalIOError, match="not empty"):
        plan_merge(project / "out", stack="./a", settings=settings)
    assert (project / "out" / "mine.txt").read_text() == "mine"


def test_a_disk_that_is_too_small_is_told_before(project: Path, settings: Settings, monkeypatch: Any) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 5, 5))  # type: ignore[attr-defined]
    with pytest.raises(LocalIOError, match="5 bytes free"):
        plan_merge(project / "out", stack="./a", settings=settings)


def test_a_failure_half_way_leaves_no_folder(project: Path, settings: Settings, monkeypatch: Any) -> None:
    plan = plan_merge(project / "out", stack="./a", settings=settings)

    def fail(*arguments: object, **how: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adapterhub.ops._merged.shutil.copyfile", fail)
    with pytest.raises(LocalIOError, match="No space left"):
        merge(plan)
    assert not (project / "out").exists() and not list(project.glob(".out*"))


_SLOWLY = """
import sys, time
from pathlib import Path
import adapterhub.algebra.streaming as streaming
from adapterhub.ops.merge import merge, plan_merge
write = streaming.write_all
def slowly(target, data):
    write(target, data)
    print("writing", flush=True)
    time.sleep(30)
streaming.write_all = slowly
merge(plan_merge(Path("out"), stack="./a"))
"""


def test_a_killed_merge_leaves_no_half_folder(project: Path) -> None:
    run = subprocess.Popen([sys.executable, "-c", _SLOWLY], cwd=project, stdout=subprocess.PIPE, env=os.environ.copy())
    assert run.stdout is not None and run.stdout.readline() == b"writing\n"
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    assert not (project / "out").exists()
    assert merge(plan_merge(project / "out", stack="./a")).path.is_dir()  # what was left behind is in nobody's way


def test_the_command_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "--stack", "./a", "--out", "out", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["verb"] == "merge" and plan["base"] == "tiny-llama" and not (project / "out").exists()
    assert main(["merge", "--stack", "./a,./b", "--out", "out", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["report"]["modules"]) == 6 and result["path"] == "out"
    assert main(["merge", "--stack", "./a", "--out", "out"]) == 9
    assert "not empty" in capsys.readouterr().err
    assert main(["merge", "--out", "again"]) == 2
    assert main(["merge", "--stack", "./a", "--as-adapter", "--out", "one"]) == 0
    assert main(["merge", "--stack", "./a", "--base", "none", "--out", "x"]) == 1


@pytest.mark.engine
def test_merged_model_and_merged_adapter_agree_with_peft(project: Path, base: Path, settings: Settings) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def logits(model: Any) -> Any:
        with torch.no_grad():
            return model.eval()(torch.arange(1, 33)[None]).logits

    def bare() -> Any:
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

    merge(plan_merge(project / "out", stack="./a,./b", settings=settings))
    merge(plan_merge(project / "one", stack="./a,./b", as_adapter=True, settings=settings))
    model = PeftModel.from_pretrained(bare(), project / "a", adapter_name="ad0")
    model.load_adapter(project / "b", adapter_name="ad1")
    model.base_model.set_adapter(["ad0", "ad1"])
    expected = logits(model)
    bound = 1e-4 * float(expected.abs().max())
    assert float((expected - logits(bare())).abs().max()) > 100 * bound
    whole = AutoModelForCausalLM.from_pretrained(project / "out", dtype=torch.float32)
    assert float((logits(whole) - expected).abs().max()) <= bound
    one = PeftModel.from_pretrained(bare(), project / "one")
    assert float((logits(one) - expected).abs().max()) <= bound
    assert AutoTokenizer.from_pretrained(project / "out").chat_template


@pytest.mark.engine
@pytest.mark.real_model
def test_on_the_real_model_merged_weights_agree_with_the_stack(smollm2_home: Path, tmp_path: Path) -> None:
    """In float32 to 1e-4 of the largest logit; what rounding to bfloat16 costs is less than with PEFT's own merge.

    The rounded weights run in float32 here: bfloat16 arithmetic adds an error of its own, several times as large, which
    jumps with any bit of the weights because the first token's huge activations are rounded too.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = Settings(home=smollm2_home)
    (record,) = BaseStore(settings).list()
    strong: dict[str, Any] = {"r": 16, "lora_alpha": 64, "dtype": "bfloat16", "base_id": record.ref.id}
    how: list[dict[str, Any]] = [
        {"target_modules": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")},
        {"target_modules": ("q_proj", "v_proj", "down_proj"), "seed": 1},
    ]
    folders = [tiny_lora(tmp_path / f"ad{i}", record.path, name=f"ad{i}", **strong, **one) for i, one in enumerate(how)]
    stack = ",".join(map(str, folders))
    merge(plan_merge(tmp_path / "half", stack=stack, settings=settings))
    merge(plan_merge(tmp_path / "full", stack=stack, dtype="float32", settings=settings))

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "full")
    questions = ("What is the capital of France?", "¿Cómo estás hoy?", "Name three fruits.", "Why is the sky blue?")
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        for text in questions
    ]

    def logits(model: Any) -> Any:
        with torch.no_grad():
            return torch.cat([model.eval()(ids).logits[0].float() for ids in prompts])

    def by_peft(dtype: torch.dtype, *, merged: bool) -> Any:
        model = AutoModelForCausalLM.from_pretrained(record.path, dtype=dtype)
        peft = PeftModel.from_pretrained(model, folders[0], adapter_name="ad0", autocast_adapter_dtype=False)
        peft.load_adapter(folders[1], adapter_name="ad1", autocast_adapter_dtype=False)
        peft.base_model.set_adapter(["ad0", "ad1"])
        return peft.merge_and_unload(adapter_names=["ad0", "ad1"]).float() if merged else peft

    expected = logits(by_peft(torch.float32, merged=False))
    full = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype=torch.float32))
    assert float((full - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    half = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32))
    others = [logits(by_peft(torch.bfloat16, merged=merged)) for merged in (True, False)]
    ours, theirs, active = (float((value - expected).abs().mean()) for value in (half, *others))
    assert ours < theirs and ours < active, f"{ours:.4f} against merged {theirs:.4f}, active {active:.4f}"
