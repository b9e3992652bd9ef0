"""What a word means, where a registry is found, and which adapters a stack names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.environment import Environment, find_environment
from adapterhub.errors import IncompatibleError, InvalidFileError, UnsatisfiedError, UsageError
from adapterhub.settings import Settings
from adapterhub.spec.lockfile import LockedPackage, Lockfile
from adapterhub.spec.refs import PackageName, parse_version
from adapterhub.spec.stack import Parameters, Stack
from tests.factory import tiny_llama, tiny_lora


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture(scope="module")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("other") / "tiny-llama", seed=1)


def put(
    folder: Path, base: Path, *names: str, base_id: str = "tiny-llama", mismatch: bool = False, manifest: bool = True
) -> None:
    """Lay adapters out in an environment as an installation leaves them; `acme/NAME` at 1.0.0 each."""
    from adapterhub.documents import read_lockfile, write_lockfile

    entries = list(read_lockfile(folder).entries)
    for name in names:
        tiny_lora(folder / ".adapters" / name, base, name=name, base_id=base_id, manifest=manifest)
        entries.append(
            LockedPackage(
                alias=name,
                name=PackageName("acme", name),
                version=parse_version("1.0.0"),
                registry="./registry",
                base_mismatch=mismatch,
            )
        )
    write_lockfile(folder, Lockfile(entries=tuple(entries)))


def project(folder: Path, settings: Settings, text: str = "") -> Environment:
    folder.mkdir(exist_ok=True)
    (folder / "adapters.yaml").write_text('project_version: "1.0"\n' + text)
    return find_environment(folder, settings)


def words(environment: Environment, text: str | None, cwd: Path | None = None) -> list[tuple[str, float]]:
    found = environment.resolve_stack(None if text is None else Stack.parse(text), cwd=cwd)
    return [(layer.word, layer.weight) for layer in found.layers]


def test_the_nearest_project_upward_is_found(tmp_path: Path, settings: Settings) -> None:
    project(tmp_path / "p", settings)
    below = tmp_path / "p" / "a" / "b"
    below.mkdir(parents=True)
    found = find_environment(below, settings)
    assert found.folder == tmp_path / "p"
    assert not found.is_user
    assert found.user is not None
    assert found.user.folder == settings.user_environment


def test_without_a_project_it_is_the_user_s_own(tmp_path: Path, settings: Settings) -> None:
    found = find_environment(tmp_path, settings)
    assert (found.folder, found.is_user, found.user) == (settings.user_environment, True, None)
    assert found.resolve_stack(None).layers == ()


def test_a_word_is_a_stack_then_an_alias_then_the_user_s(tmp_path: Path, settings: Settings, base: Path) -> None:
    here = project(
        tmp_path / "p",
        settings,
        "adapters: {legal: acme/legal, spanish: acme/spanish}\nstacks: {both: 'legal,acme/spanish=0.5'}\n",
    )
    put(here.folder, base, "legal", "spanish")
    put(settings.user_environment, base, "legal", "medical")
    here = find_environment(here.folder, settings)
    assert words(here, "both=2") == [("legal", 2.0), ("acme/spanish", 1.0)]
    assert here.find("legal", cwd=tmp_path).folder == here.folder / ".adapters" / "legal"
    assert here.find("medical", cwd=tmp_path).folder == settings.user_environment / ".adapters" / "medical"
    assert here.find("acme/medical@1.0.0", cwd=tmp_path).folder.name == "medical"


def test_a_path_is_a_path_only_when_it_says_so(tmp_path: Path, settings: Settings, base: Path) -> None:
    here = project(tmp_path / "p", settings)
    tiny_lora(here.folder / "acme" / "legal", base)
    assert words(here, "./acme/legal", cwd=here.folder) == [("./acme/legal", 1.0)]
    with pytest.raises(UsageError, match="not installed") as caught:
        words(here, "acme/legal", cwd=here.folder)
    assert "adapt install acme/legal" in (caught.value.hint or "")
    with pytest.raises(UsageError) as caught:
        words(here, "acme", cwd=here.folder)
    assert "./acme" in (caught.value.hint or "")


def test_a_path_in_adapters_yaml_is_meant_from_its_folder(tmp_path: Path, settings: Settings, base: Path) -> None:
    here = project(tmp_path / "p", settings, "stacks: {draft: './out/legal'}\n")
    tiny_lora(here.folder / "out" / "legal", base)
    assert words(here, "draft", cwd=tmp_path) == [("./out/legal", 1.0)]


def test_an_unknown_word_lists_the_candidates(tmp_path: Path, settings: Settings, base: Path) -> None:
    here = project(tmp_path / "p", settings)
    put(here.folder, base, "legal", "spanish")
    here = find_environment(here.folder, settings)
    with pytest.raises(UsageError) as caught:
        words(here, "legla")
    assert "did you mean legal?" in (caught.value.hint or "")
    assert "spanish" in (caught.value.hint or "")


@pytest.mark.parametrize("word", ["acme/legal@2.0.0", "Acme/legal", "acme/other"])
def test_a_name_is_exact(tmp_path: Path, settings: Settings, base: Path, word: str) -> None:
    here = project(tmp_path / "p", settings)
    put(here.folder, base, "legal")
    with pytest.raises(UsageError, match="not installed"):
        words(find_environment(here.folder, settings), word)


def test_what_is_asked_for_or_locked_but_not_there_says_install(tmp_path: Path, settings: Settings, base: Path) -> None:
    here = project(tmp_path / "p", settings, "adapters: {legal: acme/legal, spanish: acme/spanish}\n")
    put(here.folder, base, "legal")
    import shutil

    shutil.rmtree(here.folder / ".adapters" / "legal")
    here = find_environment(here.folder, settings)
    for word in ("legal", "spanish"):
        with pytest.raises(UnsatisfiedError) as caught:
            words(here, word)
        assert caught.value.hint == "adapt install"


def test_no_stack_is_default_else_the_only_one_else_none(tmp_path: Path, settings: Settings, base: Path) -> None:
    here = project(tmp_path / "p", settings, "base_model: tiny-llama\n")
    empty = here.resolve_stack(None)
    assert (empty.layers, empty.base_id) == ((), "tiny-llama")
    put(here.folder, base, "legal")
    here = find_environment(here.folder, settings)
    assert words(here, None) == [("legal", 1.0)]
    put(here.folder, base, "spanish")
    assert words(find_environment(here.folder, settings), None) == []
    here = project(
        here.folder,
        settings,
        "adapters: {legal: acme/legal, spanish: acme/spanish}\nstacks: {default: 'spanish=0.3'}\n",
    )
    assert words(here, None) == [("spanish", 0.3)]


def test_stacks_may_name_stacks_but_not_go_round(tmp_path: Path, settings: Settings, base: Path) -> None:
    text = "adapters: {legal: acme/legal}\nstacks: {a: 'b=0.5', b: 'legal=0.5', c: 'd', d: 'c'}\n"
    here = project(tmp_path / "p", settings, text)
    put(here.folder, base, "legal")
    here = find_environment(here.folder, settings)
    assert words(here, "a") == [("legal", 0.25)]
    with pytest.raises(InvalidFileError, match="c → d → c"):
        words(here, "c")


def test_an_adapter_that_comes_twice_is_refused(tmp_path: Path, settings: Settings, base: Path) -> None:
    here = project(tmp_path / "p", settings)
    put(here.folder, base, "legal")
    with pytest.raises(UsageError, match="twice"):
        words(find_environment(here.folder, settings), "legal,acme/legal")


def test_adapters_of_two_bases_are_refused(tmp_path: Path, settings: Settings, base: Path, other_base: Path) -> None:
    here = project(tmp_path / "p", settings, "base_model: tiny-llama\n")
    put(here.folder, base, "legal")
    put(here.folder, other_base, "spanish")
    put(here.folder, base, "plain", base_id="another", manifest=False)
    here = find_environment(here.folder, settings)
    for second in ("spanish", "plain"):  # the same name with other weights; another name with none recorded
        with pytest.raises(IncompatibleError) as caught:
            words(here, f"legal,{second}")
        assert len(caught.value.details) == 2


def test_an_overridden_mismatch_follows_the_others(
    tmp_path: Path, settings: Settings, base: Path, other_base: Path
) -> None:
    here = project(tmp_path / "p", settings, "base_model: tiny-llama\n")
    put(here.folder, base, "legal")
    put(here.folder, other_base, "spanish", base_id="other", mismatch=True)
    here = find_environment(here.folder, settings)
    found = here.resolve_stack(Stack.parse("spanish,legal"))
    assert found.base_id == "tiny-llama"
    assert found.base == found.layers[1].package.manifest.base_model
    assert here.resolve_stack(Stack.parse("spanish")).base_id == "tiny-llama"


def test_a_combination_holds_for_the_whole_stack(tmp_path: Path, settings: Settings, base: Path) -> None:
    text = "adapters: {legal: acme/legal}\nstacks: {t: {layers: [{adapter: legal}], combination: ties}}\n"
    here = project(tmp_path / "p", settings, text)
    put(here.folder, base, "legal", "spanish")
    here = find_environment(here.folder, settings)
    assert here.resolve_stack(Stack.parse("t")).combination == "ties"
    with pytest.raises(UsageError, match="combined"):
        words(here, "t,spanish")


def test_the_parameters_of_a_combination_hold_for_the_whole_stack(
    tmp_path: Path, settings: Settings, base: Path
) -> None:
    text = "adapters: {legal: acme/legal}\nstacks: {t: {layers: [{adapter: legal}], combination: ties, density: 0.5}}\n"
    here = project(tmp_path / "p", settings, text)
    put(here.folder, base, "legal", "spanish")
    here = find_environment(here.folder, settings)
    assert here.resolve_stack(Stack.parse("t")).parameters == Parameters(density=0.5)
    with pytest.raises(UsageError, match=r"by ties \(density 0.5\), the one around it by ties"):
        here.resolve_stack(Stack.parse("t,spanish", combination="ties"))
    both = Stack.parse("t,spanish", combination="ties", parameters=Parameters(density=0.5))
    assert len(here.resolve_stack(both).layers) == 2


NAME = PackageName.parse("acme/legal")


def test_a_registry_is_given_claimed_locked_or_set(tmp_path: Path, settings: Settings, base: Path) -> None:
    here = project(tmp_path / "p", settings)
    assert here.registry_of(NAME, given=None, cwd=tmp_path).location == "hub"
    fallback = find_environment(here.folder, replace(settings, registry="set"))
    assert fallback.registry_of(NAME, given=None, cwd=tmp_path).location == "../set"
    put(here.folder, base, "legal")
    locked = find_environment(here.folder, replace(settings, registry="set"))
    assert locked.registry_of(NAME, given=None, cwd=tmp_path).location == "./registry"
    claimed = project(here.folder, settings, "registries: {'acme/*': claimed, '*': other}\n")
    assert claimed.registry_of(NAME, given=None, cwd=tmp_path).location == "claimed"
    assert locked.registry_of(NAME, given="given", cwd=here.folder).location == "given"


def test_a_registry_that_adapters_yaml_contradicts_is_refused(tmp_path: Path, settings: Settings) -> None:
    here = project(tmp_path / "p", settings, "registries: {'acme/*': ./claimed}\n")
    with pytest.raises(UsageError, match="one registry"):
        here.registry_of(NAME, given="other", cwd=here.folder)
    assert here.registry_of(NAME, given="p/claimed", cwd=tmp_path).location == "claimed"


def test_a_typed_path_is_recorded_as_seen_from_the_project(tmp_path: Path, settings: Settings) -> None:
    here = project(tmp_path / "p", settings)
    below = here.folder / "sub"
    below.mkdir()
    assert here.registry_of(NAME, given="./registry", cwd=here.folder).location == "./registry"
    assert here.registry_of(NAME, given="../../registry", cwd=below).location == "../registry"
    assert here.registry_of(NAME, given="/srv/registry", cwd=below).location == "/srv/registry"
    user = Environment(folder=settings.user_environment, settings=settings, is_user=True)
    assert user.registry_of(NAME, given="registry", cwd=tmp_path).location == str(tmp_path / "registry")
