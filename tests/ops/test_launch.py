"""Several processes for one build: what is started, how it ends, and that one package comes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from adapterhub.errors import UsageError
from adapterhub.ops.launch import Launch, launch, leads, share_threads
from tests.engine.tiny import rows
from tests.factory import tiny_llama


def test_torchrun_is_told_of_processes_and_machines() -> None:
    words = ["build", "recipe.yaml"]
    here = Launch(launcher="torchrun", nproc=4).command(words, device="cpu")
    assert here == [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=4", "--nnodes=1", "--standalone",
        "-m", "adapterhub.cli.main", "build", "recipe.yaml",
    ]  # fmt: skip
    there = Launch(launcher="torchrun", nproc=8, nnodes=2, node_rank=1, master_addr="first", master_port=1234)
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=first", "--master-port=1234"} <= set(
        there.command(words, device="cuda")
    )


def test_accelerate_counts_the_processes_of_all_machines() -> None:
    given = Launch(launcher="accelerate", nproc=8, nnodes=2, node_rank=1, master_addr="first")
    command = given.command(["build"], device="cuda")
    assert {"accelerate.commands.launch", "--num_processes=16", "--num_machines=2", "--machine_rank=1"} <= set(command)
    assert command[-3:] == ["-m", "adapterhub.cli.main", "build"]


@pytest.mark.parametrize(
    ("given", "device", "hint"),
    [
        (Launch(launcher="accelerate", nproc=2), "cpu", "--launch torchrun"),
        (Launch(launcher="torchrun", nproc=2, nnodes=2), "cpu", "--master-addr"),
        (Launch(launcher="mpirun", nproc=2), "cpu", "torchrun, accelerate"),
    ],
)
def test_what_a_launcher_cannot_do_is_refused(given: Launch, device: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        given.command(["build"], device=device)
    assert hint in str(caught.value.hint)


def test_threads_are_shared_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share_threads(10_000)
    assert os.environ["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    share_threads(2)
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_the_first_process_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    for size, rank, first in (("1", "0", True), ("2", "0", True), ("2", "1", False)):
        monkeypatch.setenv("WORLD_SIZE", size)
        monkeypatch.setenv("RANK", rank)
        assert leads() is first


def test_the_launcher_s_end_is_ours(tmp_path: Path) -> None:
    assert launch([sys.executable, "-c", "raise SystemExit(7)"]) == 7
    told = tmp_path / "told"
    code = (
        "import pathlib, signal, sys, time\n"
        "def end(*_): pathlib.Path(sys.argv[1]).write_text('told'); sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "pathlib.Path(sys.argv[1]).write_text('ready')\n"
        "time.sleep(60)\n"
    )

    def send() -> None:
        while not (told.exists() and told.read_text() == "ready"):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    assert launch([sys.executable, "-c", code, str(told)]) == 143
    thread.join()
    assert told.read_text() == "told" and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.engine
@pytest.mark.exhaustive
def test_one_package_comes_of_two_processes(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "tiny-llama")
    chats = [{"messages": [{"role": m.role, "content": m.content} for m in row.messages]} for row in rows(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(chat) for chat in chats))
    recipe = {
        "recipe_version": "1.2", "name": "two", "version": "1.0.0", "base_model": "acme/tiny-llama",
        "data": {"train": "rows.jsonl", "eval_split": 0.2},
        "hyperparameters": {"r": 4, "target_modules": ["q_proj"]},
        "training": {"max_steps": 3, "per_device_train_batch_size": 4, "eval_strategy": "steps"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    environment = {**os.environ, "ADAPTERHUB_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    environment.pop("ADAPTERHUB_THREADS", None)

    def adapt(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "adapterhub.cli.main", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert adapt("base", "add", "acme/tiny-llama", "--from", "tiny-llama").returncode == 0
    words = ("build", "recipe.yaml", "--device", "cpu", "--json", "--launch", "torchrun", "--nproc", "2")
    built = adapt(*words)
    assert built.returncode == 0, built.stderr[-3000:]
    found = json.loads(built.stdout)  # one process prints, once
    assert (found["steps"], found["report"]["ok"]) == (3, True)
    assert "eval_loss_base" in found["metrics"]
    assert sorted(path.name for path in (tmp_path / "dist").iterdir()) == ["two-1.0.0"]
    assert json.loads(adapt(*words).stdout)["nothing_to_do"] is True
