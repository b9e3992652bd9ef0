"""Why a package is installed: every way from adapters.yaml to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub.cli.main import main
from adapterhub.documents import read_lockfile, write_lockfile
from adapterhub.errors import ExitCode, UnsatisfiedError
from adapterhub.ops.why import MAX_PATHS, find_reasons, told
from adapterhub.settings import Settings
from adapterhub.spec.lockfile import LockedPackage, Lockfile
from adapterhub.spec.refs import PackageName, parse_version
from tests.factory import tiny_llama
from tests.ops.stacked import Yard, clinic, fetch, lock_of, requirements, without


@pytest.fixture
def yard(tmp_path: Path, settings: Settings) -> Yard:
    made = Yard(root=tmp_path, settings=settings, base=tiny_llama(tmp_path / "tiny-llama"))
    made.yaml()
    return made


def ways(yard: Yard, word: str) -> list[str]:
    return [told(path) for path in find_reasons(word, environment=yard.environment).paths]


def locked(name: str, *members: str, alias: str | None = None) -> LockedPackage:
    return LockedPackage(
        alias=alias,
        name=PackageName.parse(name),
        version=parse_version("1.0.0"),
        registry="../registry",
        requires=requirements(*members),
    )


@pytest.mark.parametrize("word", ["legal", "acme/legal", "acme/legal@1.0.0"])
def test_every_way_is_told_with_what_is_asked_for(yard: Yard, word: str) -> None:
    clinic(yard)
    assert ways(yard, word) == [
        "adapters.yaml -> acme/clinic-es (1.0.0) -> acme/legal<2,>=1 (1.0.0)",
        "adapters.yaml -> acme/legal>=1 (1.0.0)",
    ]


def test_a_member_has_no_alias(yard: Yard) -> None:
    clinic(yard)
    assert ways(yard, "acme/spanish") == ["adapters.yaml -> acme/clinic-es (1.0.0) -> acme/spanish (1.0.0)"]
    data = find_reasons("acme/spanish", environment=yard.environment).to_data()
    assert json.loads(json.dumps(data))["paths"][0][1] == {
        "by": "acme/clinic-es",
        "requirement": "acme/spanish",
        "name": "acme/spanish",
        "version": "1.0.0",
        "alias": None,
    }


@pytest.mark.parametrize(("word", "near"), [("legl", "legal"), ("acme/spanich", "acme/spanish")])
def test_what_is_not_installed(yard: Yard, word: str, near: str) -> None:
    clinic(yard)
    with pytest.raises(UnsatisfiedError) as caught:
        find_reasons(word, environment=yard.environment)
    assert caught.value.exit_code == ExitCode.UNSATISFIED
    assert caught.value.hint == f"did you mean {near}?"


def test_what_is_asked_for_and_not_locked(yard: Yard) -> None:
    clinic(yard)
    without(yard, "acme/legal")
    with pytest.raises(UnsatisfiedError, match="not installed") as caught:
        find_reasons("legal", environment=yard.environment)
    assert caught.value.hint == "adapt install"
    assert ways(yard, "acme/spanish")  # the rest is still told


def test_the_user_s_own_environment_is_looked_at_too(yard: Yard) -> None:
    yard.publish("acme/medical")
    own = yard.settings.user_environment
    own.mkdir(parents=True)
    (own / "adapters.yaml").write_text('project_version: "1.0"\nadapters: {medical: acme/medical}\n')
    write_lockfile(own, Lockfile(entries=(fetch(yard, "acme/medical@1.0.0", alias="medical"),)))
    found = find_reasons("medical", environment=yard.environment)
    assert found.environment.is_user
    assert [told(path) for path in found.paths] == ["adapters.yaml -> acme/medical (1.0.0)"]


def test_nothing_asks_for_it_any_more(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clinic(yard)
    yard.yaml("adapters:\n  legal: acme/legal>=1\n")
    monkeypatch.chdir(yard.project)
    assert main(["why", "acme/spanish"]) == 0
    out, err = capsys.readouterr()
    assert out == "acme/spanish@1.0.0\n"
    assert "adapt sync" in err


def test_stacks_that_go_round_and_stacks_that_multiply_end(yard: Yard) -> None:
    yard.yaml("adapters:\n  top: acme/s0\n")
    # Two stacks on each level that require both of the next: 2**12 ways to the bottom; and the last one goes round.
    entries = [locked("acme/s0", "acme/a0", "acme/b0", alias="top")]
    for level in range(12):
        below = [f"acme/a{level + 1}", f"acme/b{level + 1}"] if level < 11 else ["acme/bottom", "acme/s0"]
        entries += [locked(f"acme/{side}{level}", *below) for side in "ab"]
    lock_of(yard, *entries, locked("acme/bottom"), locked("acme/loner"))
    found = find_reasons("acme/bottom", environment=yard.environment)
    assert (len(found.paths), found.more) == (MAX_PATHS, True)
    assert find_reasons("acme/loner", environment=yard.environment).paths == ()
    assert find_reasons("top", environment=yard.environment).paths[0][0].alias == "top"
    assert len(read_lockfile(yard.project).entries) == 27


def test_the_command(yard: Yard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clinic(yard)
    monkeypatch.chdir(yard.project)
    assert main(["why", "clinic"]) == 0
    assert capsys.readouterr().out == "acme/clinic-es@1.0.0\n  adapters.yaml -> acme/clinic-es (1.0.0)\n"
    assert main(["why", "nothing", "--json"]) == 1
    out, err = capsys.readouterr()
    assert (out, "is not installed" in err) == ("", True)
