"""The search against brute force, in small registries where every combination can be looked at; and its limits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import cache

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


parsed = cache(Requirement.parse)


@cache
def met(version: Version, text: str) -> bool:
    return satisfies(version, parsed(text))


def closure(registry: Shelf, wanted: tuple[str, ...], versions: Mapping[str, Version]) -> Assignment | None:
    """Return what is needed of an assignment, or None when it does not satisfy everything."""
    needed: Assignment = {}
    pending = list(wanted)
    while pending:
        text = pending.pop()
        name = str(parsed(text).name)
        if name not in versions or not met(versions[name], text):
            return None
        if name not in needed:
            needed[name] = versions[name]
            pending += next(row.requires for row in registry.rows[name] if row.version == str(versions[name]))
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
@settings(max_examples=200, deadline=None)
def test_the_search_finds_what_brute_force_finds(registry: Shelf, wanted: tuple[str, ...]) -> None:
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
    best = [one for one in known if all(one[name] >= other[name] for other in known for name in one if name in other)]
    assert len(best) != 1 or found == best[0]


@given(registries(), WANTED)
@settings(max_examples=100, deadline=None)
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
@settings(max_examples=60, deadline=None)
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


def test_a_version_that_a_stack_held_down_climbs_when_the_stack_is_given_up() -> None:
    registry = shelf(
        {
            "acme/a": ["1.0.0", "2.0.0"],
            "acme/r": [Row(version="1.0.0", requires=("acme/u",))],
            "acme/u": [Row(version="1.0.0", requires=("acme/s<2",))],
            "acme/s": ["1.0.0", Row(version="2.0.0", requires=("acme/t",))],
            "acme/t": [Row(version="1.0.0", requires=("acme/a<2",))],
        }
    )
    # s 2 brings t, which holds a at 1; u, further down, then brings s to 1, and t is needed no more.
    expected = ["acme/a@2.0.0", "acme/r@1.0.0", "acme/s@1.0.0", "acme/u@1.0.0"]
    assert refs(ask(registry, "acme/a", "acme/r", "acme/s")) == expected


def test_a_stack_that_contains_itself_is_refused_with_the_path() -> None:
    registry = shelf(
        {
            "acme/a": [Row(version="1.0.0", requires=("acme/b",))],
            "acme/b": [Row(version="1.0.0", requires=("acme/c",))],
            "acme/c": [Row(version="1.0.0", requires=("acme/b",))],
        }
    )
    with pytest.raises(UnsatisfiedError) as caught:
        ask(registry, "acme/a")
    assert caught.value.message == "a stack contains itself: acme/b → acme/c → acme/b"
    with pytest.raises(UnsatisfiedError, match="acme/b → acme/c → acme/b"):
        ask(registry, "acme/a", "acme/b", "acme/c")


@pytest.mark.parametrize("text", ["acme/a", "acme/a<1", "acme/a@2.0.0"])
def test_a_stack_that_requires_itself_is_no_endless_loop(text: str) -> None:
    registry = shelf({"acme/a": [Row(version="1.0.0", requires=(text,)), Row(version="2.0.0", requires=(text,))]})
    if text == "acme/a<1":
        with pytest.raises(UnsatisfiedError, match="acme/a"):
            ask(registry, "acme/a")
    else:
        with pytest.raises(UnsatisfiedError, match="contains itself: acme/a → acme/a"):
            ask(registry, "acme/a")


def chain(length: int) -> Shelf:
    """A stack that requires a stack that requires …; `length` of them, and an adapter."""
    rows: dict[str, list[str | Row]] = {
        f"acme/s{n:03}": [Row(version="1.0.0", requires=(f"acme/s{n + 1:03}",))] for n in range(length)
    }
    return shelf({**rows, f"acme/s{length:03}": ["1.0.0"]})


def test_stacks_nest_sixteen_deep_and_no_deeper() -> None:
    assert len(refs(ask(chain(16), "acme/s000"))) == 17
    long = chain(200)
    with pytest.raises(UnsatisfiedError, match="nested more than 16 deep"):
        ask(long, "acme/s000")
    assert sum(long.asked.values()) < 50
    # Wanted directly as well, no name lies deep on its shortest way, and still the longest way counts.
    with pytest.raises(UnsatisfiedError, match="nested more than 16 deep"):
        ask(long, *(f"acme/s{n:03}" for n in range(0, 200, 10)))


def test_a_stack_cannot_have_the_whole_registry_looked_through() -> None:
    members = tuple(f"acme/m{n:04}" for n in range(5000))
    registry = shelf({"acme/all": [Row(version="1.0.0", requires=members)], **{name: ["1.0.0"] for name in members}})
    with pytest.raises(UnsatisfiedError, match="more than 1000 packages"):
        ask(registry, "acme/all")
    assert sum(registry.asked.values()) < 1100


def test_only_wanted_names_are_looked_at_in_a_large_registry() -> None:
    registry = shelf({f"acme/p{n:05}": ["1.0.0", "2.0.0"] for n in range(10_000)})
    assert refs(ask(registry, "acme/p00042", "acme/p09999<2")) == ["acme/p00042@2.0.0", "acme/p09999@1.0.0"]
    assert sum(registry.asked.values()) == 4


def test_names_that_differ_in_case_alone_do_not_go_together() -> None:
    registry = shelf({"acme/a": [Row(version="1.0.0", requires=("acme/B",))], "acme/B": ["1.0.0"], "acme/b": ["1.0.0"]})
    with pytest.raises(UnsatisfiedError, match="acme/b and acme/B are both required and differ in case alone"):
        ask(registry, "acme/a", "acme/b")


def test_what_fails_alone_is_not_tried_under_every_combination_of_the_rest() -> None:
    rows: dict[str, list[str | Row]] = {"acme/z": ["99.0.0"]}
    for n in range(8):
        rows[f"acme/s{n}"] = [Row(version=f"{v}.0.0", requires=(f"acme/x{n}",)) for v in range(1, 9)]
        rows[f"acme/x{n}"] = [Row(version=f"{v}.0.0", requires=(f"acme/z>={v}",)) for v in range(1, 9)]
    rows["acme/x7"] = [Row(version=f"{v}.0.0", requires=(f"acme/z<{v}",)) for v in range(1, 9)]
    with pytest.raises(UnsatisfiedError) as caught:
        ask(shelf(rows), *(f"acme/s{n}" for n in range(8)))
    # Eight to the eighth combinations are more than the search has steps; it finds out that x7 is to blame.
    assert caught.value.message == "no version of acme/z satisfies all"
