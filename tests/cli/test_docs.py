"""The generated pages are current: they are the snapshot of every command's help."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from adapterhub.cli.docs import help_text, pages, write_pages
from adapterhub.cli.main import cli

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", sorted(pages()))
def test_the_page_is_what_the_code_says_now(name: str) -> None:
    """When this fails, and the change is wanted: `make docs`."""
    assert (DOCS / name).read_text(encoding="utf-8") == pages()[name]


def test_pages_are_written_once(tmp_path: Path) -> None:
    assert sorted(path.name for path in write_pages(tmp_path)) == sorted(pages())
    assert write_pages(tmp_path) == []
    (tmp_path / "cli.md").write_text("edited by hand")
    assert write_pages(tmp_path) == [tmp_path / "cli.md"]


def test_every_command_has_its_help_on_the_page() -> None:
    from adapterhub.cli.main import cli

    page = pages()["cli.md"]
    for name in cli.list_commands(cli.make_context("adapt", [], resilient_parsing=True)):
        assert f"## `adapt {name}`" in page
        assert help_text([name]) in page
    with pytest.raises(KeyError):
        help_text(["no-such-command"])


def test_every_command_shows_an_example() -> None:
    def walk(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield f"{path} {name}".strip(), command
            if isinstance(command, click.Group):
                yield from walk(command, f"{path} {name}".strip())

    without = [path for path, command in walk(cli, "") if "Example" not in (command.epilog or "")]
    assert without == []
