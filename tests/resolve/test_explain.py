"""Conflicts, word for word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

import pytest

from adapterhub.errors import UnsatisfiedError
from adapterhub.resolve import Policy
from tests.resolve.shelf import NOW, OTHER, OURS, Row, Shelf, ask, shelf


def refused(registry: Shelf, *wanted: str, policy: Policy | None = None) -> UnsatisfiedError:
    with pytest.raises(UnsatisfiedError) as caught:
        ask(registry, *wanted, policy=policy or Policy(now=NOW), base=OURS)
    return caught.value


CLINIC = {
    "acme/clinic-es": [Row(version="1.1.0", requires=("acme/medical<2",))],
    "acme/medical": ["1.0.0", "2.0.0"],
    "acme/other": ["1.0.0"],
}
Rows = Mapping[str, Sequence[str | Row]]


@pytest.mark.parametrize(
    ("rows", "wanted", "message", "hint"),
    [
        pytest.param(
            CLINIC,
            ("acme/clinic-es", "acme/medical>=2", "acme/other"),
            "because acme/clinic-es 1.1.0 (its only version) requires acme/medical<2 and adapters.yaml requires "
            "acme/clinic-es and acme/medical>=2, no version of acme/medical satisfies both",
            "change what adapters.yaml requires: acme/clinic-es or acme/medical>=2",
            id="one-version",
        ),
        pytest.param(
            {**CLINIC, "acme/clinic-es": [*CLINIC["acme/clinic-es"], Row(version="1.0.0")]},
            ("acme/clinic-es@1.1.0", "acme/medical>=2"),
            "because acme/clinic-es 1.1.0 requires acme/medical<2 and adapters.yaml requires "
            "acme/clinic-es@1.1.0 and acme/medical>=2, no version of acme/medical satisfies both",
            "change what adapters.yaml requires: acme/clinic-es@1.1.0 or acme/medical>=2",
            id="pinned",
        ),
        pytest.param(
            {
                **CLINIC,
                "acme/clinic-es": [Row(version=f"1.{n}.0", requires=("acme/medical<2",)) for n in range(3)],
            },
            ("acme/clinic-es", "acme/medical>=2"),
            "because every version of acme/clinic-es requires acme/medical<2 and adapters.yaml requires "
            "acme/clinic-es and acme/medical>=2, no version of acme/medical satisfies both",
            "change what adapters.yaml requires: acme/clinic-es or acme/medical>=2",
            id="every-version",
        ),
        pytest.param(
            {**CLINIC, "acme/legal-es": [Row(version="3.0.0", requires=("acme/medical>=2",))]},
            ("acme/clinic-es", "acme/legal-es"),
            "because acme/clinic-es 1.1.0 (its only version) requires acme/medical<2, acme/legal-es 3.0.0 (its only "
            "version) requires acme/medical>=2, and adapters.yaml requires acme/clinic-es and acme/legal-es, no "
            "version of acme/medical satisfies both",
            "change what adapters.yaml requires: acme/clinic-es or acme/legal-es",
            id="two-stacks",
        ),
        pytest.param(
            {"acme/s": [Row(version="1.0.0", requires=("acme/b>=2",))], "acme/b": ["1.0.0", "1.1.0"]},
            ("acme/s",),
            "because acme/s 1.0.0 (its only version) requires acme/b>=2, adapters.yaml requires acme/s, and acme/b is "
            "there as 1.0.0 and 1.1.0 only, the requirements cannot be met together",
            "change what adapters.yaml requires: acme/s",
            id="no-such-version",
        ),
        pytest.param(
            {"acme/s": [Row(version="1.0.0", requires=("acme/gone",))]},
            ("acme/s",),
            "because acme/s 1.0.0 (its only version) requires acme/gone, adapters.yaml requires acme/s, and the "
            "registry has no package acme/gone (the shelf), the requirements cannot be met together",
            "change what adapters.yaml requires: acme/s",
            id="no-such-package",
        ),
        pytest.param(
            {
                "acme/s": [Row(version="1.0.0", requires=("acme/b>=2",))],
                "acme/b": ["1.0.0", Row(version="2.0.0", yanked="wrong weights")],
            },
            ("acme/s",),
            "because acme/s 1.0.0 (its only version) requires acme/b>=2, adapters.yaml requires acme/s, and acme/b "
            "2.0.0 is yanked: wrong weights, the requirements cannot be met together",
            "change what adapters.yaml requires: acme/s; or ask for the very version: acme/b@2.0.0",
            id="yanked",
        ),
        pytest.param(
            CLINIC,
            ("acme/medical>=2", "acme/medical<2"),
            "because adapters.yaml requires acme/medical<2 and acme/medical>=2, no version of acme/medical satisfies "
            "both",
            "change what adapters.yaml requires: acme/medical<2 or acme/medical>=2",
            id="the-users-own",
        ),
    ],
)
def test_a_conflict_is_told_in_prose(rows: Rows, wanted: tuple[str, ...], message: str, hint: str) -> None:
    error = refused(shelf(rows), *wanted)
    assert error.message == message
    assert error.hint == hint
    assert error.details == ()


def test_a_long_story_has_a_line_for_each_fact() -> None:
    clinic = [Row(version=f"1.{n}.0", requires=("acme/medical<2",)) for n in range(6)]
    clinic.append(Row(version="2.0.0", requires=("acme/gone",)))
    clinic.append(Row(version="3.0.0", requires=("acme/other>=3",)))
    error = refused(shelf({**CLINIC, "acme/clinic-es": clinic}), "acme/clinic-es", "acme/medical>=2")
    assert error.message == "the requirements cannot be met together"
    assert error.details == (
        "because 6 versions of acme/clinic-es, from 1.0.0 to 1.5.0, require acme/medical<2",
        "because acme/clinic-es 2.0.0 requires acme/gone",
        "because acme/clinic-es 3.0.0 requires acme/other>=3",
        "because adapters.yaml requires acme/clinic-es and acme/medical>=2",
        "because acme/other is there as 1.0.0 only",
        "because the registry has no package acme/gone (the shelf)",
    )
    assert error.hint == "change what adapters.yaml requires: acme/clinic-es or acme/medical>=2"


def test_a_requirement_that_nothing_satisfies_lists_what_there_is_and_what_is_wrong_with_it() -> None:
    registry = shelf(
        {
            "acme/a": [
                "1.0.0",
                Row(version="2.0.0", yanked="wrong weights"),
                Row(version="2.1.0", yanked=""),
                Row(version="2.2.0", days_old=1),
                Row(version="2.3.0", days_old=None),
            ]
        }
    )
    error = refused(registry, "acme/a>=2", policy=Policy(now=NOW, min_age=timedelta(days=7)))
    assert error.message == "no version satisfies acme/a>=2"
    assert error.where == "the shelf"
    assert error.hint == (
        "available: 1.0.0, 2.0.0 (yanked: wrong weights), 2.1.0 (yanked), 2.2.0 (too young: published on 2026-05-31), "
        "2.3.0 (of unknown age: it has no date of publication)"
    )


def test_a_long_list_is_cut_to_the_newest() -> None:
    error = refused(shelf({"acme/a": [f"1.{n}.0" for n in range(30)]}), "acme/a>=3")
    assert error.hint == f"available: {', '.join(f'1.{n}.0' for n in range(20, 30))} (and 20 older)"


def test_a_package_that_is_not_there_is_told_in_the_registrys_words() -> None:
    error = refused(shelf({"acme/b": ["1.0.0"]}), "acme/gone", "acme/b")
    assert (error.message, error.where, error.hint) == (
        "the registry has no package acme/gone",
        "the shelf",
        "look again",
    )


def test_a_conflict_among_versions_for_another_base_is_told_without_it() -> None:
    rows: Rows = {
        "acme/s": [Row(version="1.0.0", requires=("acme/b>=2",), made_for=OTHER)],
        "acme/b": ["1.0.0", Row(version="2.0.0", made_for=OTHER)],
    }
    error = refused(shelf(rows), "acme/s", "acme/b<2")
    assert error.message == (
        "because acme/s 1.0.0 (its only version) requires acme/b>=2 and adapters.yaml requires acme/b<2 and acme/s, "
        "no version of acme/b satisfies both"
    )
