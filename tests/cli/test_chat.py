"""`adapt run` without a prompt on a terminal: typed to and read from a pseudo-terminal, as a person does."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import stat
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from adapterhub.cli._chat import columns, wrapped
from adapterhub.ops.chat import Chat, plan_chat
from adapterhub.ops.run import plan_run, run
from adapterhub.settings import Settings
from adapterhub.spec.generation import Generation
from tests.factory import edit_json, tiny_llama
from tests.ops.world import World

PLAIN = {"device": "cpu", "dtype": "float32"}
LENGTH = 12
_CODES = re.compile("\x1b\\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r|\x07")


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    base = tiny_llama(tmp_path / "base")
    # Long enough for an answer that nobody waits for.
    edit_json(base / "config.json", max_position_embeddings=1_000_000)
    world = World(root=tmp_path, settings=settings, base=base)
    world.yaml("base_model: tiny-llama\n")
    world.add_base(base)
    return world


class Terminal:
    """`adapt run` on a pseudo-terminal; what it wrote and nobody took yet is kept in `seen`, without its codes."""

    def __init__(self, world: World, *args: str) -> None:
        self.master, slave = pty.openpty()
        self.resize(500)  # wider than any line that is typed, which readline would scroll
        environment = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "COLUMNS")}
        self.process = subprocess.Popen(
            [*(sys.executable, "-m", "adapterhub", "run"), *("--device-map", "cpu", "--dtype", "float32"), *args],
            cwd=world.project,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**environment, "TERM": "dumb", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"},
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self.raw, self.seen, self.taken = b"", "", 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=30)
        os.close(self.master)

    def until(self, pattern: str, *, seconds: float = 90) -> str:
        """Read until a pattern shows up behind what was read before; return all up to its end."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.seen!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    data = os.read(self.master, 65536)
                except OSError:  # Linux: the other end is closed
                    data = b""
                assert data, f"ended without {pattern!r}: {self.seen!r}"
                self.raw += data
                self.seen = _CODES.sub("", self.raw.decode("utf-8", "replace"))[self.taken :]
        self.taken += found.end()
        told, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return told

    def say(self, line: str) -> str:
        """Type a line; return what is printed up to the next prompt."""
        os.write(self.master, line.encode() + b"\n")
        self.until(re.escape(line) + "\n")
        return self.until("(?m)^> ")[: -len("> ")]

    def resize(self, width: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))

    def key(self, key: bytes) -> None:
        os.write(self.master, key)


def _take_terminal() -> None:
    """Make the pseudo-terminal the one that Ctrl-C comes from."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def told(world: World, prompt: str, stack: str) -> str:
    """Return what a run of its own answers."""
    options = {**PLAIN, "settings": world.settings, "cwd": world.project}
    return run(plan_run(prompt, stack=stack, generation=Generation(max_new_tokens=LENGTH), **options)).text


def shown(text: str) -> str:
    """Return text as a terminal gets it."""
    from adapterhub.cli.console import visible

    return visible(text) if text.endswith("\n") else visible(text) + "\n"


def test_columns_stand_beside_each_other_by_cells() -> None:
    assert wrapped("two words\n\nabcdefghij", 4) == ["two", "word", "s", "", "abcd", "efgh", "ij"]
    found = columns(("base", "stack"), ("日本語 text", "one"), 6)
    assert found == ["base    │  stack", "──────  │  ──────", "日本語  │  one", "text    │"]
    assert all("\x1b" not in line for line in columns(("a", "b"), ("\x1b[31m", "x"), 20))


@pytest.mark.engine
def test_a_conversation_remembers_switches_and_keeps_what_was_cut(world: World) -> None:
    one = str(world.build("one", lora_alpha=200))
    options = {**PLAIN, "settings": world.settings, "cwd": world.project}
    chat = Chat(plan_chat(stack="", generation=Generation(max_new_tokens=LENGTH), **options))
    first = chat.ask("hello").text
    assert first == told(world, "hello", "")
    aside = chat.aside("and then?").text
    assert chat.ask("and then?").text == aside  # what is asked aside is not remembered
    assert [turn["content"] for turn in chat.turns] == ["hello", first, "and then?", aside]
    chat.switch(f"{one}=0.5")
    assert chat.ask("hello").text != told(world, "hello", f"{one}=0.5")  # what was said before is read too
    chat.reset()
    assert chat.ask("hello").text == told(world, "hello", f"{one}=0.5")
    chat.reset()
    with pytest.raises(Exception, match="nix"):
        chat.switch("nix")
    assert chat.ask("hello").text == told(world, "hello", f"{one}=0.5")
    chat.reset()
    pieces: list[str] = []

    def stop(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.ask("hello", write=stop)
    assert [turn["content"] for turn in chat.turns] == ["hello", "".join(pieces)]
    assert chat.reads == 1


@pytest.mark.engine
def test_a_chat_on_a_terminal(world: World) -> None:
    one = str(world.build("one", lora_alpha=200))
    with Terminal(world, "--stack", "", "--max-new-tokens", str(LENGTH)) as terminal:
        assert "bare tiny-llama" in terminal.until("(?m)^> ")
        assert terminal.say("hello") == shown(told(world, "hello", ""))
        assert "forgotten" in terminal.say("/reset")
        assert f"active: {one} 1.0.0 × 0.5" in terminal.say(f"/stack {one}=0.5")
        assert terminal.say("hello") == shown(told(world, "hello", f"{one}=0.5"))
        assert "did you mean /reset?" in terminal.say("/rest")
        assert "error: " in terminal.say("/stack nix")
        for wide in (True, False):
            terminal.resize(500 if wide else 60)
            terminal.say("/reset")
            both = terminal.say("/compare hello")
            assert ("│" in both) is wide
            for stack in ("", f"{one}=0.5"):
                # In columns a line break is one of the column, so that the beginning is what stands in one piece.
                assert shown(told(world, "hello", stack)).split("\n")[0][:6] in both
            # What was compared is not remembered, and the stack answers as before.
            assert terminal.say("hello") == shown(told(world, "hello", f"{one}=0.5"))
        assert "sampling" in terminal.say("/seed 3")
        assert "system: be brief" in terminal.say("/system be brief")
        assert "/compare on|off" in terminal.say("/help")
        terminal.key(b"\x03")
        assert "Ctrl-D ends" in terminal.until("(?m)^> ")
        terminal.key(b"\x04")
        assert terminal.process.wait(timeout=30) == 0
    history = world.settings.cache / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert f"/stack {one}=0.5" in history.read_text()


@pytest.mark.engine
def test_ctrl_c_stops_the_answer_and_not_the_chat(world: World) -> None:
    with Terminal(world, "--stack", "", "--max-new-tokens", "400000") as terminal:
        terminal.until("(?m)^> ")
        terminal.key(b"hello\n")
        terminal.until("hello\n.{20}")
        terminal.key(b"\x03")
        assert "stopped" in terminal.until("(?m)^> ")
        assert "/help" in terminal.say("/help")
        terminal.key(b"\x04")
        assert terminal.process.wait(timeout=30) == 0
