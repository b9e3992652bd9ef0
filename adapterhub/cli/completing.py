"""What a shell offers after TAB where a word names something of this machine: aliases, packages, base models, methods.

Each is a click `shell_complete` callback. It looks at adapters.yaml, adapters.lock and the base store's records alone,
never at the network, and a file that cannot be read offers nothing: TAB is no place for an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

    from adapterhub.environment import Environment

Callback: TypeAlias = "Callable[[click.Context, click.Parameter, str], list[CompletionItem]]"
Offers: TypeAlias = "Iterable[tuple[str, str]]"


def _completer(offers: Callable[[], Offers]) -> Callback:
    """Return a callback that offers those words that begin with what was typed, each with its help."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        taken = ctx.params.get(param.name or "")
        return _items(offers, incomplete, taken if isinstance(taken, tuple) else ())

    return complete


def _items(offers: Callable[[], Offers], incomplete: str, taken: Iterable[str] = ()) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    try:
        words = dict(offers())
    except Exception:  # whatever is broken here, the command itself will say it better
        return []
    for word in taken:
        words.pop(word, None)
    return [CompletionItem(word, help=help) for word, help in words.items() if word.startswith(incomplete)]


def _environment() -> Environment:
    from adapterhub.environment import find_environment

    return find_environment()


def _own() -> Offers:
    """Walk over the aliases that adapters.yaml or the lock of this environment has, each with what it stands for."""
    environment = _environment()
    found = {alias: str(requirement) for alias, requirement in environment.project.adapters.items()}
    found |= {entry.alias: str(entry.ref) for entry in environment.lock.entries if entry.alias}
    return sorted(found.items())


def _reachable() -> Offers:
    """Walk over the aliases of this environment and the user's own."""
    found: dict[str, str] = {}
    for environment in reversed(_environment().chain):
        found |= {entry.alias: str(entry.ref) for entry in environment.lock.entries if entry.alias}
    return sorted(found.items())


def _stacks() -> Offers:
    return [(name, f"stack: {value}") for name, value in _environment().project.stacks.items()]


def _every_package() -> Offers:
    """Walk over the aliases of this environment, then the names of what only stack packages brought."""
    members = {str(entry.name): str(entry.ref) for entry in _environment().lock.entries if entry.alias is None}
    return [*_own(), *sorted(members.items())]


def _bases() -> Offers:
    from adapterhub.bases import BaseStore
    from adapterhub.settings import read_settings

    return [(record.ref.id, record.source) for record in BaseStore(read_settings()).list()]


def _methods() -> Offers:
    from adapterhub.catalog.methods import METHODS

    return [(row.name, row.title) for row in METHODS.values()]


def _tasks() -> Offers:
    from adapterhub.catalog.tasks import TASKS

    return [(row.name, row.title) for row in TASKS.values()]


def _combinations() -> Offers:
    from adapterhub.catalog.combinations import COMBINATIONS

    return [(row.name, row.title) for row in COMBINATIONS.values() if row.available]


aliases: Callback = _completer(_own)
"""The aliases of this environment, for uninstall and update."""
stacks: Callback = _completer(_stacks)
"""The stacks of adapters.yaml."""
packages: Callback = _completer(_every_package)
"""Everything that is locked here, for why."""
bases: Callback = _completer(_bases)
"""The base models of this machine."""
methods: Callback = _completer(_methods)
"""The methods of the catalog."""
tasks: Callback = _completer(_tasks)
"""The tasks, by PEFT's names."""
combinations: Callback = _completer(_combinations)
"""How adapters become one."""


def stack(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the last word of `a=0.5,b`: stacks and adapters, but those that are named already."""
    from click.shell_completion import CompletionItem

    del ctx, param
    before, comma, last = incomplete.rpartition(",")
    named = {part.partition("=")[0].strip() for part in before.split(",")}

    items = _items(lambda: [*_stacks(), *_reachable()], last, named)
    return [CompletionItem(f"{before}{comma}{item.value}", help=item.help) for item in items]


def adapters(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete an alias that can be used here, the user's own included, or a folder once it looks like a path."""
    from click.shell_completion import CompletionItem

    del ctx, param
    if incomplete.startswith((".", "/", "~")):
        return [CompletionItem(incomplete, type="dir")]
    return _items(_reachable, incomplete)
