"""The pages of docs/ that are made from the code: `python -m adapterhub.cli.docs [FOLDER]` writes them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click

from adapterhub.catalog.checks import CHECKS
from adapterhub.catalog.families import FAMILIES
from adapterhub.catalog.licence_checks import LICENCE_CHECKS
from adapterhub.catalog.method_targets import IA3_MODULES, NORMS
from adapterhub.catalog.methods import METHODS, Method
from adapterhub.catalog.own_methods import BASELINE
from adapterhub.catalog.tasks import TASKS
from adapterhub.cli import console
from adapterhub.cli.main import PROGRAM, cli
from adapterhub.errors import EXIT_MEANINGS, SEVERITY_ORDER, ExitCode
from adapterhub.files import write_atomic
from adapterhub.settings import VARIABLES
from adapterhub.spec.report import Severity

_WIDTH = 100
_MADE = "<!-- Made from the code by `make docs`; edit the code, not this page. -->\n"


def pages() -> Mapping[str, str]:
    """Return every generated page by its file name below docs/."""
    return {"cli.md": _cli_page(), "errors.md": _errors_page(), "methods.md": _methods_page()}


def help_text(path: list[str]) -> str:
    """Return what `adapt … --help` prints on a line of 100 columns, for a command named word by word.

    Raises:
        KeyError: there is no such command.
    """
    context = _context(cli, PROGRAM, None)
    for name in path:
        group = context.command
        command = group.get_command(context, name) if isinstance(group, click.Group) else None
        if command is None:
            raise KeyError(name)
        context = _context(command, name, context)
    return context.get_help() + "\n"


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    settings = {**command.context_settings, "terminal_width": _WIDTH, "max_content_width": _WIDTH}
    return click.Context(command, parent, name, **settings)


def _commands(group: click.Group, path: list[str], parent: click.Context | None = None) -> Iterator[list[str]]:
    """Yield the path of every command, a group before its own."""
    context = click.Context(group, parent, path[-1] if path else PROGRAM)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        yield [*path, name]
        if isinstance(command, click.Group):
            yield from _commands(command, [*path, name], context)


def _cli_page() -> str:
    parts = [
        _MADE,
        "# Command line\n",
        "Data go to stdout, everything else to stderr. With `--json`, stdout holds one JSON value, or nothing when the "
        "command failed: errors are text on stderr, and the exit code tells which ([errors](errors.md)). Where stdout "
        "is not a terminal, tables are plain aligned columns; `--json` is what scripts should read. Every command that "
        "changes something has `--dry-run`. `adapt completion SHELL` prints a completion script.\n",
        f"```\n{help_text([])}```\n",
    ]
    for path in _commands(cli, []):
        parts.append(f"{'#' * (len(path) + 1)} `{' '.join([PROGRAM, *path])}`\n")
        parts.append(f"```\n{help_text(path)}```\n")
    parts.append("## Environment variables\n")
    rows = [(f"`{row.name}`", row.default or "unset", row.meaning) for row in VARIABLES]
    parts.append(_table(("variable", "default", "meaning"), rows))
    return "\n".join(parts)


def _errors_page() -> str:
    codes = [(str(int(code)), meaning) for code, meaning in EXIT_MEANINGS.items()]
    order = [str(int(code)) for code in SEVERITY_ORDER if code is not ExitCode.OK]
    parts = [
        _MADE,
        "# Errors\n",
        "An error says what went wrong, where, and what to do about it:\n",
        "```\nerror: no such command: instal\n  where: adapt\n  hint: did you mean `adapt install`?\n```\n",
        "No traceback is shown but with `adapt --debug …` or `ADAPTERHUB_DEBUG=1`.\n",
        "## Exit codes\n",
        _table(("code", "meaning"), codes),
        f"Where several findings disagree, the worst decides: {' before '.join(order)}.\n",
        "## Checks\n",
        "What `adapt validate` looks at. A warning never changes the exit code; a check that could not be made reads "
        "“not checked”, which is never a pass.\n",
    ]
    licences = "What `publish` holds a package's licence against. It is a table, no legal advice; " + (
        "`--acknowledge-licence` lets an error pass.\n"
    )
    for check in (*CHECKS.values(), *LICENCE_CHECKS.values()):
        if check is next(iter(LICENCE_CHECKS.values())):
            parts += ["## Licences\n", licences]
        outcome = f"error, exit {int(check.exit_code)}" if check.severity is Severity.ERROR else check.severity.value
        parts.append(f"### {check.code}: {check.title}\n")
        parts.append(f"{check.why} *({outcome})* What to do: {check.hint}.\n")
    return "\n".join(parts)


def _methods_page() -> str:
    families = [(row.name, _words(row.model_types), _words(row.default_targets)) for row in FAMILIES]
    methods = [
        (
            f"`{row.name}`",
            "not PEFT's" if row.peft_type is None else f"`{row.peft_type}`",
            f"[{row.title}]({row.paper})" if row.paper else row.title,
            "yes" if row.buildable else "in `adapt compare` alone" if row.group == BASELINE else f"no: {row.why_not}",
        )
        for row in METHODS.values()
    ]
    tasks = [(f"`{row.name}`", f"`{row.auto_class}`", "yes" if row.buildable else "not yet") for row in TASKS.values()]
    parts = [
        _MADE,
        "# Methods, tasks, families\n",
        "The tables that `build` and `validate` read.\n",
        "## Default target modules of LoRA, by family\n",
        _table(("family", "model types", "target modules"), families),
        "Any other architecture takes `all-linear`.\n",
        "## LoRA's hyperparameters\n",
        "PEFT's own names. `alpha` is taken for `lora_alpha`.\n",
        _hyperparameters("lora"),
        "## Methods\n",
        _table(("method", "PEFT type", "what it is", "`build` trains it"), methods),
        "`method: dora` takes LoRA's hyperparameters, but for `eva` and `eva_config`.\n",
        *(text for row in METHODS.values() if row.buildable for text in _method_section(row)),
        "## Tasks\n",
        _table(("task", "transformers class", "`build` trains it"), tasks),
    ]
    return "\n".join(parts)


def _hyperparameters(method: str) -> str:
    rows = [
        (f"`{row.name}`", row.kind, "the family's" if row.name == "target_modules" else _shown(row.default), row.help)
        for row in METHODS[method].hyperparameters
    ]
    return _table(("name", "kind", "default", "meaning"), rows)


def _method_section(method: Method) -> Iterator[str]:
    """Yield what a method takes, and which modules it adapts where that is not LoRA's choice."""
    if method.peft_type == "LORA":
        return
    yield f"### `{method.name}`\n"
    yield _hyperparameters(method.name)
    if method.targets == "scaled":
        yield "Modules by default; those in brackets are of `feedforward_modules` too:\n"
        rows = [
            (f"`{name}`", ", ".join(f"[`{item}`]" if item in forward else f"`{item}`" for item in targets))
            for name, (targets, forward) in IA3_MODULES.items()
        ]
        yield _table(("model type", "target modules"), rows)
    elif method.targets == "norms":
        yield "Norms by default:\n"
        yield _table(("model type", "target modules"), [(f"`{name}`", _words(words)) for name, words in NORMS.items()])


def _words(words: Sequence[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _shown(value: object) -> str:
    if value is None:
        return "`null`"
    if isinstance(value, Mapping | tuple) and not value:
        return "none"
    return f"`{value}`"


def _table(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (headers, tuple("---" for _ in headers), *rows)]
    return "\n".join(lines) + "\n"


def write_pages(folder: Path) -> list[Path]:
    """Write every generated page below a folder; return those that changed.

    Raises:
        LocalIOError: the disk said no.
    """
    changed = []
    for name, text in pages().items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_atomic(path, text.encode())
            changed.append(path)
    return changed


if __name__ == "__main__":
    for written in write_pages(Path(sys.argv[1] if len(sys.argv) > 1 else "docs")):
        console.say(f"wrote {written}")
