"""Two processes under torchrun train what one trains; what each takes of a step."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapterhub.engine.distributed import Group, local_device
from adapterhub.engine.steps import StepRows, count_steps, shared_batches
from adapterhub.errors import UsageError
from adapterhub.spec.training import TrainingSpec
from tests.factory import tiny_llama

pytestmark = pytest.mark.engine


def start(base: Path, out: Path, *words: str, processes: int) -> None:
    out.mkdir(exist_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "tests.engine.distributed_child", str(base), str(out), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]


def made(out: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, float]]]:
    from safetensors.torch import load_file

    lines = [json.loads(line) for line in (out / "log-0.jsonl").read_text().splitlines()]
    return load_file(out / "adapter_model.safetensors"), json.loads((out / "result-0.json").read_text()), lines


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    one, two = tmp_path / "one", tmp_path / "two"
    start(base, one, processes=1)
    start(base, two, processes=2)
    (expected, result, lines), (tensors, shared, shared_lines) = made(one), made(two)
    for name, tensor in expected.items():
        assert (tensor - tensors[name]).abs().max().item() < 1e-5, name
    assert shared["loss"] == pytest.approx(result["loss"], abs=1e-5)
    assert shared["tokens"] == result["tokens"]
    for name in ("loss", "grad_norm", "learning_rate", "eval_loss"):
        told = [[line[name] for line in some if name in line] for some in (lines, shared_lines)]
        assert told[1] == pytest.approx(told[0], abs=1e-5) and told[0], name
    # The first process writes, tells and measures; the second does its share.
    assert sorted(path.name for path in two.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "checkpoints", "log-0.jsonl", "result-0.json",
        "result-1.json",
    ]  # fmt: skip
    silent = json.loads((two / "result-1.json").read_text())
    assert (silent["notes"], silent["tasks"]) == ([], [])
    assert silent["loss"] == shared["loss"]  # it knows the whole step's all the same

    # Both go on from one checkpoint: the last one is gone, as if killed before it.
    shutil.rmtree(two / "checkpoints" / "step-00000006")
    start(base, two, processes=2)
    again, resumed, _ = made(two)
    assert resumed["notes"] == ["going on from the checkpoint of step 4 of 6"]
    assert all(bool((again[name] == tensors[name]).all()) for name in tensors)


@pytest.mark.exhaustive
def test_two_processes_begin_with_the_directions_that_the_first_one_finds(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    for name, processes in (("one", 1), ("two", 2)):
        start(base, tmp_path / name, "eva", processes=processes)
    (expected, result, _), (tensors, shared, _) = (made(tmp_path / name) for name in ("one", "two"))
    for name, tensor in expected.items():
        assert (tensor - tensors[name]).abs().max().item() < 1e-5, name
    assert shared["loss"] == pytest.approx(result["loss"], abs=1e-5)


@pytest.mark.parametrize("rows", range(1, 20))
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_a_step_is_shared_whole_and_evenly(rows: int, processes: int) -> None:
    shares = [shared_batches(list(range(rows)), 4, rank=rank, processes=processes) for rank in range(processes)]
    taken = sorted(index for share in shares for batch in share for index in batch)
    assert taken == list(range(rows))
    assert all(len(batch) <= 4 for share in shares for batch in share)
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1


def test_the_rows_of_a_step_follow_from_its_number_alone() -> None:
    spec = TrainingSpec(per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=3, seed=4)
    lengths = [3, 9, 4, 1, 7, 7, 2, 5, 8, 6]
    steps = count_steps(len(lengths), spec)
    straight = [StepRows(lengths, spec).of(step) for step in range(steps)]
    jumping = StepRows(lengths, spec)
    assert steps == 9
    assert [jumping.of(step) for step in (8, 0, 5, 4, 7)] == [straight[step] for step in (8, 0, 5, 4, 7)]
    for epoch in range(3):
        assert sorted(row for rows in straight[3 * epoch : 3 * epoch + 3] for row in rows) == list(range(10))
    assert straight[0:3] != straight[3:6]
    assert [round(jumping.epochs_after(step), 2) for step in range(5)] == [0, 0.4, 0.8, 1.0, 1.4]


def test_alone_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    group = Group(torch.device("cpu"))
    assert (group.first, group.total([2, 0.5]), group.tell("x"), group.gather("y")) == (True, [2, 0.5], "x", ["y"])
    assert local_device("cuda") == "cuda" and local_device(None) is None


def test_a_process_without_a_device_of_its_own_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device(None) == "cpu" and local_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="no CUDA device of its own"):
        local_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_device(None) == local_device("cuda") == "cuda:1" and local_device("cuda:0") == "cuda:0"
    with pytest.raises(UsageError, match="MPS"):
        Group(torch.device("mps"))
