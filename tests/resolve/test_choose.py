"""From a requirement to one version."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from adapterhub.errors import UnsatisfiedError, UsageError
from adapterhub.registry import Listed
from adapterhub.resolve import choose
from adapterhub.spec.refs import Requirement, parse_version


def listed(*versions: str) -> list[Listed]:
    return [Listed(version=parse_version(version)) for version in versions]


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ("", "1.10.0"),
        (">=1.2,<1.10", "1.9.0"),
        ("~=1.2", "1.10.0"),
        ("@1.2.0", "1.2.0"),
        ("@2.0.0rc1", "2.0.0rc1"),
        (">=2.0.0rc1", "2.0.0rc1"),
        (">=2a0", "2.0.0rc1"),
        ("!=1.10.0", "1.9.0"),
    ],
)
def test_the_highest_that_satisfies_is_chosen(asked: str, chosen: str) -> None:
    requirement = Requirement.parse(f"acme/legal{asked}")
    found = choose(requirement, listed("1.2.0", "1.10.0", "1.9.0", "2.0.0rc1"), where="here")
    assert str(found.ref) == f"acme/legal@{chosen}"
    assert chosen in found.reasons[0]


def test_a_pre_release_is_chosen_where_there_is_nothing_else() -> None:
    found = choose(Requirement.parse("acme/legal"), listed("0.1.0a1", "0.1.0a2"), where="here")
    assert found.ref.version == Version("0.1.0a2")


def test_a_pre_release_that_was_passed_over_is_told() -> None:
    found = choose(Requirement.parse("acme/legal"), listed("1.0.0", "2.0.0rc1"), where="here")
    assert found.ref.version == Version("1.0.0")
    assert any("2.0.0rc1" in reason for reason in found.reasons)


def test_a_derived_version_can_be_had() -> None:
    found = choose(Requirement.parse("acme/plain"), listed("0.0.0+g0123456789ab"), where="here")
    assert str(found.ref.version) == "0.0.0+g0123456789ab"


def test_what_is_missing_lists_what_there_is() -> None:
    with pytest.raises(UnsatisfiedError) as caught:
        choose(Requirement.parse("acme/legal>=3"), listed("1.0.0", "2.0.0"), where="./registry")
    assert caught.value.where == "./registry"
    assert caught.value.hint == "available: 1.0.0, 2.0.0"


def test_a_long_list_is_cut_to_the_newest() -> None:
    with pytest.raises(UnsatisfiedError) as caught:
        choose(Requirement.parse("acme/legal>=3"), listed(*(f"1.{n}.0" for n in range(30))), where="here")
    assert "1.29.0 (and 20 older)" in (caught.value.hint or "")


def test_a_revision_is_refused() -> None:
    with pytest.raises(UsageError, match="revision"):
        choose(Requirement.parse("acme/legal#main"), listed("1.0.0"), where="here")


_VERSIONS = st.builds(
    lambda major, minor, tail: f"{major}.{minor}.0{tail}",
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from(["", "a1", "rc2"]),
)


@given(st.lists(_VERSIONS, min_size=1, unique=True), st.sampled_from(["", ">=1", "<2", ">=1,<3", "!=1.1.0"]))
def test_nothing_that_satisfies_is_higher(versions: list[str], asked: str) -> None:
    requirement = Requirement.parse(f"acme/legal{asked}")
    fitting = [Version(v) for v in versions if requirement.allows(Version(v))]
    try:
        chosen = choose(requirement, listed(*versions), where="here").ref.version
    except UnsatisfiedError:
        assert not fitting
        return
    assert requirement.allows(chosen, prereleases=True)
    if fitting:
        assert chosen == max(fitting)
