"""The installed adapters of a project or of the user, and what a word in a stack means there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.documents import read_lockfile, read_project
from adapterhub.errors import IncompatibleError, InvalidFileError, UnsatisfiedError, UsageError
from adapterhub.settings import Settings
from adapterhub.spec._decode import suggest
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.lockfile import LockedPackage, Lockfile
from adapterhub.spec.project import DEFAULT_STACK, PROJECT_FILE, Project
from adapterhub.spec.refs import PackageName, PackageRef
from adapterhub.spec.stack import DEFAULT_COMBINATION, Parameters, Stack, StackLayer

if TYPE_CHECKING:
    from adapterhub.package import Package
    from adapterhub.registry import Registry
    from adapterhub.spec.manifest import Manifest

ADAPTERS_FOLDER = ".adapters"
# Below it, by full name: what nothing but a stack package asks for, and so has no alias.
MEMBERS_FOLDER = ".members"
_MAX_NESTED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveLayer:
    """One adapter of a stack: the word that named it, the package, its coefficient.

    alias: its key in the environment, None for a folder. base_mismatch: the user overrode a failed base check.
    """

    word: str
    package: Package
    weight: float
    alias: str | None = None
    base_mismatch: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedStack:
    """The adapters of a stack in order; empty means the bare base model.

    base: the base model that all of them were trained on, or the project's for an empty stack; None where nothing says.
    """

    layers: tuple[ActiveLayer, ...] = ()
    combination: str = DEFAULT_COMBINATION
    parameters: Parameters = field(default_factory=Parameters)
    base: BaseModelRef | None = None

    @property
    def base_id(self) -> str | None:
        """The base model's id."""
        return None if self.base is None else self.base.id


@dataclass(frozen=True, slots=True, kw_only=True)
class _Combined:
    """How a stack says that it is combined."""

    name: str = DEFAULT_COMBINATION
    parameters: Parameters = field(default_factory=Parameters)

    @classmethod
    def of(cls, stack: Stack) -> _Combined:
        return cls(name=stack.combination, parameters=stack.parameters)

    @classmethod
    def packaged(cls, manifest: Manifest) -> _Combined:
        return cls(name=manifest.combination or DEFAULT_COMBINATION, parameters=manifest.parameters)

    def __str__(self) -> str:
        said = ", ".join(f"{key} {value}" for key, value in self.parameters.to_data().items())
        return f"{self.name} ({said})" if said else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """Where a word leads: a folder, and the lock's entry for it where an environment has it installed."""

    word: str
    folder: Path
    entry: LockedPackage | None = None
    environment: Environment | None = None


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A folder with adapters.yaml, adapters.lock and .adapters/, each read when first asked for.

    is_user: this is the user's own environment, not a project's.
    """

    folder: Path
    settings: Settings
    is_user: bool = False

    @cached_property
    def project(self) -> Project:
        """What adapters.yaml says; empty where there is none."""
        return read_project(self.folder) if (self.folder / PROJECT_FILE).exists() else Project()

    @cached_property
    def lock(self) -> Lockfile:
        """What adapters.lock says; empty where there is none."""
        return read_lockfile(self.folder)

    @cached_property
    def user(self) -> Environment | None:
        """The user's own environment, where words are looked up next; None for itself."""
        if self.is_user:
            return None
        return Environment(folder=self.settings.user_environment, settings=self.settings, is_user=True)

    @property
    def chain(self) -> tuple[Environment, ...]:
        """This environment, then the user's."""
        return (self,) if self.user is None else (self, self.user)

    def adapter_path(self, alias: str) -> Path:
        """Where an installed adapter lies, a folder that PEFT loads."""
        return self.folder / ADAPTERS_FOLDER / alias

    def path_of(self, entry: LockedPackage) -> Path:
        """Where a locked package lies: by its alias, or by its name when only a stack package asks for it."""
        if entry.alias is not None:
            return self.adapter_path(entry.alias)
        return self.folder / ADAPTERS_FOLDER / MEMBERS_FOLDER / entry.name.key

    def registry_of(self, name: PackageName, *, given: str | None, cwd: Path) -> Registry:
        """Return the one registry of a name: the given one, else the project's, the lock's, the settings', the Hub.

        A relative path that was typed (`given`, ADAPTERHUB_REGISTRY) is meant from `cwd`; the registry's `location` is
        the path from this environment's folder, which is what its lockfile can record.

        Raises:
            UsageError: adapters.yaml claims the name for another registry.
        """
        from adapterhub.registry import HUB

        claimed = self.project.registry_of(name)
        if given is not None:
            typed = self._as_seen_from_here(given, cwd)
            if claimed is not None and not self._same_place(typed, claimed):
                raise UsageError(
                    f"{PROJECT_FILE} says that {name} comes from {claimed}, and a name has one registry",
                    where=f"--registry {given}",
                    hint=f"leave --registry out, or change `registries` in {self.folder / PROJECT_FILE}",
                )
            return self._registry_at(typed)
        if claimed is not None:
            return self._registry_at(claimed)
        if (locked := self.lock.by_name(name)) is not None:
            return self._registry_at(locked.registry)
        if self.settings.registry is not None:
            return self._registry_at(self._as_seen_from_here(self.settings.registry, cwd))
        return self._registry_at(HUB)

    def _registry_at(self, location: str) -> Registry:
        from adapterhub.registry import open_registry

        if location not in self._registries:
            opened = open_registry(location, relative_to=self.folder, offline=self.settings.offline)
            self._registries[location] = opened
        return self._registries[location]

    @cached_property
    def _registries(self) -> dict[str, Registry]:
        """What was opened: a registry that was asked once need not be asked again."""
        return {}

    def _as_seen_from_here(self, location: str, cwd: Path) -> str:
        path = Path(location).expanduser()
        if _is_no_path(location) or path.is_absolute() or _same_folder(cwd, self.folder):
            return location
        target = Path(os.path.normpath(cwd / path))
        if self.is_user:
            return str(target)
        try:
            return Path(os.path.relpath(target, self.folder)).as_posix()
        except ValueError:  # another drive
            return str(target)

    def _same_place(self, first: str, second: str) -> bool:
        def place(location: str) -> str:
            return location if _is_no_path(location) else os.path.realpath(self.folder / Path(location).expanduser())

        return place(first) == place(second)

    def find(self, word: str, *, cwd: Path) -> Located:
        """Return what a word names: an alias here, an alias of the user's, an installed org/name, or a ./path.

        Raises:
            UsageError: it names none of these; the hint lists what there is. UnsatisfiedError: it is not installed.
        """
        if _is_path(word):
            return Located(word=word, folder=cwd / Path(word).expanduser())
        for environment in self.chain:
            if (entry := environment.lock.by_alias(word)) is not None:
                return environment._located(word, entry)
            if word in environment.project.adapters:
                raise UnsatisfiedError(
                    f"{word!r} ({environment.project.adapters[word]}) is in {PROJECT_FILE} but not installed",
                    where=str(environment.folder),
                    hint="adapt install",
                )
        if "/" in word:
            return self._find_by_name(word)
        raise self._no_such_word(word, cwd)

    def _find_by_name(self, word: str) -> Located:
        try:
            ref = PackageRef.parse(word) if "@" in word else None
            name = ref.name if ref is not None else PackageName.parse(word)
        except ValueError as error:
            raise UsageError(str(error), where=word, hint=self._candidates()) from error
        for environment in self.chain:
            entry = environment.lock.by_name(name)
            if entry is not None and str(entry.name) == str(name) and (ref is None or ref.version == entry.version):
                return environment._located(word, entry)
        raise UsageError(f"{word} is not installed", hint=f"adapt install {word}; {self._candidates()}")

    def _located(self, word: str, entry: LockedPackage) -> Located:
        folder = self.path_of(entry)
        if not folder.is_dir():
            raise UnsatisfiedError(f"{entry.ref} is locked but not installed", where=str(folder), hint="adapt install")
        return Located(word=word, folder=folder, entry=entry, environment=self)

    def _no_such_word(self, word: str, cwd: Path) -> UsageError:
        near = suggest(word, self.words())
        hint = f"did you mean {near}? " if near else ""
        if (cwd / word).is_dir():
            hint = f"for the folder write ./{word}; "
        return UsageError(f"{word!r} is neither an adapter nor a stack here", hint=hint + self._candidates())

    def words(self) -> tuple[str, ...]:
        """Return every word that names a stack or an adapter here, stacks first."""
        found = dict.fromkeys(self.project.stacks)
        for environment in self.chain:
            found |= dict.fromkeys(sorted(entry.alias for entry in environment.lock.entries if entry.alias))
            found |= dict.fromkeys(sorted(environment.project.adapters))
        return tuple(found)

    def _candidates(self) -> str:
        words = self.words()
        return f"known: {', '.join(words)}" if words else "nothing is installed: adapt install org/name"

    def resolve_stack(self, stack: Stack | None, *, cwd: Path | None = None) -> ResolvedStack:
        """Return the adapters a stack names; without one the stack `default`, else the only adapter, else none.

        Raises:
            UsageError: a word names nothing, or a package comes twice. UnsatisfiedError: one is not installed.
            IncompatibleError: the adapters were trained on different base models.
        """
        here = cwd if cwd is not None else Path.cwd()
        if stack is None:
            stack = self._default_stack()
        layers: list[ActiveLayer] = []
        how = _Combined.of(stack) if stack is not None else _Combined()
        if stack is not None:
            if len(stack.layers) == 1:  # a stack of one word that is a stack itself is combined as that one says
                how = self._combined(stack.layers[0].word, here) or how
            layers = [layer for item in stack.layers for layer in self._expand(item, 1.0, how, here, ())]
        _refuse_twice(layers)
        base = _common_base([layer for layer in layers if not layer.base_mismatch])
        if base is None and self.project.base_model is not None:
            base = BaseModelRef(id=self.project.base_model, revision=self.project.base_revision)
        if base is None:  # every mismatch was overridden, against a base that adapters.yaml no longer names
            base = _common_base(layers)
        return ResolvedStack(layers=tuple(layers), combination=how.name, parameters=how.parameters, base=base)

    def _default_stack(self) -> Stack | None:
        if (named := self.project.stacks.get(DEFAULT_STACK)) is not None:
            return named
        aliases = {entry.alias for entry in self.lock.entries if entry.alias} | set(self.project.adapters)
        return Stack(layers=(StackLayer(word=aliases.pop()),)) if len(aliases) == 1 else None

    def _combined(self, word: str, cwd: Path) -> _Combined | None:
        """Return how the stack that a word names is combined; None if the word is an adapter's."""
        if (named := self.project.stacks.get(word)) is not None:
            return _Combined.of(named)
        manifest = self._open(self.find(word, cwd=cwd)).manifest
        return _Combined.packaged(manifest) if manifest.kind == "stack" else None

    def _expand(
        self, layer: StackLayer, factor: float, how: _Combined, cwd: Path, through: tuple[str, ...]
    ) -> Iterator[ActiveLayer]:
        """Walk over the adapters that one layer stands for, stacks opened, coefficients multiplied.

        A stack is one of adapters.yaml, named by a word, or a package of kind `stack`.
        """
        weight = factor * layer.weight
        named = self.project.stacks.get(layer.word)
        if named is not None:
            path = self._one_deeper(layer.word, _Combined.of(named), how, through)
            for inner in named.layers:
                yield from self._expand(inner, weight, how, self.folder, path)
            return
        found = self.find(layer.word, cwd=cwd)
        package = self._open(found)
        if package.manifest.kind == "stack":
            word = str(found.entry.name) if found.entry else layer.word
            path = self._one_deeper(word, _Combined.packaged(package.manifest), how, through)
            place = found.environment or self
            for item in package.manifest.requires:
                member = StackLayer(word=str(item.requirement.name), weight=item.weight)
                yield from place._expand(member, weight, how, cwd, path)
            return
        yield ActiveLayer(
            word=layer.word,
            package=package,
            weight=weight,
            alias=found.entry.alias if found.entry else None,
            base_mismatch=bool(found.entry and found.entry.base_mismatch),
        )

    def _one_deeper(self, word: str, how: _Combined, around: _Combined, through: tuple[str, ...]) -> tuple[str, ...]:
        """Return the way down to a stack inside a stack.

        Raises:
            InvalidFileError: it goes round. UsageError: the two are combined in different ways.
        """
        path = (*through, word)
        if word in through or len(path) > _MAX_NESTED:
            raise InvalidFileError(f"the stacks go round: {' → '.join(path)}", where=str(self.folder / PROJECT_FILE))
        if how != around:
            raise UsageError(
                f"the stack {word!r} is combined by {how}, the one around it by {around}",
                hint=f"use {word!r} alone, or name its adapters one by one",
            )
        return path

    @staticmethod
    def _open(found: Located) -> Package:
        from adapterhub.package import open_package

        return open_package(found.folder)


def find_environment(cwd: Path | None = None, settings: Settings | None = None) -> Environment:
    """Return the project whose adapters.yaml is nearest at or above a folder, else the user's own environment."""
    from adapterhub.settings import read_settings

    settings = settings if settings is not None else read_settings()
    here = (cwd if cwd is not None else Path.cwd()).absolute()
    for folder in (here, *here.parents):
        if (folder / PROJECT_FILE).is_file():
            return Environment(
                folder=folder, settings=settings, is_user=_same_folder(folder, settings.user_environment)
            )
    return Environment(folder=settings.user_environment, settings=settings, is_user=True)


def _is_no_path(location: str) -> bool:
    from adapterhub.registry import HUB

    return location == HUB or "://" in location


def _same_folder(first: Path, second: Path) -> bool:
    return os.path.realpath(first) == os.path.realpath(second)


def _is_path(word: str) -> bool:
    starts = ("./", "../", "~", ".\\", "..\\")
    return word in (".", "..") or word.startswith(starts) or Path(word).is_absolute()


def _refuse_twice(layers: list[ActiveLayer]) -> None:
    seen: dict[str, str] = {}
    for layer in layers:
        place = os.path.realpath(layer.package.path)
        if place in seen:
            raise UsageError(
                f"{seen[place]!r} and {layer.word!r} are one adapter, which comes twice in the stack",
                hint="name it once, with the weight you mean",
            )
        seen[place] = layer.word


def _common_base(layers: list[ActiveLayer]) -> BaseModelRef | None:
    """Return the base model that all adapters share; None for no adapters.

    Raises:
        IncompatibleError: they do not share one.
    """
    for layer in layers[1:]:
        first, other = layers[0].package.manifest.base_model, layer.package.manifest.base_model
        if not _one_base(first, other):
            raise IncompatibleError(
                "the adapters of the stack were trained on different base models",
                details=tuple(f"{one.word}: {_told(one.package.manifest.base_model)}" for one in layers),
                hint="stack adapters of one base model",
            )
    return layers[0].package.manifest.base_model if layers else None


def _one_base(first: BaseModelRef, second: BaseModelRef) -> bool:
    """Say whether two adapters were trained on one base model, another revision of it included."""
    from adapterhub.fingerprints import Verdict, compare

    verdict = compare(first, second)
    if verdict is Verdict.UNKNOWN:
        return first.id.casefold() == second.id.casefold()
    return verdict in (Verdict.EXACT, Verdict.REVISION)


def _told(base: BaseModelRef) -> str:
    weights = base.fingerprints.weights
    revision = f" at {base.revision}" if base.revision else ""
    return f"{base.id}{revision}" + (f" (weights {weights.short})" if weights else "")
