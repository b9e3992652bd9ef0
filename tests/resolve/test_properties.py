"""The resolver against brute force: small registries in which every combination of versions can be looked at."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from adapterhub.errors import UnsatisfiedError
from adapterhub.resolve import ALL, Policy
from adapterhub.resolve.candidates import satisfies
from adapterhub.spec.refs import Requirement, parse_version
from tests.resolve.shelf import NOW, Row, Shelf, ask, lock, refs, shelf

NAMES = ("acme/a", "acme/b", "acme/c", "acme/d", "acme/e")
VERSIONS = ("1.0.0", "2.0.0", "3.0.0")
RANGES = ("", "", "<2", "<3", ">=2", ">=3", "@2.0.0", "!=2.0.0", ">=4")
Assignment = dict[str, Version]


@st.composite
def registries(draw: st.DrawFn) -> Shelf:
    """A registry whose stacks require names that come later, so that none contains itself."""
    rows: dict[str, list[str | Row]] = {}
    for index, name in enumerate(NAMES):
        later = NAMES[index + 1 :]
        rows[name] = []
        for version in draw(st.lists(st.sampled_from(VERSIONS), min_size=1, unique=True)):
            members = draw(st.lists(st.sampled_from(later), max_size=3, unique=True)) if later else []
            requires = tuple(name + draw(st.sampled_from(RANGES)) for name in members)
            rows[name].append(Row(version=version, requires=requires))
    # The order of names must not matter for what is found: stacks come before their members and after them.
    order = dict(zip(NAMES, draw(st.permutations(NAMES)), strict=True))
    renamed = {order[name]: [_renamed(row, order) for row in found] for name, found in rows.items()}
    return shelf(renamed, indexed=draw(st.booleans()))


def _renamed(row: str | Row, order: Mapping[str, str]) -> Row:
    assert isinstance(row, Row)
    return Row(version=row.version, requires=tuple(order[text[:6]] + text[6:] for text in row.requires))


WANTED = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(RANGES)), min_size=1, max_size=4).map(
    lambda pairs: tuple(name + text for name, text in pairs)
)


def closure(registry: Shelf, wanted: tuple[str, ...], versions: Mapping[str, Version]) -> Assignment | None:
    """Return what is needed of an assignment, or None when it does not satisfy everything."""
    needed: Assignment = {}
    pending = [Requirement.parse(text) for text in wanted]
    while pending:
        requirement = pending.pop()
        name = str(requirement.name)
        if name not in versions or not satisfies(versions[name], requirement):
            return None
        if name not in needed:
            needed[name] = versions[name]
            row = next(row for row in registry.rows[name] if parse_version(row.version) == versions[name])
            pending += [item.requirement for item in row.members]
    return needed


def solutions(registry: Shelf, wanted: tuple[str, ...]) -> Iterator[Assignment]:
    """Yield every solution that there is."""
    choices = [[(name, parse_version(row.version)) for row in rows] for name, rows in registry.rows.items()]
    for assignment in itertools.product(*choices):
        found = closure(registry, wanted, dict(assignment))
        if found is not None:
            yield found


def assignment(registry: Shelf, wanted: tuple[str, ...]) -> Assignment:
    found = ask(registry, *wanted)
    return {str(choice.ref.name): choice.ref.version for choice in found.choices}


@given(registries(), WANTED)
@settings(max_examples=300, deadline=None)
def test_what_is_found_is_a_solution_and_nothing_is_found_where_there_is_none(
    registry: Shelf, wanted: tuple[str, ...]
) -> None:
    known = list(solutions(registry, wanted))
    try:
        found = assignment(registry, wanted)
    except UnsatisfiedError:
        assert not known
        return
    assert found in known
    for name, version in found.items():
        # No single package could be higher with the others as they are.
        for row in registry.rows[name]:
            higher = closure(registry, wanted, {**found, name: parse_version(row.version)})
            assert higher is None or parse_version(row.version) <= version


@given(registries(), WANTED)
@settings(max_examples=300, deadline=None)
def test_where_one_solution_is_the_highest_in_everything_it_is_found(registry: Shelf, wanted: tuple[str, ...]) -> None:
    known = list(solutions(registry, wanted))
    best = [one for one in known if all(one[name] >= other[name] for other in known for name in one if name in other)]
    if len(best) == 1:
        assert assignment(registry, wanted) == best[0]


@given(registries(), WANTED)
@settings(max_examples=150, deadline=None)
def test_what_was_locked_stays_and_costs_no_question(registry: Shelf, wanted: tuple[str, ...]) -> None:
    try:
        first = ask(registry, *wanted)
    except UnsatisfiedError:
        return
    registry.asked.clear()
    again = ask(registry, *reversed(wanted), locked=lock(first))
    assert refs(again) == refs(first)
    assert all(choice.locked and choice.registry is None for choice in again.choices)
    assert not registry.asked
    free = Policy(upgrade=ALL, now=NOW)
    assert refs(ask(registry, *wanted, locked=lock(first), policy=free)) == refs(first)


@given(registries(), WANTED)
@settings(max_examples=100, deadline=None)
def test_the_order_of_requirements_and_of_rows_does_not_matter(registry: Shelf, wanted: tuple[str, ...]) -> None:
    turned = shelf({name: list(reversed(rows)) for name, rows in reversed(registry.rows.items())})
    answers = []
    for one, texts in ((registry, wanted), (turned, tuple(reversed(wanted)))):
        try:
            answers.append((refs(ask(one, *texts)), ""))
        except UnsatisfiedError as error:
            answers.append(([], str(error)))
    assert answers[0] == answers[1]
    assert not [key for key, times in registry.asked.items() if times > 1]


def test_brute_force_tells_a_solution_from_none() -> None:
    registry = shelf({"acme/a": [Row(version="1.0.0", requires=("acme/b>=2",))], "acme/b": ["1.0.0", "2.0.0"]})
    assert list(solutions(registry, ("acme/a",))) == [{"acme/a": Version("1.0.0"), "acme/b": Version("2.0.0")}]
    assert list(solutions(registry, ("acme/a", "acme/b<2"))) == []
    with pytest.raises(UnsatisfiedError):
        assignment(registry, ("acme/a", "acme/b<2"))
