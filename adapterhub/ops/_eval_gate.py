"""The two versions that `adapt eval --gate` compares: the locked one, and a candidate to take its place."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from adapterhub.environment import Environment, Located
from adapterhub.errors import UsageError
from adapterhub.package import open_package
from adapterhub.progress import Progress
from adapterhub.registry import Description, Registry
from adapterhub.resolve import ALL, Policy, Wanted, resolve
from adapterhub.spec.lockfile import LockedPackage
from adapterhub.spec.manifest import Manifest
from adapterhub.spec.project import PROJECT_FILE
from adapterhub.spec.refs import Requirement
from adapterhub.store import Store
from adapterhub.store.leases import lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What may take the locked version's place: a package in a folder, or a registry's, not fetched yet."""

    label: str
    folder: Path | None = None
    source: tuple[Registry, Description] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What is compared. word: that of the locked version in its environment. missing: why there is no candidate.

    notes: which versions were passed over, and why.
    """

    word: str
    entry: LockedPackage
    candidate: Candidate | None
    max_regression: float
    missing: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The locked version, as people read it."""
        return f"{self.word} {self.entry.version}"


def find_gate(given: str, *, against: str | None, max_regression: float, environment: Environment, cwd: Path) -> Gate:
    """Find the locked version and the candidate; nothing is fetched.

    given: an alias, whose newest version that adapters.yaml allows is the candidate; `org/name` with a range or
    version; or a package's folder, whose locked version is `against`, else the one of the same name.

    Raises:
        UsageError: a word names nothing, nothing is locked that the candidate could replace, or it is a stack.
        UnsatisfiedError: no version satisfies. NetworkError: the registry did not answer.
    """
    requirement = _requirement(given)
    found = environment.find(given if requirement is None else against or str(requirement.name), cwd=cwd)
    if requirement is not None or found.entry is not None:
        if against is not None and requirement is None:
            raise UsageError(
                f"{given!r} is what is locked: its newest version is compared with it",
                where="--against",
                hint="leave --against out, or name a package's folder with --gate",
            )
        return _from_registry(found, requirement, max_regression)
    manifest = open_package(found.folder).manifest
    _require_adapter(manifest, given)
    locked = environment.find(against, cwd=cwd) if against is not None else _same_name(manifest.name, environment, cwd)
    _, entry, word = _installed(locked)
    candidate = Candidate(label=f"{given} {manifest.version}", folder=found.folder.absolute())
    return Gate(word=word, entry=entry, candidate=candidate, max_regression=max_regression)


def _requirement(given: str) -> Requirement | None:
    """Return what `org/name`, with a range or not, asks for; None for an alias or a path."""
    if "/" not in given or given.startswith((".", "/", "~")) or "\\" in given or Path(given).is_absolute():
        return None
    try:
        return Requirement.parse(given)
    except ValueError as error:
        raise UsageError(str(error), where="--gate", hint="for a folder write ./path") from error


def _same_name(name: str, environment: Environment, cwd: Path) -> Located:
    """Find the one locked adapter that was published, or built, under a manifest's name."""
    entries = [(place, entry) for place in environment.chain for entry in place.lock.entries if not entry.requires]
    found = [entry for _, entry in entries if entry.name.name.casefold() == name.casefold()]
    if not found:
        folders = [(place.path_of(entry), entry) for place, entry in entries]
        found = [e for folder, e in folders if folder.is_dir() and open_package(folder).manifest.name == name]
    names = tuple(dict.fromkeys(str(entry.name) for entry in found))
    if len(names) == 1:
        return environment.find(names[0], cwd=cwd)
    told = f"may take the place of {' or of '.join(names)}" if names else "has no locked version here"
    raise UsageError(
        f"the package {name!r} {told}", where="--gate", hint="say which adapter it is to replace: --against ALIAS"
    )


def _installed(found: Located) -> tuple[Environment, LockedPackage, str]:
    if found.entry is None or found.environment is None:
        raise UsageError(
            f"{found.word!r} is not locked: a candidate is compared with the locked version",
            where="--against",
            hint="adapt install it first, or name its alias",
        )
    _require_adapter(open_package(found.folder).manifest, found.word)
    return found.environment, found.entry, found.entry.alias or str(found.entry.name)


def _from_registry(found: Located, requirement: Requirement | None, max_regression: float) -> Gate:
    """Choose the newest version that is allowed, as `adapt update` would."""
    environment, entry, word = _installed(found)
    own = requirement is None or requirement.name.key == entry.name.key
    asked = environment.project.adapters.get(entry.alias) if entry.alias is not None else None
    wanted = asked or Requirement(entry.name, revision=entry.requested_revision)
    if requirement is not None and not (own and requirement == Requirement(requirement.name)):
        wanted = requirement  # a bare name says as much as an alias: what adapters.yaml allows
    resolution = resolve(
        [Wanted(wanted, "--gate" if wanted is requirement else PROJECT_FILE)],
        registry_of=lambda name: environment.registry_of(name, given=None, cwd=environment.folder),
        locked={},
        base=environment.lock.base.base if environment.lock.base is not None else None,
        policy=Policy(upgrade=ALL, min_age=environment.settings.min_age, now=datetime.now(UTC)),
    )
    choice = resolution.choice(wanted.name.key)
    assert choice is not None and choice.registry is not None  # it was asked for, and nothing was said to be locked
    gate = Gate(word=word, entry=entry, candidate=None, max_regression=max_regression, notes=resolution.notes)
    if own and choice.ref.version == entry.version and choice.revision == entry.revision:
        return replace(gate, missing=f"{entry.ref} is locked, and there is no other version that {wanted} allows")
    described = choice.description or choice.registry.describe(choice.ref, revision=choice.revision)
    _require_adapter(described.manifest, str(choice.ref))
    return replace(gate, candidate=Candidate(label=str(choice.ref), source=(choice.registry, described)))


def _require_adapter(manifest: Manifest, label: str) -> None:
    """Refuse a stack package: its members are what could be compared.

    Raises:
        UsageError: it is one.
    """
    if manifest.kind != "adapter":
        raise UsageError(
            f"{label} is a package of kind {manifest.kind!r}; a gate compares adapters",
            where="--gate",
            hint="name one of its members",
        )


@contextmanager
def candidate_folder(candidate: Candidate, store: Store, *, progress: Progress) -> Iterator[Path]:
    """Give the candidate a folder for the length of a `with` block; one of a registry's is fetched into the store.

    Raises:
        IntegrityError: the registry's bytes are not what its manifest says. NetworkError, LocalIOError.
    """
    if candidate.source is None:
        assert candidate.folder is not None
        yield candidate.folder
        return
    registry, described = candidate.source
    with lease(store, [described.stored]), tempfile.TemporaryDirectory(prefix="adapt-eval-") as folder:
        stored = registry.fetch(described, store, progress=progress)
        store.put_files(stored, Path(folder))
        yield Path(folder)
