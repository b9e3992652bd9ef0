"""`adapt diff`: two adapters side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from adapterhub.cli import completing, console, options
from adapterhub.cli._spans import span
from adapterhub.cli.progress import open_progress
from adapterhub.ops import diff
from adapterhub.settings import read_settings

_ABSENT = "-"
_LONGEST = 40


@click.command("diff", epilog="Examples:  adapt diff legal ./out/legal    adapt diff ./v1 ./v2 --json")
@click.argument("one", metavar="A", shell_complete=completing.adapters)
@click.argument("other", metavar="B", shell_complete=completing.adapters)
@click.option("--modules", "every", is_flag=True, help="List every module, not the kinds of modules.")
@options.json_option
def command(one: str, other: str, every: bool, as_json: bool) -> None:
    """Compare two adapters: their manifests, hyperparameters, and the changes they make to the base.

    A and B are aliases, names or folders of packages. Changes are compared as matrices: the cosine is 1 where both
    push a weight in the same direction, 0 where they have nothing to do with each other, -1 where they undo each other;
    the difference is relative to A's change.
    """
    with open_progress() as progress:
        found = diff.diff(one, other, settings=read_settings(), progress=progress)
    if as_json:
        console.print_json(found.to_data())
    else:
        console.print_facts([("A", diff.label(found.one)), ("B", diff.label(found.other))])
        _print_fields("manifest", found.manifest)
        _print_fields("hyperparameters", found.hyperparameters)
        _print_fields("files", found.files)
        if found.weights is not None:
            _print_weights(found.weights, every=every)
    for note in found.notes:
        console.say(note)


def _print_fields(title: str, fields: Sequence[diff.FieldDiff]) -> None:
    console.print_lines([""])
    if not fields:
        console.print_lines([f"{title}: the same"])
        return
    console.print_table((title, "A", "B"), [(item.field, _value(item.one), _value(item.other)) for item in fields])


def _value(value: object) -> str:
    """Return a field's value on one line; --json has all of it."""
    if value is None:
        return _ABSENT
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _print_weights(weights: diff.WeightsDiff, *, every: bool) -> None:
    console.print_lines([""])
    told = [("weights", "the same change" if weights.same else "different changes")]
    told += [("cosine", _number(weights.cosine, "{:+.4f}"))] if weights.cosine is not None else []
    told += [("change", f"{_number(weights.norm, '{:.4g}')} and {_number(weights.other_norm, '{:.4g}')}")]
    told += [("difference", _number(weights.distance, "{:.4g}"))]
    console.print_facts(told)
    if weights.modules:
        console.print_lines([""])
        headers = ("module" if every else "kind", *(() if every else ("modules",)), "A", "B", "cosine", "difference")
        console.print_table(headers, _rows(weights.modules, every=every))
    for title, names in (
        ("only in A", weights.only_one),
        ("only in B", weights.only_other),
        ("shapes differ", weights.misfits),
        ("saved whole, and different", weights.saved),
    ):
        if names:
            console.print_lines(["", f"{title}:", *(f"  {name}" for name in names)])


def _rows(modules: Sequence[diff.ModuleDiff], *, every: bool) -> list[tuple[str, ...]]:
    groups: dict[str, list[diff.ModuleDiff]] = {}
    for module in modules:
        groups.setdefault(module.module if every else module.place.kind, []).append(module)
    return [
        (
            name,
            *(() if every else (str(len(members)),)),
            span([module.norm for module in members], "{:.3g}"),
            span([module.other_norm for module in members], "{:.3g}"),
            span([module.cosine for module in members], "{:+.3f}", between=" to "),
            span([module.relative for module in members], "{:.2%}"),
        )
        for name, members in groups.items()
    ]


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else form.format(value)
