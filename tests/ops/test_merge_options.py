"""What `adapt merge` makes of its options: shards, threads, links, and what a killed merge left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adapterhub.cli.main import main
from adapterhub.errors import IncompatibleError, LocalIOError, UsageError
from adapterhub.ops._unfinished import merging_into
from adapterhub.ops.base import add_base
from adapterhub.ops.merge import merge, plan_merge
from adapterhub.settings import Settings
from adapterhub.weights import open_checkpoint
from tests.factory import adapter_config, edit_tensors, read_tensors, tiny_gpt2, tiny_llama, tiny_lora, write_json
from tests.factory import write_tensors as write


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(tmp_path / "home"))
    return Settings(home=tmp_path / "home")


@pytest.fixture
def base(tmp_path: Path, settings: Settings) -> Path:
    folder = tiny_llama(tmp_path / "base", dtype="bfloat16", layers=3, shards=3)
    add_base("tiny-llama", str(folder), settings=settings)
    return folder


@pytest.fixture
def project(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an adapter, `./a`, and a base in three files."""
    tiny_lora(tmp_path / "a", base, target_modules=("q_proj", "up_proj"), name="a")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("model")}


def test_files_are_limited_in_size_and_the_index_names_them(project: Path, base: Path, settings: Settings) -> None:
    result = merge(plan_merge(project / "out", stack="./a", max_shard_size="20KB", settings=settings))
    merge(plan_merge(project / "plain", stack="./a", settings=settings))
    assert result.report is not None
    count = len(result.report.files)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert count > 3 and list(result.report.files) == names
    index = json.loads((project / "out" / "model.safetensors.index.json").read_text())
    found = open_checkpoint(project / "out")
    assert set(index["weight_map"].values()) == set(names) and index["weight_map"].keys() == found.tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.tensors.values())
    for name in names:
        held = [tensor.nbytes for tensor in found.tensors.values() if tensor.file == name]
        assert sum(held) <= 20_000 or len(held) == 1
    one, other = read_tensors(project / "out"), read_tensors(project / "plain")
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in other)


def test_all_in_one_file_has_no_index(project: Path, settings: Settings) -> None:
    merge(plan_merge(project / "out", stack="./a", max_shard_size="1GB", settings=settings))
    assert files_of(project / "out").keys() == {"model.safetensors"}
    assert len(read_tensors(project / "out")) == len(read_tensors(project / "base"))


@pytest.mark.parametrize("text", ["", "two", "0", "2XB", "-1GB", "GB"])
def test_what_is_no_size_is_refused(project: Path, settings: Settings, text: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        plan_merge(project / "out", stack="./a", max_shard_size=text, settings=settings)


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_any_number_of_threads_writes_the_same_bytes(
    project: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, dtype: str | None
) -> None:
    monkeypatch.setattr("adapterhub.algebra.streaming.PIECE_BYTES", 3000)  # many pieces a file
    for workers in (1, 2, 5):
        merge(plan_merge(project / f"out{workers}", stack="./a", workers=workers, dtype=dtype, settings=settings))
    assert files_of(project / "out1") == files_of(project / "out2") == files_of(project / "out5")
    with pytest.raises(UsageError, match="0 threads"):
        plan_merge(project / "none", stack="./a", workers=0, settings=settings)


def test_a_failure_in_one_thread_ends_the_others_and_leaves_nothing(
    project: Path, base: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapterhub.algebra.streaming.PIECE_BYTES", 1000)
    edit_tensors(project / "a" / "adapter_model.safetensors", lambda t: {k: v * np.nan for k, v in t.items()})
    (project / "a" / "adapter_manifest.json").unlink()
    plan = plan_merge(project / "out", stack="./a", workers=4, settings=settings)
    with pytest.raises(IncompatibleError, match="NaN"):
        merge(plan)
    assert not (project / "out").exists() and not list(project.glob(".out*"))


def test_files_that_nothing_changes_are_links_where_that_is_asked_for(
    project: Path, base: Path, settings: Settings
) -> None:
    last = "model.layers.2.mlp.up_proj.weight"
    found = open_checkpoint(base)
    file = found.tensors[last].file
    other = {name for name in found.files if name != file}
    tiny_lora(project / "one", base, target_modules=("layers.2.mlp.up_proj",), name="one")
    linked = merge(plan_merge(project / "out", stack="./one", link=True, settings=settings))
    copied = merge(plan_merge(project / "copy", stack="./one", settings=settings))
    assert linked.report is not None and set(linked.report.linked) == other
    for name in other:
        assert (project / "out" / name).read_bytes() == (project / "copy" / name).read_bytes()
        assert (project / "out" / name).read_bytes() == (base / name).read_bytes()
        assert not (project / "copy" / name).samefile(base / name)
        shares = (project / "out" / name).samefile(base / name)
        assert shares or (project / "out" / name).stat().st_nlink == 1  # a file system with reflinks shares blocks
    assert files_of(project / "out") == files_of(project / "copy")
    assert copied.report is not None and not (project / "out" / file).samefile(base / file)


_STOP_AFTER = """
import sys, time
from pathlib import Path
from adapterhub.ops._unfinished import Unfinished
from adapterhub.ops.merge import merge, plan_merge
plain, left = Unfinished.finished, [int(sys.argv[1])]
def stopping(self, file, reports):
    plain(self, file, reports)
    left[0] -= 1
    if not left[0]:
        print(file, flush=True)
        time.sleep(60)
Unfinished.finished = stopping
merge(plan_merge(Path("out"), stack="./a", workers=1))
"""


def killed_after(count: int, cwd: Path) -> None:
    command = [sys.executable, "-c", _STOP_AFTER, str(count)]
    run = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, env=os.environ.copy())
    assert run.stdout is not None and run.stdout.readline().startswith(b"model-")
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()


def test_a_killed_merge_is_gone_on_with(project: Path, settings: Settings) -> None:
    merge(plan_merge(project / "whole", stack="./a", settings=settings))
    killed_after(2, project)
    (left,) = project.glob(".out.*.merging")
    before = {path.name: path.stat().st_ino for path in (left / "out").iterdir()}
    assert not (project / "out").exists()
    result = merge(plan_merge(project / "out", stack="./a", settings=settings))
    assert result.report is not None and len(result.report.resumed) == 2
    for name in result.report.resumed:
        assert (project / "out" / name).stat().st_ino == before[name]
    assert files_of(project / "out") == files_of(project / "whole")
    whole = merge(plan_merge(project / "again", stack="./a", settings=settings)).report
    assert whole is not None and result.report.modules == whole.modules and result.report.kept == whole.kept
    assert not list(project.glob(".out*"))


def test_of_other_inputs_nothing_is_taken_over(project: Path, settings: Settings) -> None:
    killed_after(2, project)
    result = merge(plan_merge(project / "out", stack="./a=0.5", settings=settings))
    assert result.report is not None and not result.report.resumed
    merge(plan_merge(project / "whole", stack="./a=0.5", settings=settings))
    assert files_of(project / "out") == files_of(project / "whole")
    assert not list(project.glob(".out*"))


def test_a_base_that_was_written_to_meanwhile_is_another_input(project: Path, base: Path, settings: Settings) -> None:
    killed_after(1, project)
    plan = plan_merge(project / "out", stack="./a", settings=settings)
    for path in base.glob("*.safetensors"):
        os.utime(path, ns=(1, 1))
    assert merge(plan).report.resumed == ()  # type: ignore[union-attr]


def test_a_file_that_is_not_as_it_was_finished_is_written_again(project: Path, settings: Settings) -> None:
    killed_after(2, project)
    (left,) = project.glob(".out.*.merging")
    first = min((left / "out").iterdir())
    os.truncate(first, first.stat().st_size - 1)
    result = merge(plan_merge(project / "out", stack="./a", settings=settings))
    assert result.report is not None and len(result.report.resumed) == 1
    merge(plan_merge(project / "whole", stack="./a", settings=settings))
    assert files_of(project / "out") == files_of(project / "whole")


def test_what_a_living_process_is_at_is_left_to_it(project: Path) -> None:
    with merging_into(project / "out", "one") as first, merging_into(project / "out", "one") as second:
        assert first.folder != second.folder and not second.kept
        (first.out / "x").write_text("first")
    assert (project / "out").is_dir() and not list(project.glob(".out*"))


def test_what_is_there_already_is_left_alone(project: Path) -> None:
    (project / "out").mkdir()
    (project / "out" / "mine").write_text("mine")
    with pytest.raises(LocalIOError, match="not empty"), merging_into(project / "out", "one"):
        pass
    assert (project / "out" / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    "how", [{"dtype": "float32"}, {"max_shard_size": "1GB"}, {"workers": 2}, {"link": True}, {"verify": True}]
)
def test_what_is_for_weights_is_refused_for_an_adapter(
    project: Path, settings: Settings, how: dict[str, object]
) -> None:
    name = next(iter(how)).replace("_", "-")
    with pytest.raises(UsageError, match=f"--{name} is for merged weights"):
        plan_merge(project / "one", stack="./a", as_adapter=True, settings=settings, **how)  # type: ignore[arg-type]


def test_the_command_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["merge", "--stack", "./a", "--out", "out", "--max-shard-size", "30KB", "--workers", "2", "--link"]
    assert main([*given, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert main([*given, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["report"]["files"] == plan["files"] and len(plan["files"]) > 3
    assert result["agreement"] is None and result["report"]["replaced"] == []
    assert main(["merge", "--stack", "./a", "--out", "x", "--max-shard-size", "big"]) == 2
    shutil.rmtree(project / "out")
    killed_after(1, project)
    assert main(["merge", "--stack", "./a", "--out", "out"]) == 0
    assert "1 of its files were written by a merge that was killed" in capsys.readouterr().err


def vectors(folder: Path, base: Path) -> Path:
    """Write an (IA)³ over a GPT-2, without torch."""
    folder.mkdir()
    rng, tensors = np.random.default_rng(0), {}
    for name, value in read_tensors(base).items():
        if name.endswith("c_attn.weight"):
            shape: tuple[int, ...] = (value.shape[1], 1)
        elif name.endswith("mlp.c_proj.weight"):
            shape = (1, value.shape[0])
        else:
            continue
        tensors[f"base_model.model.transformer.{name.removesuffix('.weight')}.ia3_l"] = rng.normal(1, 0.2, shape)
    write(folder / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "IA3",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny-gpt2",
        "target_modules": ["c_attn", "mlp.c_proj"],
        "feedforward_modules": ["mlp.c_proj"],
        "fan_in_fan_out": True,
    }
    write_json(folder / "adapter_config.json", config)
    return folder


def test_another_method_than_lora_is_merged_and_told(tmp_path: Path, settings: Settings) -> None:
    base = tiny_gpt2(tmp_path / "gpt2")
    bias = np.random.default_rng(1).normal(size=96)
    edit_tensors(base / "model.safetensors", lambda tensors: tensors | {"h.0.attn.c_attn.bias": bias})
    add_base("tiny-gpt2", str(base), settings=settings)
    adapter = vectors(tmp_path / "ia3", base)
    plan = plan_merge(tmp_path / "out", stack=str(adapter), settings=settings)
    assert dict(plan.facts())["changes"] == "6 tensors, rank none"
    merge(plan)
    before, after, own = read_tensors(base), read_tensors(tmp_path / "out"), read_tensors(adapter)
    at = "base_model.model.transformer.h.0"
    output, inputs = own[f"{at}.attn.c_attn.ia3_l"], own[f"{at}.mlp.c_proj.ia3_l"]
    name = "h.0.attn.c_attn"
    np.testing.assert_allclose(after[f"{name}.weight"], before[f"{name}.weight"] * output.reshape(1, -1), rtol=1e-6)
    np.testing.assert_allclose(after[f"{name}.bias"], before[f"{name}.bias"] * output.reshape(-1), rtol=1e-6)
    name = "h.0.mlp.c_proj.weight"
    np.testing.assert_allclose(after[name], before[name] * inputs.reshape(-1, 1), rtol=1e-6)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Changed by `ia3` (https://arxiv.org/abs/2205.05638), in float32, rounded once to float32." in card
    merge(plan_merge(tmp_path / "half", stack=f"{adapter}=0.5", settings=settings))
    half = before[name] * (1 + 0.5 * (inputs.reshape(-1, 1) - 1))
    np.testing.assert_allclose(read_tensors(tmp_path / "half")[name], half, rtol=1e-6)


def test_a_vocabulary_that_grew_is_written_and_told(project: Path, base: Path, settings: Settings) -> None:
    rng = np.random.default_rng(4)
    embedding, head = rng.normal(size=(270, 32)), rng.normal(size=(270, 32))
    (project / "a" / "adapter_manifest.json").unlink()
    extra = {"base_model.model.model.embed_tokens.weight": embedding, "base_model.model.lm_head.weight": head}
    edit_tensors(project / "a" / "adapter_model.safetensors", lambda tensors: tensors | extra)
    result = merge(plan_merge(project / "out", stack="./a", dtype="float32", settings=settings))
    after = read_tensors(project / "out")
    np.testing.assert_array_equal(after["model.embed_tokens.weight"], embedding.astype(np.float32))
    np.testing.assert_array_equal(after["lm_head.weight"], head.astype(np.float32))
    assert json.loads((project / "out" / "config.json").read_text())["vocab_size"] == 270
    assert result.report is not None and result.report.replaced == ("lm_head.weight", "model.embed_tokens.weight")
    card = (project / "out" / "README.md").read_text()
    assert "Taken whole from the adapter: `lm_head.weight`, `model.embed_tokens.weight`." in card
    head[3, 3] = np.nan
    edit_tensors(project / "a" / "adapter_model.safetensors", lambda tensors: tensors | extra)
    with pytest.raises(IncompatibleError, match="NaN"):
        merge(plan_merge(project / "other", stack="./a", settings=settings))


def test_methods_that_no_weights_can_hold_are_refused(project: Path, settings: Settings) -> None:
    folder = project / "other"
    folder.mkdir()
    write(folder / "adapter_model.safetensors", {"base_model.model.model.layers.0.self_attn.q_proj.x": np.ones((2, 2))})
    config = adapter_config(base_model_name_or_path="tiny-llama") | {"peft_type": "FOURIERFT"}
    write_json(folder / "adapter_config.json", config)
    with pytest.raises(IncompatibleError):
        plan_merge(project / "out", stack="./other", settings=settings)
