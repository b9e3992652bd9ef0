from __future__ import annotations

import json
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.catalog.engines import ENGINES
from adapterhub.cli.main import main
from adapterhub.errors import IncompatibleError, LocalIOError, UsageError
from adapterhub.ops._handoff_commands import commands_of
from adapterhub.ops.handoff import handoff, plan_handoff
from adapterhub.package import open_package, require_intact
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.stack import Parameters
from tests.engine import llama_cpp
from tests.factory import VOCAB, edit_tensors, read_tensors, tiny_llama, tiny_lora, write_tensors

KEY = "base_model.model.{}.lora_{}.weight"
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_base(folder: Path, settings: Settings, name: str = "tiny-llama") -> None:
    BaseStore(settings).add(read_base(folder, BaseModelRef(id=name), "folder"))


@pytest.fixture
def project(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base, two adapters, `./a` and `./b`, and no adapters.yaml."""
    base = tiny_llama(tmp_path / "base")
    add_base(base, settings)
    tiny_lora(tmp_path / "a", base, r=4, name="a", rank_pattern={"v_proj": 2}, alpha_pattern={"v_proj": 3})
    tiny_lora(tmp_path / "b", base, r=2, use_rslora=True, target_modules=("q_proj", "down_proj"), seed=1, name="b")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def changes(folder: Path) -> dict[str, np.ndarray]:
    """Return s·B·A by module, with the one scaling that an engine reads: lora_alpha / r."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = read_tensors(folder / "adapter_model.safetensors")
    names = [key[len("base_model.model.") : -len(".lora_A.weight")] for key in tensors if ".lora_A." in key]
    scaling = config["lora_alpha"] / config["r"]
    return {name: scaling * tensors[KEY.format(name, "B")] @ tensors[KEY.format(name, "A")] for name in names}


def own_changes(folder: Path, weight: float) -> dict[str, np.ndarray]:
    """The same as PEFT has it, with patterns and rsLoRA."""
    config = json.loads((folder / "adapter_config.json").read_text())
    found = {}
    for name, change in changes(folder).items():
        last = name.rpartition(".")[2]
        r = (config["rank_pattern"] or {}).get(last, config["r"])
        alpha = (config["alpha_pattern"] or {}).get(last, config["lora_alpha"])
        scaling = alpha / (r**0.5 if config["use_rslora"] else r)
        found[name] = weight * scaling * change / (config["lora_alpha"] / config["r"])
    return found


@pytest.mark.parametrize(("engine", "rank"), [("vllm", 8), ("sglang", 6)])
def test_a_stack_is_one_plain_lora_that_engines_read_right(
    project: Path, settings: Settings, engine: str, rank: int
) -> None:
    result = handoff(plan_handoff(project / "out", engine, stack="./a,./b=-0.5", settings=settings))
    folder = project / "out" / "a-b"
    assert [item.path for item in result.plan.adapters] == [folder] and not result.truncations
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["base_model_name_or_path"] == "tiny-llama"
    assert config["r"] == config["lora_alpha"] == rank
    assert config["rank_pattern"] == config["alpha_pattern"] == {} and config["modules_to_save"] is None
    assert not (config["use_rslora"] or config["use_dora"] or config["lora_bias"]) and config["bias"] == "none"
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    tensors = read_tensors(folder / "adapter_model.safetensors")
    assert {value.shape[0] for key, value in tensors.items() if ".lora_A." in key} == {rank}
    expected = own_changes(project / "a", 1.0)
    for name, change in own_changes(project / "b", -0.5).items():
        expected[name] = expected.get(name, 0) + change
    found = changes(folder)
    assert set(found) == set(expected) and len(found) == 6
    for name, change in expected.items():
        np.testing.assert_allclose(found[name], change, rtol=0, atol=1e-6)
    require_intact(open_package(folder))


def test_each_is_written_with_its_weight(project: Path, settings: Settings) -> None:
    plan = plan_handoff(project / "out", "vllm", stack="./a,./b=-0.5", each=True, settings=settings)
    assert not (project / "out").exists() and plan.changes
    assert [(item.name, item.own, item.rank) for item in plan.adapters] == [("a", 4, 8), ("b", 2, 8)]
    handoff(plan)
    for word, weight in (("a", 1.0), ("b", -0.5)):
        expected, found = own_changes(project / word, weight), changes(project / "out" / word)
        assert set(found) == set(expected)
        for name, change in expected.items():
            np.testing.assert_allclose(found[name], change, rtol=0, atol=1e-6)


def test_the_command_lines_name_what_was_written(project: Path, settings: Settings) -> None:
    plan = plan_handoff(project / "o ut", "vllm", stack="./a,./b", each=True, settings=settings)
    handoff(plan)
    serve, run_time, *loads = [shlex.split(command.text) for command in plan.commands]
    assert serve[:3] == ["vllm", "serve", str(project / "base")]
    options = dict(pairwise(serve))
    assert "--enable-lora" in serve and options["--max-lora-rank"] == "8" and options["--max-loras"] == "2"
    modules = [json.loads(text) for text in serve[serve.index("--lora-modules") + 1 :]]
    assert [module["name"] for module in modules] == ["a", "b"]
    assert all((Path(module["path"]) / "adapter_config.json").is_file() for module in modules)
    assert run_time[0] == "VLLM_ALLOW_RUNTIME_LORA_UPDATING=true" and "--lora-modules" not in run_time
    assert [json.loads(words[-1])["lora_name"] for words in loads] == ["a", "b"]
    sglang = plan_handoff(project / "other", "sglang", stack="./a,./b", each=True, settings=settings)
    words = shlex.split(sglang.commands[0].text)
    assert words[words.index("--lora-paths") + 1 :] == [f"a={project}/other/a", f"b={project}/other/b"]


def test_the_resolver_is_offered_where_the_base_has_the_name_that_it_compares(
    project: Path, settings: Settings
) -> None:
    plan = plan_handoff(project / "out", "vllm", stack="./a", settings=settings)
    assert not any("lora_filesystem_resolver" in command.text for command in plan.commands)
    record = replace(
        plan.load.base, source="hub-cache", ref=replace(plan.load.base.ref, id="org/base", revision="0" * 40)
    )
    commands = commands_of(ENGINES["vllm"], record, [("a", project / "out/a")], out=project / "out", rank=8)
    words = shlex.split(commands[-1].text)
    assert f"VLLM_LORA_RESOLVER_CACHE_DIR={project}/out" in words and "VLLM_PLUGINS=lora_filesystem_resolver" in words
    at = words.index("serve")
    assert words[at + 1 : at + 4] == ["org/base", "--revision", "0" * 40]


def test_a_rank_that_is_too_high_is_refused_or_cut(project: Path, settings: Settings) -> None:
    tiny_lora(project / "wide", project / "base", r=600, name="wide")
    with pytest.raises(IncompatibleError, match="its rank is 600, vLLM takes 512 at most") as caught:
        plan_handoff(project / "out", "vllm", stack="./wide", settings=settings)
    assert "--rank 512" in (caught.value.hint or "")
    assert plan_handoff(project / "out", "sglang", stack="./wide", settings=settings).adapters[0].rank == 600
    cut = plan_handoff(project / "out", "vllm", stack="./wide", parameters=Parameters(rank=3), settings=settings)
    assert (cut.adapters[0].own, cut.adapters[0].rank) == (3, 8)
    result = handoff(cut)
    whole, found = own_changes(project / "wide", 1.0), changes(project / "out" / "wide")
    lost = sum(float(((whole[name] - found[name]) ** 2).sum()) for name in whole)
    energy = sum(float((change**2).sum()) for change in whole.values())
    assert result.truncations["wide"].error == pytest.approx((lost / energy) ** 0.5, rel=1e-3)
    assert "leaves out" in result.notes[0]


def test_what_an_engine_cannot_have_is_refused_with_the_reason(tmp_path: Path, settings: Settings) -> None:
    base = tiny_llama(tmp_path / "base", tie=True)
    add_base(base, settings)
    dora = tiny_lora(tmp_path / "dora", base, use_dora=True, name="dora")
    words = tiny_lora(tmp_path / "words", base, target_modules=("embed_tokens",), manifest=False)
    head = tiny_lora(tmp_path / "head", base, target_modules=("embed_tokens",), manifest=False)
    edit_tensors(
        words / "adapter_model.safetensors",  # as PEFT has an embedding: A is (r, tokens), B is (length, r)
        lambda t: {
            KEY.format("model.embed_tokens", part).replace("lora_", "lora_embedding_").removesuffix(".weight"): value
            for part, value in zip("BA", (array.T for _, array in sorted(t.items())), strict=True)
        },
    )
    edit_tensors(
        head / "adapter_model.safetensors",
        lambda t: {key.replace("model.embed_tokens", "lm_head"): value for key, value in t.items()},
    )
    reasons = {dora: "use_dora", words: "model.embed_tokens: is an embedding", head: "the head is the embedding"}
    for folder, reason in reasons.items():
        for engine in ENGINES:
            with pytest.raises(IncompatibleError, match="cannot have this adapter") as caught:
                plan_handoff(tmp_path / "out", engine, stack=str(folder), settings=settings)
            assert any(reason in line for line in caught.value.details), caught.value.details
            assert "adapt merge" in (caught.value.hint or "")


def test_whole_modules_and_names_that_the_engine_would_not_find_are_refused(project: Path, settings: Settings) -> None:
    saved = tiny_lora(project / "saved", project / "base", manifest=False, config={"modules_to_save": ["lm_head"]})
    head = read_tensors(project / "base")["lm_head.weight"] + 1
    edit_tensors(
        saved / "adapter_model.safetensors", lambda t: {**t, "base_model.model.lm_head.weight": head.astype("float32")}
    )
    short = tiny_lora(project / "short", project / "base", manifest=False)
    edit_tensors(
        short / "adapter_model.safetensors",
        lambda t: {key.replace("model.model.layers", "model.layers"): value for key, value in t.items()},
    )
    for word, reason in (
        ("saved", "lm_head.weight: is saved whole (modules_to_save)"),
        ("short", "the base has it as model.layers.0.self_attn.q_proj.weight"),
    ):
        with pytest.raises(IncompatibleError, match="cannot have this adapter") as caught:
            plan_handoff(project / "out", "vllm", stack=f"./{word}", settings=settings)
        assert any(reason in line for line in caught.value.details), caught.value.details


def test_a_lora_like_adapter_is_multiplied_out(project: Path, settings: Settings) -> None:
    """LoHa: ΔW = α/r·(w1_a·w1_b) ∘ (w2_a·w2_b), https://arxiv.org/abs/2108.06098."""
    rng, name = np.random.default_rng(5), "model.layers.1.self_attn.q_proj"
    shapes = {"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, 2), "hada_w2_b": (2, 32)}
    parts = {part: rng.normal(0, 0.3, shape).astype(np.float32) for part, shape in shapes.items()}
    (project / "loha").mkdir()
    config = {
        "peft_type": "LOHA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny-llama",
        "r": 2,
        "alpha": 3,
        "target_modules": ["layers.1.self_attn.q_proj"],
    }
    (project / "loha" / "adapter_config.json").write_text(json.dumps(config))
    write_tensors(
        project / "loha" / "adapter_model.safetensors",
        {f"base_model.model.{name}.{part}": value for part, value in parts.items()},
    )
    result = handoff(plan_handoff(project / "out", "vllm", stack="./loha", settings=settings))
    assert (result.plan.adapters[0].own, result.plan.adapters[0].rank) == (4, 8)
    expected = 1.5 * (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    found = changes(project / "out" / "loha")
    assert set(found) == {name}
    np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-6)
    for stack in ("./loha,./a", "./loha=0.5"):
        with pytest.raises(IncompatibleError, match="cannot be written as a sum of low-rank changes") as caught:
            plan_handoff(project / "other", "vllm", stack=stack, settings=settings)
        assert "adapt convert" in (caught.value.hint or "")


def test_options_that_mean_nothing_are_refused(project: Path, settings: Settings) -> None:
    def plan(**options: Any) -> None:
        plan_handoff(project / "out", options.pop("engine", "vllm"), stack="./a,./b", settings=settings, **options)

    for options, message in (
        ({"engine": "vlm"}, "unknown format"),
        ({"each": True, "name": "x"}, "--each writes several"),
        ({"each": True, "combination": "ties"}, "nothing to combine"),
        ({"name": "../x"}, "no name for an adapter"),
    ):
        with pytest.raises(UsageError, match=message):
            plan(**options)
    (project / "out" / "a-b").mkdir(parents=True)
    (project / "out" / "a-b" / "kept").touch()
    with pytest.raises(LocalIOError, match="is there already"):
        plan()
    plan(name="another")
    with pytest.raises(UsageError, match="nothing says which adapters"):
        plan_handoff(project / "out", "vllm", stack="", base="tiny-llama", settings=settings)


def test_the_command(project: Path, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "out", "--format", "vllm", "--stack", "./a,./b=0.5", "--dry-run"]) == 0
    assert not (project / "out").exists()
    assert main(["export", "--out", "out", "--format", "vllm", "--stack", "./a,./b=0.5", "--name", "both"]) == 0
    done = capsys.readouterr()
    assert "wrote out/both (rank 8, 6 padded" in done.err
    assert "--lora-modules" in done.out and str(project / "out" / "both") in done.out
    assert main(["export", "out", "--format", "sglang", "--stack", "./a", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == "sglang" and told["adapters"][0]["name"] == "a" and told["truncation_error"] == {}
    for words, message in (
        (["export"], "nothing says where to write"),
        (["export", "x.tar", "--stack", "./a"], "is for an engine's format"),
        (["export", "x.tar", "--each"], "is for an engine's format"),
        (["export", "out", "a", "b", "--format", "vllm"], "named as a stack"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err


@pytest.mark.engine
def test_peft_reads_what_vllm_gets(project: Path, settings: Settings) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from adapterhub.ops.load import load

    handoff(plan_handoff(project / "out", "vllm", stack="./a=3,./b=-2", settings=settings))
    ids = torch.arange(24).reshape(1, 24) * 7 % VOCAB
    plain = AutoModelForCausalLM.from_pretrained(project / "base", dtype=torch.float32)
    stacked, _ = load("./a=3,./b=-2", settings=settings)
    with torch.no_grad():
        bare, expected = plain(ids).logits, stacked(ids).logits
        found = PeftModel.from_pretrained(plain, project / "out" / "a-b")(ids).logits
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (bare - expected).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.engine
def test_llama_cpp_agrees_with_the_folded_stack(project: Path, settings: Settings) -> None:
    if not llama_cpp.available():
        pytest.skip("xllamacpp is not installed (XLLAMACPP_PYTHON)")
    import torch

    from adapterhub.ops.load import load

    every = (*LINEARS, "lm_head")
    tiny_lora(project / "c", project / "base", r=4, lora_alpha=64, target_modules=every, seed=2, name="c")
    stack = "./c,./b=-3"
    result = handoff(plan_handoff(project / "out", "llama.cpp", stack=stack, name="strong", settings=settings))
    path = project / "out" / "strong.gguf"
    assert [item.path for item in result.plan.adapters] == [path]
    assert shlex.split(result.plan.commands[0].text) == ["llama-server", "-m", "BASE.gguf", "--lora", str(path)]
    config = json.loads((project / "base" / "config.json").read_text())
    base = llama_cpp.write_base(project / "base.gguf", config, read_tensors(project / "base"), vocab=VOCAB)
    prompts = ([5, 9, 77, 31, 8, 200, 13], list(range(40, 60)))
    found = llama_cpp.log_probabilities(base, prompts, path)
    bare = llama_cpp.log_probabilities(base, prompts)
    model, _ = load(stack, dtype="float32", settings=settings)
    for prompt, with_it, without in zip(prompts, found, bare, strict=True):
        with torch.no_grad():
            expected = torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1], -1)
        assert len(with_it) == len(without) == VOCAB
        assert max(abs(with_it[token] - float(expected[token])) for token in with_it) < 1e-4
        assert max(abs(without[token] - float(expected[token])) for token in without) > 1
