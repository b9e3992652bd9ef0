"""`adapt search`."""

from __future__ import annotations

import click

from adapterhub.cli import completing, console, options

_SUMMARY = 60


@click.command(
    "search", epilog="Examples:  adapt search legal --language es    adapt search --base org/model --task CAUSAL_LM"
)
@click.argument("text", nargs=-1)
@click.option("--domain", metavar="WORD", help="Only adapters of this domain, such as medicine.")
@click.option("--language", metavar="TAG", help="Only adapters for this language, such as es or pt-BR.")
@click.option(
    "--base", metavar="ID", shell_complete=completing.bases, help="Only adapters made for this base model (its id)."
)
@click.option(
    "--task", metavar="TASK", shell_complete=completing.tasks, help="Only adapters for this task, such as CAUSAL_LM."
)
@click.option(
    "--method", metavar="METHOD", shell_complete=completing.methods, help="Only adapters of this method, such as lora."
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1, 1000),
    default=30,
    show_default=True,
    help="At most so many of each registry.",
)
@options.registry_option
@options.json_option
def command(
    text: tuple[str, ...],
    domain: str | None,
    language: str | None,
    base: str | None,
    task: str | None,
    method: str | None,
    limit: int,
    registry: str | None,
    as_json: bool,
) -> None:
    """Search a registry for adapters; every word and every option has to fit.

    A folder is searched by name, summary, keywords and domains; the Hub by name and tags, among its PEFT adapters,
    those that were published with adapt first.
    """
    from adapterhub.environment import find_environment
    from adapterhub.ops.search import search_packages
    from adapterhub.registry import Query

    query = Query(
        text=" ".join(text) or None,
        domain=domain,
        language=language,
        base=base,
        task=task,
        method=method,
        limit=limit,
    )
    searched = search_packages(query, environment=find_environment(), registry=registry)
    for location, error in searched.failed:
        console.warn(f"{location} was not searched: {error.message}", hint=error.hint)
    if as_json:
        console.print_json(searched.to_data())
        return
    if not searched.hits:
        console.say(f"nothing found in {', '.join(searched.registries)}")
        return
    columns: dict[str, list[str]] = {
        "name": [str(hit.found.name) for hit in searched.hits],
        "version": [str(hit.found.version or "") for hit in searched.hits],
        "base": [hit.found.base or "" for hit in searched.hits],
        "method": [hit.found.method or "" for hit in searched.hits],
        "task": [hit.found.task or "" for hit in searched.hits],
        "license": [hit.found.license or "" for hit in searched.hits],
        "updated": [f"{hit.found.updated:%Y-%m-%d}" if hit.found.updated else "" for hit in searched.hits],
        "downloads": [
            "" if (count := hit.found.downloads) is None else console.human_count(count) for hit in searched.hits
        ],
        "registry": [hit.registry if len(searched.registries) > 1 else "" for hit in searched.hits],
        "summary": [_short(hit.found.summary) for hit in searched.hits],
    }
    shown = {header: cells for header, cells in columns.items() if any(cells)}
    console.print_table(tuple(shown), list(zip(*shown.values(), strict=True)))


def _short(text: str) -> str:
    return text if len(text) <= _SUMMARY else f"{text[: _SUMMARY - 1].rstrip()}…"
