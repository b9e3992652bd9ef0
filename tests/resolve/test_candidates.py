"""Which version of a name is chosen, and which are passed over."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from adapterhub.errors import IntegrityError, InvalidFileError, UnsatisfiedError
from adapterhub.resolve import ALL, Policy
from adapterhub.resolve.candidates import releases, satisfies
from adapterhub.spec.refs import Requirement, parse_version
from tests.resolve.shelf import NOW, OTHER, OURS, POLICY, Row, Shelf, ask, base, lock, locked_choice, refs, shelf

DERIVED = "0.0.0+g0123456789ab"
WEEK = Policy(now=NOW, min_age=timedelta(days=7))


def test_every_way_to_ask_for_a_version() -> None:
    registry = shelf({"acme/legal": ["1.2.0", "1.10.0", "1.9.0", "2.0.0rc1"]})
    for asked, chosen in {
        "": "1.10.0",
        ">=1.2,<1.10": "1.9.0",
        "~=1.2": "1.10.0",
        "@1.2.0": "1.2.0",
        "==1.2": "1.2.0",
        "==1.*": "1.10.0",
        "@2.0.0rc1": "2.0.0rc1",
        ">=2.0.0rc1": "2.0.0rc1",
        ">=2a0": "2.0.0rc1",
        ">=1.2.0a1": "2.0.0rc1",
        ">1.10": "2.0.0rc1",
        "!=1.10.0": "1.9.0",
    }.items():
        found = ask(registry, f"acme/legal{asked}")
        assert refs(found) == [f"acme/legal@{chosen}"], asked
        assert chosen in found.choices[0].reasons[0]
        assert found.notes == ()


def test_a_choice_tells_why() -> None:
    registry = shelf({"acme/legal": ["1.0.0", "1.1.0", "2.0.0rc1"]})
    (choice,) = ask(registry, "acme/legal").choices
    assert choice.reasons == (
        "1.1.0 is the highest of 2 that satisfy any version",
        "2.0.0rc1 is a pre-release: ask for it with @2.0.0rc1",
    )
    assert (choice.registry, choice.locked, choice.required_by) == (registry, False, ("adapters.yaml",))
    assert choice.description is not None
    (choice,) = ask(registry, "acme/legal<1.1").choices
    assert choice.reasons == ("1.0.0 is the highest of 1 that satisfy <1.1",)
    (choice,) = ask(registry, "acme/legal@1.0.0").choices
    assert choice.reasons == ("1.0.0 is asked for",)


@pytest.mark.parametrize(
    ("versions", "asked", "welcome", "chosen"),
    [
        (("0.1.0a1", "0.1.0a2"), "", False, "0.1.0a2"),
        (("1.0.0", "2.0.0rc1"), "", True, "2.0.0rc1"),
        (("1.0.0", "2.0.0rc1", "2.0.0"), "", True, "2.0.0"),
        (("1.0.0", "2.0.0rc1"), "!=2.0.0a1", False, "1.0.0"),
        (("1.0.0", "2.0.0rc1"), ">=1.5", False, "2.0.0rc1"),
    ],
)
def test_pre_releases(versions: tuple[str, ...], asked: str, welcome: bool, chosen: str) -> None:
    policy = Policy(now=NOW, prereleases=welcome)
    assert refs(ask(shelf({"acme/a": versions}), f"acme/a{asked}", policy=policy)) == [f"acme/a@{chosen}"]


@given(
    st.lists(st.sampled_from(["1.0.0", "1.1.0a1", "1.1.0", "2.0.0rc1", "2.0.0", "2.1.0b2"]).map(Version), unique=True),
    st.sampled_from(["", ">=1", "<2", ">=1.1", ">=1.1.0a1", "!=1.1.0", "==2.*", "~=1.0", "==2.0.0rc1", ">2.0.0rc1"]),
)
def test_the_rule_for_pre_releases_is_packagings(versions: list[Version], text: str) -> None:
    requirement = Requirement.parse(f"acme/a{text}")
    ours = releases([item for item in versions if satisfies(item, requirement)], [requirement], prereleases=False)
    assert ours == list(requirement.specifier.filter(versions))


@pytest.mark.parametrize(
    ("versions", "asked", "chosen"),
    [
        ((DERIVED,), "", DERIVED),
        ((DERIVED,), f"@{DERIVED}", DERIVED),
        ((DERIVED, "1.0.0"), "", "1.0.0"),
        ((DERIVED, "1.0.0"), f"@{DERIVED}", DERIVED),
        ((DERIVED,), ">=0", None),
        ((DERIVED,), "@0.0.0", None),
        ((DERIVED,), "!=1.0.0", None),
        ((DERIVED,), "@0.0.0+gba9876543210", None),
    ],
)
def test_a_derived_version_lies_in_no_range(versions: tuple[str, ...], asked: str, chosen: str | None) -> None:
    registry = shelf({"acme/plain": versions})
    if chosen is not None:
        assert refs(ask(registry, f"acme/plain{asked}")) == [f"acme/plain@{chosen}"]
        return
    with pytest.raises(UnsatisfiedError, match="no version satisfies acme/plain"):
        ask(registry, f"acme/plain{asked}")


def test_a_yanked_version_is_passed_over_unless_pinned() -> None:
    rows: list[str | Row] = ["1.0.0", Row(version="2.0.0", yanked="wrong weights"), Row(version="3.0.0", yanked="")]
    for indexed in (False, True):
        registry = shelf({"acme/a": rows}, indexed=indexed)
        found = ask(registry, "acme/a")
        assert refs(found) == ["acme/a@1.0.0"]
        assert found.notes == (
            "acme/a 3.0.0 is passed over: yanked",
            "acme/a 2.0.0 is passed over: yanked: wrong weights",
        )
        pinned = ask(registry, "acme/a@2.0.0")
        assert refs(pinned) == ["acme/a@2.0.0"]
        assert pinned.notes == ("acme/a 2.0.0 is yanked: wrong weights",)
        assert pinned.choices[0].reasons == ("2.0.0 is asked for", "2.0.0 is yanked: wrong weights")


def test_a_pin_by_a_stack_is_known_before_all_versions_of_a_member_are_given_up() -> None:
    registry = shelf(
        {"acme/a": [Row(version="1.0.0", yanked="")], "acme/s": [Row(version="1.0.0", requires=("acme/a@1.0.0",))]}
    )
    assert refs(ask(registry, "acme/a", "acme/s")) == ["acme/a@1.0.0", "acme/s@1.0.0"]
    with pytest.raises(UnsatisfiedError, match="no version satisfies acme/a"):
        ask(registry, "acme/a")


def test_a_stack_whose_members_were_yanked_gives_way_to_an_older_one() -> None:
    registry = shelf(
        {
            "acme/a": ["1.0.0", Row(version="2.0.0", yanked="")],
            "acme/s": [Row(version="1.0.0", requires=("acme/a",)), Row(version="2.0.0", requires=("acme/a>=2",))],
        }
    )
    found = ask(registry, "acme/s")
    assert refs(found) == ["acme/a@1.0.0", "acme/s@1.0.0"]
    assert found.notes == (
        "acme/a 2.0.0 is passed over: yanked",
        "acme/s 2.0.0 is passed over: what it requires (acme/a>=2) does not go with the rest",
    )


def test_a_version_that_is_too_young_is_passed_over_unless_pinned_or_locked() -> None:
    rows: list[str | Row] = [
        Row(version="1.0.0", days_old=8),
        Row(version="1.1.0", days_old=7),
        Row(version="2.0.0", days_old=6),
        Row(version="3.0.0", days_old=None),
    ]
    registry = shelf({"acme/a": rows})
    found = ask(registry, "acme/a", policy=WEEK)
    assert refs(found) == ["acme/a@1.1.0"]
    assert found.notes == (
        "acme/a 3.0.0 is passed over: of unknown age: it has no date of publication",
        "acme/a 2.0.0 is passed over: too young: published on 2026-05-26",
    )
    assert refs(ask(registry, "acme/a@2.0.0", policy=WEEK)) == ["acme/a@2.0.0"]
    locked = lock(ask(registry, "acme/a@2.0.0"))
    assert refs(ask(registry, "acme/a", locked=locked, policy=WEEK)) == ["acme/a@2.0.0"]
    # An update does not go back behind what is installed for its age alone.
    update = Policy(now=NOW, min_age=WEEK.min_age, upgrade=ALL)
    assert refs(ask(registry, "acme/a", locked=locked, policy=update)) == ["acme/a@2.0.0"]
    assert refs(ask(registry, "acme/a")) == ["acme/a@3.0.0"]


@pytest.mark.parametrize("indexed", [False, True])
def test_a_version_for_another_base_is_passed_over_while_one_fits(indexed: bool) -> None:
    registry = shelf(
        {"acme/a": ["1.0.0", "1.1.0", Row(version="2.0.0", made_for=OTHER)]},
        indexed=indexed,
    )
    found = ask(registry, "acme/a", base=OURS)
    assert refs(found) == ["acme/a@1.1.0"]
    assert found.notes == ("acme/a 2.0.0 is passed over: made for another base model, other",)
    described = {key for key in registry.asked if key.startswith("describe")}
    assert described == (set() if indexed else {"describe acme/a@2.0.0", "describe acme/a@1.1.0"})
    assert refs(ask(registry, "acme/a")) == ["acme/a@2.0.0"]
    # What cannot be told apart is not another one.
    unknown = ask(registry, "acme/a", base=base("ours").__class__(id="nameless"))
    assert refs(unknown) == ["acme/a@2.0.0"]


@pytest.mark.parametrize("indexed", [False, True])
def test_where_none_fits_the_highest_is_chosen_and_others_still_fit(indexed: bool) -> None:
    registry = shelf(
        {
            "acme/a": [Row(version="1.0.0", made_for=OTHER), Row(version="2.0.0", made_for=OTHER)],
            "acme/b": ["1.0.0", Row(version="2.0.0", made_for=OTHER)],
        },
        indexed=indexed,
    )
    found = ask(registry, "acme/a", "acme/b", base=OURS)
    assert refs(found) == ["acme/a@2.0.0", "acme/b@1.0.0"]
    assert "no version is made for the base model here; this one is made for other" in found.choices[0].reasons
    assert found.notes == ("acme/b 2.0.0 is passed over: made for another base model, other",)
    with pytest.raises(UnsatisfiedError):
        ask(registry, "acme/a", "acme/b>=3", base=OURS)


def test_a_stack_whose_member_does_not_fit_gives_way_to_an_older_one() -> None:
    registry = shelf(
        {
            "acme/s": [Row(version="1.0.0", requires=("acme/b<2",)), Row(version="2.0.0", requires=("acme/b>=2",))],
            "acme/b": ["1.0.0", Row(version="2.0.0", made_for=OTHER)],
        }
    )
    assert refs(ask(registry, "acme/s", base=OURS)) == ["acme/b@1.0.0", "acme/s@1.0.0"]


def test_a_base_check_that_was_overridden_once_may_be_so_for_an_update() -> None:
    registry = shelf({"acme/a": [Row(version="1.0.0", made_for=OTHER), Row(version="2.0.0", made_for=OTHER)]})
    kept = locked_choice(ask(registry, "acme/a@1.0.0").choices[0], mismatch=True)
    update = Policy(now=NOW, upgrade=ALL)
    assert refs(ask(registry, "acme/a", locked={"acme/a": kept}, base=OURS, policy=update)) == ["acme/a@2.0.0"]
    assert refs(ask(registry, "acme/a", locked={"acme/a": kept}, base=OURS)) == ["acme/a@1.0.0"]


COMMIT, NEWER = "a" * 40, "b" * 40


def branches() -> Shelf:
    return shelf(
        {"acme/a": ["1.0.0", "2.0.0"]},
        revisions={
            "acme/a": {
                "main": Row(version="3.0.0", commit=COMMIT),
                COMMIT: Row(version="3.0.0", commit=COMMIT),
                "dev": Row(version="3.1.0.dev0".replace(".dev0", "a1"), commit=NEWER),
            }
        },
    )


def test_a_revision_is_what_its_manifest_says() -> None:
    registry = branches()
    (choice,) = ask(registry, "acme/a#main").choices
    assert (str(choice.ref), choice.revision) == ("acme/a@3.0.0", COMMIT)
    assert choice.reasons == ("3.0.0 is what main names",)
    assert registry.asked == {"at acme/a#main": 1}
    assert refs(ask(registry, "acme/a#dev")) == ["acme/a@3.1.0a1"]


def test_two_revisions_of_a_name_go_together_where_they_are_one_commit() -> None:
    registry = branches()
    assert refs(ask(registry, "acme/a#main", f"acme/a#{COMMIT}", "acme/a>=3")) == ["acme/a@3.0.0"]
    for wanted, told in (
        (("acme/a#main", "acme/a#dev"), "acme/a#dev and acme/a#main"),
        (("acme/a#main", "acme/a<3"), "acme/a#main and acme/a<3"),
    ):
        with pytest.raises(UnsatisfiedError) as caught:
            ask(registry, *wanted)
        assert caught.value.message == f"because adapters.yaml requires {told}, no version of acme/a satisfies both"
    with pytest.raises(UnsatisfiedError, match="acme/a has no revision gone"):
        ask(registry, "acme/a#gone")


def test_what_was_locked_for_a_branch_stays_for_that_branch_alone() -> None:
    registry = branches()
    (choice,) = ask(registry, "acme/a#main").choices
    locked = {"acme/a": locked_choice(choice, asked="main")}
    registry.asked.clear()
    for wanted in ("acme/a#main", f"acme/a#{COMMIT}"):
        (kept,) = ask(registry, wanted, locked=locked).choices
        assert (kept.locked, kept.revision, kept.ref) == (True, COMMIT, choice.ref)
    assert not registry.asked
    assert refs(ask(registry, "acme/a#dev", locked=locked)) == ["acme/a@3.1.0a1"]
    assert refs(ask(registry, "acme/a", locked=locked)) == ["acme/a@2.0.0"]
    # One that was locked for a version satisfies the very commit, and no branch.
    plain = {"acme/a": locked_choice(choice)}
    assert ask(registry, f"acme/a#{COMMIT}", locked=plain).choices[0].locked
    assert not ask(registry, "acme/a#main", locked=plain).choices[0].locked


def test_a_locked_version_stays_while_it_satisfies() -> None:
    registry = shelf({"acme/a": ["1.0.0", "2.0.0"], "acme/b": ["1.0.0", "2.0.0"]})
    locked = lock(ask(registry, "acme/a<2", "acme/b<2"))
    registry.asked.clear()
    found = ask(registry, "acme/a", "acme/b", locked=locked, base=OTHER)
    assert refs(found) == ["acme/a@1.0.0", "acme/b@1.0.0"]
    assert [choice.reasons for choice in found.choices] == [("locked",), ("locked",)]
    assert not registry.asked
    # One that satisfies no more, or that may move, moves; the others stay and are not asked for.
    assert refs(ask(registry, "acme/a>=2", "acme/b", locked=locked)) == ["acme/a@2.0.0", "acme/b@1.0.0"]
    move = Policy(now=NOW, upgrade=frozenset({"acme/b"}))
    assert refs(ask(registry, "acme/a", "acme/b", locked=locked, policy=move)) == ["acme/a@1.0.0", "acme/b@2.0.0"]
    assert registry.asked.keys() == {"list acme/a", "describe acme/a@2.0.0", "list acme/b", "describe acme/b@2.0.0"}


def test_a_locked_version_is_not_that_of_another_registry() -> None:
    registry, moved = shelf({"acme/a": ["1.0.0", "2.0.0"]}), shelf({"acme/a": ["2.0.0"]}, location="elsewhere")
    locked = lock(ask(registry, "acme/a<2"))
    found = ask(moved, "acme/a", locked=locked)
    assert (refs(found), found.choices[0].registry) == (["acme/a@2.0.0"], moved)


def test_a_name_is_looked_for_in_its_own_registry_alone() -> None:
    ours = shelf({"corp/s": [Row(version="1.0.0", requires=("acme/a",))], "acme/a": ["9.0.0"]}, location="corp")
    theirs = shelf({"acme/a": ["1.0.0"], "corp/s": ["9.0.0"]}, location="hub")
    found = ask(ours, "corp/s", registry_of=lambda name: ours if name.org == "corp" else theirs)
    assert refs(found) == ["acme/a@1.0.0", "corp/s@1.0.0"]
    assert not [key for key in ours.asked if "acme/a" in key]
    assert not [key for key in theirs.asked if "corp/s" in key]


def test_members_of_an_upgraded_stack_move_only_as_far_as_needed() -> None:
    registry = shelf(
        {
            "acme/s": [
                Row(version="1.0.0", requires=("acme/a<2", "acme/b")),
                Row(version="2.0.0", requires=("acme/a>=2", "acme/b")),
            ],
            "acme/a": ["1.0.0", "2.0.0"],
            "acme/b": ["1.0.0"],
        }
    )
    locked = lock(ask(registry, "acme/s<2"))
    newer = shelf({**registry.rows, "acme/b": ["1.0.0", "2.0.0"]})
    move = Policy(now=NOW, upgrade=frozenset({"acme/s"}))
    found = ask(newer, "acme/s", locked=locked, policy=move)
    assert refs(found) == ["acme/a@2.0.0", "acme/b@1.0.0", "acme/s@2.0.0"]
    assert not [key for key in newer.asked if "acme/b" in key]


def test_what_is_installed_and_was_yanked_is_left_by_an_update_and_is_no_dead_end() -> None:
    registry = shelf({"acme/a": ["1.0.0", "2.0.0"]})
    locked = lock(ask(registry, "acme/a"))
    yanked = Row(version="2.0.0", yanked="oops")
    update = Policy(now=NOW, upgrade=ALL)
    assert refs(ask(shelf({"acme/a": [yanked]}), "acme/a", locked=locked)) == ["acme/a@2.0.0"]
    assert refs(ask(shelf({"acme/a": ["1.0.0", yanked]}), "acme/a", locked=locked, policy=update)) == ["acme/a@1.0.0"]
    found = ask(shelf({"acme/a": [yanked]}), "acme/a", locked=locked, policy=update)
    assert (refs(found), found.notes) == (["acme/a@2.0.0"], ("acme/a 2.0.0 is yanked: oops",))


@pytest.mark.parametrize("error", [IntegrityError("damaged", where="x"), InvalidFileError("hostile", where="x")])
def test_a_damaged_version_that_would_be_chosen_is_an_error(error: IntegrityError | InvalidFileError) -> None:
    registry = shelf({"acme/a": ["1.0.0", Row(version="2.0.0", broken=error)]})
    with pytest.raises(type(error)) as caught:
        ask(registry, "acme/a")
    assert caught.value is error
    assert refs(ask(registry, "acme/a<2")) == ["acme/a@1.0.0"]
    assert POLICY.min_age == timedelta(0)


def test_versions_are_compared_by_version_not_by_spelling() -> None:
    assert satisfies(parse_version("1.10.0"), Requirement.parse("acme/a>1.9"))
    assert refs(ask(shelf({"acme/a": ["1.9.0", "1.10.0"]}), "acme/a")) == ["acme/a@1.10.0"]
