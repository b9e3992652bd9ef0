"""The chat of `adapt run` on a terminal: lines read with editing and history, commands, answers as they come."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.cli import console
from adapterhub.cli.progress import open_progress
from adapterhub.errors import AdapterHubError, UsageError
from adapterhub.ops.chat import Chat, ChatPlan
from adapterhub.settings import Settings

if TYPE_CHECKING:
    from adapterhub.ops.load import LoadPlan

_PROMPT = "> "
_KEPT_LINES = 1000
_GAP = "  │  "
# Two columns narrower than this are harder to read than one answer after the other.
_NARROWEST = 36
HELP = (
    ("/stack STACK", "another stack answers, such as medical=0.5,spanish; bare: the base alone; nothing: say which"),
    ("/compare TEXT", "ask the base and the stack, side by side; the conversation goes on without it"),
    ("/compare on|off", "do so with every message; the stack's answer is remembered"),
    ("/system TEXT", "set the system prompt; nothing: say it; none: leave it out"),
    ("/reset", "forget what was said"),
    ("/seed N", "sample, every answer from this seed"),
    ("/help", "this list"),
    ("/exit", "end, as Ctrl-D does; Ctrl-C stops an answer"),
)


def run_chat(plan: ChatPlan, *, settings: Settings) -> None:
    """Converse until Ctrl-D.

    Raises:
        What loading the first stack raises; later errors are told, and the chat goes on.
    """
    with open_progress() as progress:
        chat = Chat(plan, progress=progress)
    console.say(f"{chat.stack_label()} ({plan.load.base.ref.id}); /help lists the commands, Ctrl-D ends")
    if not chat.remembers:
        console.warn("there is no chat template: every message is gone on with by itself, without what came before")
    with _line_history(settings.cache / "chat_history"):
        _Session(chat).go()


class _Session:
    def __init__(self, chat: Chat) -> None:
        self.chat, self.comparing = chat, False
        self.commands: dict[str, Callable[[str], None]] = {
            "stack": self._stack,
            "compare": self._compare,
            "system": self._set_system,
            "reset": self._reset,
            "seed": self._seed,
            "help": self._help,
        }

    def go(self) -> None:
        """Read and answer lines until the input ends."""
        while True:
            try:
                line = input(_PROMPT).strip()
            except EOFError:
                console.write("\n")
                return
            except KeyboardInterrupt:
                console.write("\n")
                console.say("Ctrl-D ends the chat")
                continue
            if line in ("/exit", "/quit"):
                return
            if not line:
                continue
            try:
                self._take(line)
            except KeyboardInterrupt:
                console.write("\n")
                console.say("stopped")
            except AdapterHubError as error:
                console.print_error(error)

    def _take(self, line: str) -> None:
        if not line.startswith("/"):
            self._ask(line)
            return
        word, _, rest = line[1:].partition(" ")
        command = self.commands.get(word)
        if command is None:
            near = get_close_matches(word, [*self.commands, "exit"], n=1)
            hint = f"did you mean /{near[0]}?" if near else "/help lists the commands"
            raise UsageError(f"no such command: /{word}", hint=hint)
        command(rest.strip())

    def _ask(self, text: str) -> None:
        if self.comparing:
            self._side_by_side(text, keep=True)
            return
        _end_line(self.chat.ask(text, write=console.write).text)

    def _stack(self, text: str) -> None:
        if text:
            before = self.chat.reads
            with open_progress() as progress:
                plan = self.chat.switch("" if text == "bare" else text, progress=progress)
            for warning in plan.warnings:
                console.warn(warning)
            if self.chat.reads > before:
                console.say("the base model was read anew: not every stack can be taken out of it again")
        console.say(f"active: {self.chat.stack_label()}")

    def _compare(self, text: str) -> None:
        if text in ("on", "off"):
            self.comparing = text == "on"
            console.say(f"base and stack {'both answer' if self.comparing else 'are compared no longer'}")
        elif text:
            self._side_by_side(text, keep=False)
        else:
            raise UsageError("there is nothing to compare by", hint="/compare TEXT, or /compare on")

    def _side_by_side(self, text: str, *, keep: bool) -> None:
        """Show the base's answer and the stack's: in two columns, or as they come where columns would be narrow."""
        chat = self.chat
        bare = chat.bare()
        heads = (f"base: {bare.base.ref.id}", f"stack: {chat.stack_label()}")
        width = (shutil.get_terminal_size().columns - len(_GAP)) // 2
        if width >= _NARROWEST:
            with open_progress() as progress, progress.task("base and stack", total=None):
                left = chat.aside(text, stack=bare).text
                right = (chat.ask(text) if keep else chat.aside(text)).text
            console.print_lines(columns(heads, (left, right), width))
            return
        console.print_lines([heads[0]])
        _end_line(_streamed(chat, text, bare))
        console.print_lines([heads[1]])
        _end_line(chat.ask(text, write=console.write).text if keep else _streamed(chat, text, None))

    def _set_system(self, text: str) -> None:
        if text:
            self.chat.system = None if text == "none" else text
        console.say("system: none" if self.chat.system is None else f"system: {self.chat.system}")

    def _reset(self, text: str) -> None:
        _no_words("/reset", text)
        self.chat.reset()
        console.say("what was said is forgotten")

    def _seed(self, text: str) -> None:
        if not (text.isascii() and text.isdigit()):
            raise UsageError("a seed is a whole number", hint="/seed 1")
        self.chat.seed(int(text))
        console.say(str(self.chat.generation))

    def _help(self, text: str) -> None:
        _no_words("/help", text)
        console.print_facts(HELP)


def _streamed(chat: Chat, text: str, stack: LoadPlan | None) -> str:
    return chat.aside(text, stack=stack, write=console.write).text


def _no_words(command: str, text: str) -> None:
    if text:
        raise UsageError(f"{command} takes no words (given {text!r})", hint="/help lists the commands")


def _end_line(text: str) -> None:
    if not text.endswith("\n"):
        console.write("\n")


def columns(heads: Sequence[str], texts: Sequence[str], width: int) -> list[str]:
    """Return two texts beside each other, each under its head, in columns of `width` cells of a terminal."""
    from rich.cells import cell_len

    sides = [
        [*wrapped(head, width), "─" * width, *wrapped(text, width)] for head, text in zip(heads, texts, strict=True)
    ]
    # The rule under both heads stands in one line.
    deep = max(side.index("─" * width) for side in sides)
    left, right = ([*side[:at], *[""] * (deep - at), *side[at:]] for side in sides for at in [side.index("─" * width)])
    count = max(len(left), len(right))
    left, right = (side + [""] * (count - len(side)) for side in (left, right))
    return [f"{a}{' ' * (width - cell_len(a))}{_GAP}{b}".rstrip() for a, b in zip(left, right, strict=True)]


def wrapped(text: str, width: int) -> list[str]:
    """Return a text's lines broken to a width in cells, between words where they are not too long for it."""
    from rich.cells import cell_len, chop_cells

    lines: list[str] = []
    for part in console.visible(text).expandtabs(4).split("\n"):
        line = ""
        for word in part.split(" "):
            longer = f"{line} {word}" if line else word
            if cell_len(longer) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            *full, line = chop_cells(word, width) or [""]
            lines += full
        lines.append(line)
    return lines


@contextmanager
def _line_history(path: Path) -> Iterator[None]:
    """Edit lines where the system has readline, with those of earlier chats; only the user may read the file."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    readline.set_history_length(_KEPT_LINES)
    readline.clear_history()
    with suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        # What was typed is lost where the disk says no: that is no reason to end with an error.
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            path.chmod(0o600)
            readline.write_history_file(path)
