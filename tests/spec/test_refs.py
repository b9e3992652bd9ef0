"""Names, versions, requirements: `parse(str(x)) == x`, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from adapterhub.spec.refs import PackageName, PackageRef, Requirement, check_alias, parse_version

PART = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_]{0,10}[A-Za-z0-9])?", fullmatch=True)
NAMES = st.builds(PackageName, PART, PART)
VERSIONS = st.from_regex(r"(0|[1-9][0-9]?)\.(0|[1-9][0-9]?)\.(0|[1-9][0-9]?)((a|b|rc)[0-9])?", fullmatch=True)
RANGES = st.sampled_from(["", ">=1.2,<2", "~=1.4", "!=1.5.*,>1", "==1.*", "<=3"])


@given(NAMES)
def test_names_round_trip(name: PackageName) -> None:
    assert PackageName.parse(str(name)) == name
    check_alias(name.default_alias)


@given(NAMES, VERSIONS)
def test_refs_round_trip(name: PackageName, version: str) -> None:
    ref = PackageRef(name, parse_version(version))
    assert PackageRef.parse(str(ref)) == ref
    requirement = Requirement.parse(str(ref))
    assert requirement.exact == ref.version
    assert requirement.allows(ref.version)
    assert Requirement.parse(str(requirement)) == requirement


@given(NAMES, RANGES)
def test_ranges_round_trip(name: PackageName, text: str) -> None:
    requirement = Requirement.parse(f"{name}{text}")
    assert Requirement.parse(str(requirement)) == requirement


@given(NAMES, st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_/-]{0,20}", fullmatch=True))
def test_revisions_round_trip(name: PackageName, revision: str) -> None:
    requirement = Requirement.parse(f"{name}#{revision}")
    assert requirement.revision == revision
    assert Requirement.parse(str(requirement)) == requirement


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "a/b/c", "a//b", "/b", "a/", "-a/b", "a/b-", "a/b--c", "a/..", "a/b.git", "../x", "a/b c"),
        *("a/b\n", "ä/b", "a\\b", f"a/{'x' * 97}"),
    ],
)
def test_bad_names(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not"):
        PackageName.parse(text)


@pytest.mark.parametrize(
    "text", ["1", "1.2", "v1.2.3", "1.2.3.4", "01.2.3", "1.2.3.dev1", "1.2.3+local", "1!1.2.3", ""]
)
def test_bad_versions(text: str) -> None:
    with pytest.raises(ValueError, match=r"X\.Y\.Z"):
        parse_version(text)


def test_a_near_version_is_suggested() -> None:
    with pytest.raises(ValueError, match=r"did you mean '1\.2\.0'"):
        parse_version("1.2")


def test_derived_versions_are_versions() -> None:
    assert parse_version("0.0.0+g0123456789ab").local == "g0123456789ab"


@pytest.mark.parametrize("text", ["a/b>>1", "a/b@1.2", "a/b@", "a/b#", "a/b#../x", "a/b 1.2", "a/b>=x", "b>=1"])
def test_bad_requirements(text: str) -> None:
    with pytest.raises(ValueError):
        Requirement.parse(text)


@pytest.mark.parametrize(
    ("name", "alias"),
    [
        ("org/legal-lora", "legal"),
        ("org/Legal-LoRA", "legal"),
        ("org/legal-qlora", "legal"),
        ("org/x-adapter", "x"),
        ("org/My.Model", "my-model"),
        ("org/lora", "lora"),
        ("org/a-lora-adapter", "a-lora"),
        ("org/_", "adapter"),
    ],
)
def test_default_aliases(name: str, alias: str) -> None:
    if name == "org/_":
        assert PackageName("org", "_").default_alias == alias
    else:
        assert PackageName.parse(name).default_alias == alias


def test_prereleases_only_where_the_range_names_one() -> None:
    assert not Requirement.parse("a/b>=1").allows(Version("2.0.0rc1"))
    assert Requirement.parse("a/b>=2.0.0rc1").allows(Version("2.0.0rc1"))
