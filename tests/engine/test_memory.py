"""A batch too large for the memory is halved and its step taken again; a full disk costs no training."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.engine import adapters
from adapterhub.engine.memory import is_out_of_memory, memory_errors
from adapterhub.engine.train import train
from adapterhub.errors import BuildError, ExitCode
from adapterhub.spec.training import TrainingSpec
from tests.engine.tiny import Recorder, examples, hyperparameters, load
from tests.factory import tiny_llama

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


def allocator(limit: int, error: Callable[[], Exception], first: int = 0) -> Any:
    """Return a hook that fails as an allocator would, for batches of more rows than a limit, after the first."""
    calls = [0]

    def fail(_: Any, args: Any, given: dict[str, Any]) -> None:
        calls[0] += given["input_ids"].shape[0] > limit
        if calls[0] > first and given["input_ids"].shape[0] > limit:
            raise error()

    return fail


def run(folder: Path, tmp_path: Path, hook: Any = None, **settings: Any) -> tuple[dict[str, Any], Any, Recorder]:
    base = load(folder)
    spec = TrainingSpec(**{"learning_rate": 1e-2, "seed": 1, "max_steps": 4, "logging_steps": 1, **settings})
    model = adapters.attach(base, hyperparameters(), task="CAUSAL_LM", seed=1)
    if hook is not None:
        model.get_base_model().register_forward_pre_hook(hook, with_kwargs=True)
    recorder = Recorder.new()
    result = train(
        model, base, examples(base, 8), spec, pad_id=0, log=tmp_path / "log.jsonl", progress=recorder,
        checkpoints=tmp_path / "checkpoints",
    )  # fmt: skip
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}, result, recorder


def cuda() -> Exception:
    import torch

    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def cpu() -> Exception:
    return RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried …")


@pytest.mark.parametrize("error", [cuda, cpu, MemoryError])
def test_the_step_is_taken_again_in_halves(folder: Path, tmp_path: Path, error: Any) -> None:
    """All 8 rows are one step, so that a training in batches of 2 has the same rows in every step."""
    # The third step fails, after two that fitted.
    halved, result, recorder = run(
        folder, tmp_path, allocator(2, error, first=2), per_device_train_batch_size=8, save_strategy="no"
    )
    small, expected, _ = run(
        folder, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, save_strategy="no"
    )
    for name, tensor in small.items():
        assert (tensor - halved[name]).abs().max().item() < 1e-6, name
    assert result.loss == pytest.approx(expected.loss, abs=1e-6)
    assert (result.steps, result.tokens, result.batch) == (4, expected.tokens, 2)
    assert [note.partition(":")[0] for note in recorder.notes] == ["memory ran out at step 3"] * 2
    assert "batches of 4 rows instead of 8" in recorder.notes[0] and "2 rows instead of 4" in recorder.notes[1]


def test_smaller_batches_are_kept_over_an_interruption(folder: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def stop(*_: Any) -> None:
        raise Killed

    settings = {"per_device_train_batch_size": 4, "save_steps": 1}
    whole, result, _ = run(folder, tmp_path / "", allocator(2, cuda), **settings)
    assert result.batch == 2
    newest = tmp_path / "checkpoints" / "step-00000004"
    (newest / "values.json").unlink()
    resumed, result, _ = run(folder, tmp_path, **settings)  # nothing fails any more
    assert (result.resumed_at, result.batch) == (3, 2)
    import torch

    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_single_row_that_does_not_fit_says_what_helps(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="memory ran out") as caught:
        run(folder, tmp_path, allocator(0, cuda), per_device_train_batch_size=4)
    assert caught.value.exit_code is ExitCode.BUILD_FAILED
    assert "gradient_checkpointing" in str(caught.value.hint)


def test_what_else_goes_wrong_is_no_lack_of_memory(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="something else"), memory_errors("hint"):
        raise RuntimeError("something else")
    with pytest.raises(RuntimeError, match="shapes"):
        run(folder, tmp_path, allocator(0, lambda: RuntimeError("shapes differ")))


def test_an_allocator_s_own_words_are_known() -> None:
    """What this torch says where the system gives no more memory, in a process that may have little."""
    code = (
        "import resource, torch; from adapterhub.engine.memory import is_out_of_memory as told\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, -1))\n"
        "try: torch.ones(2**30)\n"
        "except Exception as error: print(told(error), type(error).__name__)\n"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("the size of this process is not told")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout.startswith("True"), found.stdout + found.stderr
    assert is_out_of_memory(cuda()) and not is_out_of_memory(ValueError("not enough memory"))


def test_a_disk_that_fills_up_costs_no_training(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    plain, *_ = run(folder, tmp_path, save_strategy="no")
    written, flush = [0], os.fsync

    def full(handle: int) -> None:
        written[0] += 1
        if 7 <= written[0] <= 8:  # in the second checkpoint, and again in the third
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    monkeypatch.setattr(os, "fsync", full)
    trained, result, recorder = run(folder, tmp_path, save_steps=1, save_total_limit=1)
    assert all(torch.equal(plain[name], trained[name]) for name in plain)
    assert recorder.notes[0] == (
        "the checkpoint of step 2 could not be written (No space left on device); the one of step 1 is kept"
    )
    assert len(recorder.notes) == 2
    assert result.steps == 4
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
