"""Base models that build, run and merge need and that are not here: processes of their own against a real Hub."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapterhub.bases import BaseStore
from adapterhub.ops.base import show_base
from adapterhub.settings import Settings, read_settings
from tests.factory import tiny_llama, tiny_lora
from tests.hub.faults import Stall
from tests.hub.fixtures import hub_environment
from tests.hub.server import Hub

ID = "org/tiny"
WEIGHTS = "model.safetensors"
ADAPT = [sys.executable, "-m", "adapterhub.cli.main"]
MERGE = ["merge", "--stack", "./lora", "--out", "out"]


class Desk:
    """A folder with an adapter for a base model that only the Hub has, and `adapt` run there."""

    def __init__(self, root: Path, hub: Hub) -> None:
        self.hub = hub
        self.folder = root / "work"
        self.cache = root / "hf" / "hub"
        self.base = tiny_llama(root / "plain")
        self.environment = hub_environment(hub, root / "hf")
        self.files = {path.name: path.read_bytes() for path in self.base.iterdir()}
        hub.add_repo(ID, self.files, tags=("v1",))
        tiny_lora(self.folder / "lora", self.base, base_id=ID)

    def __call__(self, *words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*ADAPT, *words],
            cwd=self.folder,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*ADAPT, *words], cwd=self.folder, env=self.environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )

    @property
    def bases(self) -> dict[str, str | None]:
        """The base models that are here, with their revisions."""
        return {record.ref.id: record.ref.revision for record in BaseStore(read_settings()).list()}

    def asked_for_weights(self) -> bool:
        """Whether anybody asked for the weights' body."""
        etag = self.hub.repo(ID).head.files[WEIGHTS].etag
        return bool(self.hub.seen("GET", f"*{etag}*"))


@pytest.fixture
def desk(tmp_path: Path, hub: Hub, settings: Settings) -> Desk:
    del settings
    return Desk(tmp_path, hub)


def test_where_nobody_can_be_asked_nothing_is_downloaded(desk: Desk) -> None:
    done = desk(*MERGE, code=1)
    assert f"base model {ID} is not here" in done.stderr
    assert f"hint: add --yes, or first: adapt base add {ID}" in done.stderr
    assert not desk.asked_for_weights() and not desk.cache.exists() and not (desk.folder / "out").exists()


def test_a_dry_run_shows_the_download_and_does_nothing(desk: Desk) -> None:
    plan = json.loads(desk(*MERGE, "--dry-run", "--json").stdout)
    sizes = {step["subject"]: step["bytes"] for step in plan["steps"] if step["action"] == "fetch"}
    assert sizes == {name: len(data) for name, data in desk.files.items()}
    assert (plan["verb"], plan["steps"][-1]["action"]) == ("merge", "merge")
    shown = desk(*MERGE, "--dry-run")
    assert f"fetch  {WEIGHTS}" in shown.stdout and "nothing was done" in shown.stderr
    assert not desk.asked_for_weights() and not desk.cache.exists() and not desk.bases


def test_yes_downloads_and_from_then_on_no_connection_is_needed(desk: Desk) -> None:
    done = desk(*MERGE, "--yes")
    assert f"base model {ID} is not here: downloading" in done.stderr and f"added {ID} (" in done.stderr
    assert (desk.folder / "out" / WEIGHTS).is_file() and desk.bases == {ID: desk.hub.repo(ID).head.oid}
    desk.hub.forget()
    desk("merge", "--stack", "./lora", "--out", "again", HF_HUB_OFFLINE="1")
    assert desk.hub.requests == []
    assert (desk.folder / "again" / WEIGHTS).read_bytes() == (desk.folder / "out" / WEIGHTS).read_bytes()
    shutil.rmtree(desk.cache)
    done = desk("merge", "--stack", "./lora", "--out", "third", code=1)
    assert f"base model {ID} is not here" in done.stderr
    desk("merge", "--stack", "./lora", "--out", "third", "--yes")


def test_what_the_hub_s_cache_holds_is_used_without_a_question_or_a_connection(desk: Desk) -> None:
    desk("base", "add", ID)
    BaseStore(read_settings()).remove(ID)
    desk.hub.forget()
    done = desk(*MERGE)
    assert f"added {ID} (" in done.stderr and desk.hub.requests == []
    BaseStore(read_settings()).remove(ID)
    desk("merge", "--stack", "./lora", "--out", "again", HF_HUB_OFFLINE="1")
    assert desk.hub.requests == [] and ID in desk.bases


def test_offline_and_not_in_the_cache(desk: Desk) -> None:
    done = desk(*MERGE, "--yes", HF_HUB_OFFLINE="1", code=5)
    assert "not whole, in the Hub's cache" in done.stderr and desk.hub.requests == []


def test_what_costs_nothing_is_checked_before_anybody_is_asked(desk: Desk) -> None:
    (desk.folder / "out").mkdir()
    (desk.folder / "out" / "mine.txt").write_text("kept")
    desk(*MERGE, "--yes", code=9)
    desk("merge", "--stack", "./none", "--out", "new", "--yes", code=1)
    (desk.folder / "lora" / "adapter_model.safetensors").write_bytes(b"broken")
    desk("merge", "--stack", "./lora", "--out", "new", "--yes", code=3)
    assert desk.hub.requests == []


def test_a_name_without_an_organization_is_never_looked_for(desk: Desk) -> None:
    tiny_lora(desk.folder / "own", desk.base, base_id="mine")
    done = desk("merge", "--stack", "./own", "--out", "out", "--yes", code=1)
    assert "adapt base add mine --from FOLDER" in done.stderr and desk.hub.requests == []


@pytest.mark.parametrize("by", ["the adapter", "the project"])
def test_the_revision_that_is_written_down_is_the_one_that_comes(desk: Desk, by: str) -> None:
    before = desk.hub.repo(ID).tags["v1"]
    desk.hub.store.put_files(desk.hub.repo(ID), {"generation_config.json": b"{}"})
    if by == "the adapter":
        path = desk.folder / "lora" / "adapter_manifest.json"
        manifest = json.loads(path.read_text())
        manifest["base_model"]["revision"] = before
        path.write_text(json.dumps(manifest))
    else:
        (desk.folder / "adapters.yaml").write_text(f'project_version: "1.0"\nbase_model: "{ID}#v1"\n')
    desk(*MERGE, "--yes")
    assert desk.bases == {ID: before} and before != desk.hub.repo(ID).head.oid


def test_gated_and_missing_bases_end_with_their_own_codes(desk: Desk) -> None:
    desk.hub.repo(ID).gated = "manual"
    done = desk(*MERGE, "--yes", code=6)
    assert f"{desk.hub.endpoint}/{ID}" in done.stderr
    desk.hub.repo(ID).private = True
    done = desk(*MERGE, "--yes", code=1)
    assert "adapt login" in done.stderr and not desk.cache.exists()


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("\n", 0), ("\x04", 130)])
def test_on_a_terminal_the_size_is_told_and_the_answer_counts(desk: Desk, answer: str, code: int) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*ADAPT, *MERGE],
        cwd=desk.folder,
        env=desk.environment | {"TERM": "dumb"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    received, answered = "", False
    while select.select([master], [], [], 60)[0]:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # Linux: the other end is closed
            break
        received += chunk.decode()
        if "[Y/n]" in received and not answered:
            assert f"Download {ID} (" in received and "KB)?" in received
            assert not desk.asked_for_weights()
            os.write(master, answer.encode())
            answered = True
    os.close(master)
    assert process.wait(timeout=60) == code, received
    assert answered and (desk.folder / "out").exists() == (code == 0)
    assert desk.asked_for_weights() == (code == 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_download_that_is_killed_is_completed_by_the_next(desk: Desk, number: signal.Signals) -> None:
    etag = desk.hub.repo(ID).head.files[WEIGHTS].etag
    desk.hub.faults.add(Stall(seconds=120, after=1000), method="GET", path=f"*{etag}*")
    process = desk.start("base", "add", ID)
    deadline = time.monotonic() + 60
    while not desk.asked_for_weights() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert desk.asked_for_weights()
    begin = time.monotonic()
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    assert time.monotonic() - begin < 20  # it does not wait for the server
    assert not desk.bases
    desk.hub.forget()
    desk("base", "add", ID)
    assert not desk.hub.seen("GET", "*/tokenizer.json")  # what was whole is not fetched again
    assert show_base(ID, settings=read_settings(), verify=True).verified


def test_processes_that_want_the_same_base_agree(desk: Desk) -> None:
    running = [desk.start("base", "add", ID) for _ in range(3)]
    told = sorted(process.communicate(timeout=60)[1].decode().splitlines()[-1][:8] for process in running)
    assert [process.returncode for process in running] == [0, 0, 0]
    assert told == ["added or", "org/tiny", "org/tiny"]  # "… is here already"
    assert show_base(ID, settings=read_settings(), verify=True).verified


def test_the_command_alone_tells_what_it_does(desk: Desk) -> None:
    dry = desk("base", "add", ID, "--dry-run")
    assert f"fetch  {WEIGHTS}" in dry.stdout and "download" in dry.stdout
    added = desk("base", "add", f"{ID}#v1")
    assert added.stderr.splitlines()[-1].startswith(f"added {ID} (LlamaForCausalLM, ")
    (row,) = json.loads(desk("base", "list", "--json").stdout)
    assert (row["source"], row["revision"]) == ("hub-cache", desk.hub.repo(ID).tags["v1"])
    removed = desk("base", "remove", ID, "--dry-run")
    assert "the Hub's cache: `hf cache` manages it" in removed.stdout


@pytest.mark.engine
def test_run_brings_its_base_model(desk: Desk) -> None:
    plan = json.loads(desk("run", "--stack", "./lora", "Hello", "--dry-run", "--json").stdout)
    assert (plan["verb"], plan["steps"][-1]["action"]) == ("run", "run")
    desk("run", "--stack", "./lora", "Hello", code=1)
    done = desk("run", "--stack", "./lora", "Hello", "--yes", "--max-new-tokens", "2", "--device", "cpu", "--json")
    assert json.loads(done.stdout)["new_tokens"] > 0 and ID in desk.bases


@pytest.mark.engine
def test_build_brings_its_base_model_at_the_recipe_s_revision(desk: Desk) -> None:
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "b"}]} for q in "abcdef"]
    (desk.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (desk.folder / "recipe.yaml").write_text(
        f'recipe_version: "1.0"\nname: tiny\nversion: "1.0.0"\nbase_model: "{ID}#v1"\nmethod: lora\n'
        "task: CAUSAL_LM\nhyperparameters: {r: 2}\ndata: {train: rows.jsonl, max_length: 64}\n"
        "training: {max_steps: 1, per_device_train_batch_size: 2}\n"
    )
    plan = json.loads(desk("build", "recipe.yaml", "--dry-run", "--json").stdout)
    assert (plan["verb"], plan["steps"][-1]["action"]) == ("build", "build")
    desk("build", "recipe.yaml", code=1)
    assert not desk.asked_for_weights()
    desk("build", "recipe.yaml", "--yes", "--device", "cpu")
    manifest = json.loads((desk.folder / "dist/tiny-1.0.0/adapter_manifest.json").read_text())
    assert manifest["base_model"]["revision"] == desk.hub.repo(ID).tags["v1"]
