"""Trainings that real signals end, gone on with in other processes: what comes out is what an untouched one gives."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.factory import tiny_llama

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the trainings are forked from a process that is warm"),
]
TIMES = ("seconds", "tokens_per_second")
# File operations of a training that goes on from a checkpoint and writes the next one.
OPERATIONS = 30


class Trainer:
    """The process of tests/engine/training_child.py."""

    def __init__(self, base: Path, folder: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.engine.training_child", str(base)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.folder = folder
        assert self._answer() == {"ready": True}

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def run(self, name: str, checkpoints: Path | None, **order: Any) -> int:
        """Have one training run in a child; return how it ended, negative for a signal."""
        (self.folder / name).mkdir(exist_ok=True)
        told = {"out": str(self.folder / name), "checkpoints": checkpoints and str(checkpoints), **order}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        return os.waitstatus_to_exitcode(self._answer()["status"])

    def notes(self, name: str) -> list[str]:
        """Return what a training said."""
        found: list[str] = json.loads((self.folder / name / "notes.json").read_text())
        return found

    def made(self, name: str) -> tuple[bytes, dict[str, Any], list[dict[str, Any]]]:
        """Return a training's adapter, its result, and its log without times."""
        out = self.folder / name
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        kept = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
        return (out / "adapter_model.safetensors").read_bytes(), json.loads((out / "result.json").read_text()), kept


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    folder = tmp_path_factory.mktemp("trainings")
    found = Trainer(tiny_llama(folder / "base"), folder)
    yield found
    assert found.process.stdin is not None
    found.process.stdin.close()
    assert found.process.wait(30) == 0


@pytest.fixture(scope="module")
def untouched(trainer: Trainer) -> tuple[bytes, dict[str, Any], list[dict[str, Any]]]:
    """What a training without checkpoints gives."""
    assert trainer.run("untouched", None) == 0
    adapter, result, log = trainer.made("untouched")
    assert result["steps"] == 24
    assert [line["step"] for line in log if "loss" in line] == [3, 6, 9, 12, 15, 18, 21, 24]
    assert [line["step"] for line in log if "eval_loss" in line] == [4, 8, 12, 16, 20, 24]
    return adapter, result, log


def test_killed_at_every_step_of_writing_and_at_random_moments(
    trainer: Trainer, untouched: Any, tmp_path: Path
) -> None:
    place, chance = tmp_path / "checkpoints", random.Random(5)
    # Each child goes on from what the one before left, and dies one file operation later than that one did; the last
    # of these kills come after a whole checkpoint was read, one was written, and old ones were taken away.
    for event in range(1, OPERATIONS):
        assert trainer.run("killed", place, kill_at=event) == -signal.SIGKILL
        if event % 6 == 0:
            trainer.run("killed", place, kill_after=chance.uniform(0, 0.2))
    assert len(list(place.glob("step-*"))) >= 2
    assert trainer.run("killed", place) == 0
    assert trainer.made("killed") == untouched
    left = sorted(path.name for path in place.iterdir())
    assert left == ["step-00000023", "step-00000024"]  # save_total_limit: 2, and nothing half made


def test_a_finished_training_is_not_trained_again(trainer: Trainer, untouched: Any, tmp_path: Path) -> None:
    place = tmp_path / "checkpoints"
    assert trainer.run("first", place) == 0
    assert trainer.made("first") == untouched  # checkpoints change nothing
    assert trainer.run("again", place) == 0
    assert trainer.notes("again") == ["going on from the checkpoint of step 24 of 24"]
    assert trainer.made("again") == untouched


@pytest.mark.parametrize(("name", "ended"), [("SIGINT", 130), ("SIGTERM", -signal.SIGTERM)])
def test_a_signal_ends_a_training_after_the_step_and_saves_it(
    trainer: Trainer, untouched: Any, tmp_path: Path, name: str, ended: int
) -> None:
    place = tmp_path / "checkpoints"
    assert trainer.run(name, place, signal=name, at_step=7) == ended
    assert trainer.notes(name) == ["step 7 of 24 is saved: run the same command again to go on"]
    assert trainer.run(name, place) == 0
    assert trainer.notes(name) == ["going on from the checkpoint of step 7 of 24"]
    assert trainer.made(name) == untouched


def test_without_checkpoints_a_signal_ends_at_once(trainer: Trainer) -> None:
    assert trainer.run("unsaved", None, signal="SIGTERM", at_step=2) == -signal.SIGTERM
    assert not (trainer.folder / "unsaved" / "result.json").exists()
