"""`adapt run` as a user types it: processes of their own, pipes, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapterhub.cli.main import main
from adapterhub.settings import Settings
from tests.factory import VOCAB, edit_json, edit_tensors, tiny_llama
from tests.ops.world import World, flip_last_byte

ADAPT = [sys.executable, "-m", "adapterhub.cli.main"]
PLAIN = ["--device-map", "cpu", "--dtype", "float32"]
ENDLESS = ["--max-new-tokens", "400000"]


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    world = World(root=tmp_path, settings=settings, base=_talker(tmp_path / "base"))
    world.yaml("base_model: tiny-llama\n")
    world.add_base(world.base)
    return world


def _talker(folder: Path) -> Path:
    """A model that says the same two-byte character for ever: its context is long, and it never ends a turn."""
    base = tiny_llama(folder)
    edit_json(base / "config.json", max_position_embeddings=1_000_000)

    def speak(tensors):
        # The layers add nothing, so each token's embedding alone chooses the next one: 0xC3 → 0xA9 → 0xC3 …
        for name, tensor in tensors.items():
            if "layers" in name and not name.endswith("norm.weight"):
                tensor[:] = 0
        width = tensors["model.embed_tokens.weight"].shape[1]
        tensors["model.embed_tokens.weight"][:] = 0
        tensors["model.embed_tokens.weight"][:, 0] = 1
        tensors["model.embed_tokens.weight"][0xC3] = [0, 1, *[0] * (width - 2)]
        tensors["lm_head.weight"][:] = 0
        tensors["lm_head.weight"][0xC3, 0] = 1
        tensors["lm_head.weight"][0xA9, 1] = 1
        assert VOCAB > 0xC3
        return tensors

    edit_tensors(base / "model.safetensors", speak)
    return base


def adapt(world: World, *args: str, stdin: bytes | None = None, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [*ADAPT, "run", *args],
        cwd=world.project,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return done


def here(world: World, monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """Run the command in this process, which has torch already; return its exit code."""
    monkeypatch.chdir(world.project)
    return main(["run", *args])


def start(world: World, *args: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*ADAPT, "run", *args],
        cwd=world.project,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.engine
def test_a_prompt_is_answered_on_stdout_and_the_rest_goes_to_stderr(world: World) -> None:
    done = adapt(world, "hi", "--max-new-tokens", "6", *PLAIN)
    assert done.stdout.decode() == "ééé\n"
    assert "using no adapter: the bare base model tiny-llama" in done.stderr.decode()


@pytest.mark.engine
def test_half_a_character_at_the_end_is_shown_as_such(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(world, monkeypatch, "hi", "--max-new-tokens", "5", *PLAIN) == 0
    assert capsys.readouterr().out == "éé\ufffd\n"


def test_a_piped_prompt_is_read_less_its_last_line_break(world: World) -> None:
    def planned(*args: str, stdin: str | None = None) -> object:
        given = None if stdin is None else stdin.encode()
        return json.loads(adapt(world, *args, "--dry-run", "--json", stdin=given).stdout)["prompt"]

    assert planned("¿Qué?\nsí") == "¿Qué?\nsí"
    for text in ("¿Qué?\nsí", "¿Qué?\nsí\n", "¿Qué?\nsí\r\n"):
        assert planned(stdin=text) == "¿Qué?\nsí"
    assert planned("-", stdin="one\n\n") == "one\n"


@pytest.mark.engine
def test_json_is_one_value_with_the_text_in_it(world: World) -> None:
    folder = world.build("one")
    done = adapt(world, "hi", "--stack", f"{folder}=0.5", "--json", "--max-new-tokens", "4", *PLAIN)
    data = json.loads(done.stdout)
    assert data["text"] == "éé"
    assert (data["finish_reason"], data["new_tokens"], data["base"]) == ("length", 4, "tiny-llama")
    assert data["stack"][0] == {
        "word": str(folder),
        "name": "tiny",
        "version": "1.0.0",
        "weight": 0.5,
        "path": str(folder),
    }
    assert "using" not in done.stderr.decode()


@pytest.mark.engine
def test_raw_and_system_change_what_the_model_reads(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def count(*args: str) -> int:
        assert here(world, monkeypatch, "hello", "--json", "--max-new-tokens", "2", *args, *PLAIN) == 0
        return json.loads(capsys.readouterr().out)["prompt_tokens"]

    assert count("--raw") == 5
    assert count("--system", "be brief") - count() == len("<system\nbe brief>\n")


@pytest.mark.engine
def test_a_reader_that_leaves_ends_it_quietly(world: World) -> None:
    process = start(world, "hi", *ENDLESS, *PLAIN)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(4).decode() == "éé"
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait(timeout=30) == 0
    assert "Traceback" not in errors and "BrokenPipe" not in errors


@pytest.mark.engine
def test_tokens_come_as_they_are_made_and_ctrl_c_leaves_them(world: World) -> None:
    process = start(world, "hi", *ENDLESS, *PLAIN)
    assert process.stdout is not None and process.stderr is not None
    first = os.read(process.stdout.fileno(), 64)
    assert first and process.poll() is None
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    rest, errors = process.stdout.read(), process.stderr.read().decode()
    assert process.wait(timeout=30) == 130
    # Every byte that was printed is there, and no character is cut.
    assert set((first + rest).decode()) == {"é"}
    assert "interrupted" in errors and "Traceback" not in errors


def test_a_dry_run_prints_the_plan_and_loads_nothing(world: World) -> None:
    done = adapt(world, "hi", "--dry-run", "--temperature", "0.5", "--seed", "3", "--json")
    data = json.loads(done.stdout)
    assert data["generation"]["temperature"] == 0.5 and data["generation"]["do_sample"] is True
    text = adapt(world, "hi", "--dry-run").stdout.decode()
    assert "generation   greedy, max_new_tokens=256" in text


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ((), 2, "the prompt is empty"),
        (("hi", "--temperature", "0"), 2, "decode greedily"),
        (("hi", "--greedy", "--top-k", "5"), 2, "top_k"),
        (("hi", "--stack", "nobody"), 2, "neither an adapter nor a stack"),
        (("hi", "--base", "nobody"), 1, "adapt base add nobody"),
    ],
)
def test_what_goes_wrong_has_its_exit_code_and_a_hint(
    world: World, args: tuple[str, ...], code: int, words: str
) -> None:
    done = adapt(world, *args, code=code)
    assert done.stdout == b""
    assert words in done.stderr.decode()


@pytest.mark.engine
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--device-map", "abacus"), "not a device"),
        (("--dtype", "int3"), "not a dtype"),
        (("--max-new-tokens", "2000000"), "--max-new-tokens 9"),
    ],
)
def test_what_only_the_engine_can_refuse(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    words: str,
) -> None:
    assert here(world, monkeypatch, "hi", *args) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and words in printed.err


def test_a_prompt_that_is_not_utf8_is_refused(world: World) -> None:
    done = adapt(world, stdin=b"caf\xe9", code=2)
    assert "byte 3 is 0xe9" in done.stderr.decode()


def test_an_adapter_for_another_base_is_refused(world: World) -> None:
    other = World(root=world.root / "w", settings=world.settings, base=tiny_llama(world.root / "other", seed=5))
    done = adapt(world, "hi", "--stack", str(other.build("one", base_id="tiny-llama")), code=4)
    assert "trained on another base model" in done.stderr.decode()


def test_one_changed_byte_is_found(world: World) -> None:
    folder = world.build("one")
    flip_last_byte(folder / "adapter_model.safetensors")
    assert "adapter_model.safetensors" in adapt(world, "hi", "--stack", str(folder), code=3).stderr.decode()
