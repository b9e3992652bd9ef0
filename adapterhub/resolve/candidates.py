"""Which versions of a name may be chosen, in which order, and why others may not."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from packaging.version import Version

from adapterhub.errors import UnsatisfiedError, UsageError
from adapterhub.fingerprints import Verdict, compare
from adapterhub.registry.base import Description, Listed, Registry
from adapterhub.resolve.values import Locked, Policy
from adapterhub.spec.base_model import COMMIT_PATTERN, BaseModelRef
from adapterhub.spec.refs import PackageName, PackageRef, Requirement

Identity = tuple[str, Version, str | None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """One version that the solver may try.

    listed, description: what its registry told so far; both None for one that the lock alone knows. answers: the
    branches, tags and commits that name it. refused: why it may not be chosen as far as the requirements are known.
    depth: how many stacks lie between it and what the user asked for.
    """

    ref: PackageRef
    locked: Locked | None = None
    listed: Listed | None = None
    description: Description | None = None
    answers: frozenset[str] = frozenset()
    refused: str | None = None
    depth: int = 0

    @property
    def identity(self) -> Identity:
        """What makes two candidates the same package: a version of a registry is one, wherever it was looked up."""
        revision = None
        if self.answers:
            revision = self.locked.revision if self.locked else self.description.revision if self.description else None
        return (self.ref.name.key, self.ref.version, revision)


def satisfies(version: Version, requirement: Requirement) -> bool:
    """Say whether a version lies in a range, pre-releases included; a revision's range is everything.

    A derived version 0.0.0+g<12 hex> lies in no range but the empty one: it says nothing of what came before it.
    """
    if version.local is not None:
        return not requirement.specifier or requirement.exact == version
    return requirement.specifier.contains(version, prereleases=True)


def releases(versions: Sequence[Version], requirements: Iterable[Requirement], *, prereleases: bool) -> list[Version]:
    """Drop pre-releases, unless they are welcome, a range names one, or there is nothing else (PEP 440)."""
    if prereleases or any(requirement.specifier.prereleases for requirement in requirements):
        return list(versions)
    return [version for version in versions if not version.is_prerelease] or list(versions)


@dataclass(slots=True, kw_only=True)
class Candidates:
    """The registries as one resolution sees them: every name is listed once, every version described once.

    overlook: names, by key, for which versions made for another base are taken when there is no other; None for all.
    """

    registry_of: Callable[[PackageName], Registry]
    locked: Mapping[str, Locked]
    base: BaseModelRef | None
    policy: Policy
    overlook: frozenset[str] | None = frozenset()
    _registries: dict[str, Registry] = field(default_factory=dict)
    _listings: dict[str, tuple[Listed, ...] | UnsatisfiedError] = field(default_factory=dict)
    _descriptions: dict[Identity, Description] = field(default_factory=dict)
    _revisions: dict[tuple[str, str], Description | UnsatisfiedError] = field(default_factory=dict)
    _verdicts: dict[Identity, str | None] = field(default_factory=dict)
    _sorted: dict[tuple[str, frozenset[Requirement]], tuple[list[Listed], list[tuple[Listed, str]]]] = field(
        default_factory=dict
    )
    _kept: dict[str, Locked | None] = field(default_factory=dict)

    def registry(self, name: PackageName) -> Registry:
        """Return the one registry of a name."""
        if name.key not in self._registries:
            self._registries[name.key] = self.registry_of(name)
        return self._registries[name.key]

    def kept(self, name: PackageName) -> Locked | None:
        """Return what is locked of a name, unless it may move, or its registry is another one by now."""
        if name.key not in self._kept:
            self._kept[name.key] = self._keep(name)
        return self._kept[name.key]

    def _keep(self, name: PackageName) -> Locked | None:
        locked = self.locked.get(name.key)
        if locked is None or self.policy.frees(name.key) or str(locked.ref.name) != str(name):
            return None
        try:
            return locked if self.registry(name).location == locked.location else None
        except UsageError:
            # No registry is known for the name any more: what the lock says is all there is.
            return locked

    def from_lock(self, requirements: Sequence[Requirement], *, depth: int = 0) -> Candidate | None:
        """Return the locked version of a name, if it satisfies all that is required of it; asks no registry."""
        locked = self.kept(requirements[0].name)
        if locked is None:
            return None
        revisions = {item.revision for item in requirements if item.revision is not None}
        answers = {locked.asked, locked.revision} if locked.asked is not None else {_commit(locked.revision)}
        if not revisions <= answers or (locked.asked is not None and not revisions):
            return None
        if not all(satisfies(locked.ref.version, item) for item in requirements):
            return None
        return Candidate(ref=locked.ref, locked=locked, answers=frozenset(map(str, revisions)), depth=depth)

    def matches(
        self, requirements: Sequence[Requirement], excluded: Collection[Identity], *, depth: int
    ) -> Iterator[Candidate]:
        """Yield what may be chosen for a name under all that is required of it, best first, asking as late as can be.

        When nothing may be chosen, what satisfies the ranges is yielded as `refused`: a requirement that is not known
        yet may pin one of them.
        """
        name = requirements[0].name
        kept = self.from_lock(requirements, depth=depth)
        if kept is not None and kept.identity not in excluded:
            yield kept
        if any(requirement.revision is not None for requirement in requirements):
            found = self._at_revisions(requirements, depth)
        else:
            found = self._of_versions(name, requirements, depth)
        if self._overlooks(name):
            found = self._fitting_first(found)
        yield from (candidate for candidate in found if candidate.identity not in excluded)

    def _overlooks(self, name: PackageName) -> bool:
        locked = self.locked.get(name.key)
        return self.overlook is None or name.key in self.overlook or (locked is not None and locked.base_mismatch)

    def _fitting_first(self, found: Iterator[Candidate]) -> Iterator[Candidate]:
        unfit = []
        for candidate in found:
            if candidate.refused is None and self.other_base(candidate) is not None:
                unfit.append(candidate)
            else:
                yield candidate
        yield from unfit

    def _at_revisions(self, requirements: Sequence[Requirement], depth: int) -> Iterator[Candidate]:
        """Yield the package at the one commit that all revisions name."""
        revisions = sorted({item.revision for item in requirements if item.revision is not None})
        found = [self.at_revision(requirements[0].name, revision) for revision in revisions]
        first = found[0]
        for other in found:
            if isinstance(other, UnsatisfiedError) or isinstance(first, UnsatisfiedError):
                return
            if len(found) > 1 and (other.revision is None or other.revision != first.revision):
                return
        if isinstance(first, Description) and all(satisfies(first.ref.version, item) for item in requirements):
            yield Candidate(ref=first.ref, description=first, answers=frozenset(revisions), depth=depth)

    def _of_versions(self, name: PackageName, requirements: Sequence[Requirement], depth: int) -> Iterator[Candidate]:
        allowed, barred = self.sort_out(name, requirements)
        for item in allowed:
            yield Candidate(ref=PackageRef(name, item.version), listed=item, depth=depth)
        if not allowed:
            for item, reason in barred:
                yield Candidate(ref=PackageRef(name, item.version), listed=item, refused=reason, depth=depth)

    def sort_out(
        self, name: PackageName, requirements: Sequence[Requirement]
    ) -> tuple[list[Listed], list[tuple[Listed, str]]]:
        """Return which versions in the ranges may be chosen, best first, and which may not, with the reason."""
        at = (name.key, frozenset(requirements))
        if at not in self._sorted:
            self._sorted[at] = self._sort_out(name, requirements)
        return self._sorted[at]

    def _sort_out(
        self, name: PackageName, requirements: Sequence[Requirement]
    ) -> tuple[list[Listed], list[tuple[Listed, str]]]:
        listed = [
            item for item in self.listing(name) if all(satisfies(item.version, wanted) for wanted in requirements)
        ]
        barred = [(item, reason) for item in listed if (reason := self._bar(name, item, requirements)) is not None]
        refused = {item.version for item, _ in barred}
        versions = sorted((item.version for item in listed if item.version not in refused), reverse=True)
        passed = releases(versions, requirements, prereleases=self.policy.prereleases)
        by_version = {item.version: item for item in listed}
        allowed = [by_version[version] for version in passed]
        # What is installed and was yanked since is left when there is another version, but it is no dead end.
        locked = self.locked.get(name.key)
        allowed += [item for item, _ in barred if locked is not None and item.version == locked.ref.version]
        return allowed, sorted(barred, key=lambda pair: pair[0].version, reverse=True)

    def _bar(self, name: PackageName, item: Listed, requirements: Sequence[Requirement]) -> str | None:
        """Return why a version in the ranges may not be chosen; an exact pin overrules everything."""
        if any(requirement.exact == item.version for requirement in requirements):
            return None
        if item.yanked is not None:
            return "yanked" + (f": {item.yanked}" if item.yanked else "")
        locked = self.locked.get(name.key)
        if not self.policy.min_age or (locked is not None and locked.ref.version == item.version):
            return None
        if item.published is None:
            return "of unknown age: it has no date of publication"
        if self.policy.now - item.published < self.policy.min_age:
            return f"too young: published on {item.published:%Y-%m-%d}"
        return None

    def listing(self, name: PackageName) -> tuple[Listed, ...]:
        """Return a name's versions, none for a package that its registry does not have."""
        if name.key not in self._listings:
            try:
                self._listings[name.key] = self.registry(name).versions(name)
            except UnsatisfiedError as error:
                self._listings[name.key] = error
        found = self._listings[name.key]
        return () if isinstance(found, UnsatisfiedError) else found

    def listed(self, name: PackageName) -> tuple[Listed, ...]:
        """Return a name's versions as far as they were looked up; looks nothing up."""
        found = self._listings.get(name.key, ())
        return () if isinstance(found, UnsatisfiedError) else found

    def at_revision(self, name: PackageName, revision: str) -> Description | UnsatisfiedError:
        """Return the package at a branch, tag or commit, or why there is none."""
        at = (name.key, revision)
        if at not in self._revisions:
            try:
                self._revisions[at] = self.registry(name).at_revision(name, revision)
            except UnsatisfiedError as error:
                self._revisions[at] = error
        return self._revisions[at]

    def missing(self, requirement: Requirement) -> UnsatisfiedError | None:
        """Return the registry's own words for a package or revision that it does not have."""
        if requirement.revision is not None:
            found: object = self._revisions.get((requirement.name.key, requirement.revision))
        else:
            found = self._listings.get(requirement.name.key)
        return found if isinstance(found, UnsatisfiedError) else None

    def description(self, candidate: Candidate) -> Description | None:
        """Return what a registry told of a candidate, as far as it was asked."""
        return candidate.description or self._descriptions.get(candidate.identity)

    def _describe(self, candidate: Candidate) -> Description:
        known = self.description(candidate)
        if known is None:
            known = self.registry(candidate.ref.name).describe(candidate.ref)
            self._descriptions[candidate.identity] = known
        return known

    def requires(self, candidate: Candidate) -> tuple[Requirement, ...]:
        """Return what a stack asks for; nothing for an adapter. Reads the manifest where only that knows.

        Raises:
            IntegrityError, InvalidFileError: this version is damaged, or holds what no package may hold.
        """
        if candidate.locked is not None:
            return candidate.locked.requires
        listed = candidate.listed
        if listed is not None and listed.requires is not None:
            return tuple(item.requirement for item in listed.requires)
        return tuple(item.requirement for item in self._describe(candidate).manifest.requires)

    def known_requires(self, name: PackageName, listed: Listed) -> tuple[Requirement, ...]:
        """Return what a version asks for, as far as it was looked up; looks nothing up."""
        if listed.requires is not None:
            return tuple(item.requirement for item in listed.requires)
        found = self._descriptions.get((name.key, listed.version, None))
        return () if found is None else tuple(item.requirement for item in found.manifest.requires)

    def other_base(self, candidate: Candidate) -> str | None:
        """Return the id of the base model a candidate was made for, if that is another one; a locked one is trusted.

        Raises:
            IntegrityError, InvalidFileError: as `requires`.
        """
        if self.base is None or candidate.locked is not None:
            return None
        if candidate.identity not in self._verdicts:
            recorded = candidate.listed.base_model if candidate.listed is not None else None
            if recorded is None:
                recorded = self._describe(candidate).manifest.base_model
            different = compare(recorded, self.base) is Verdict.DIFFERENT
            self._verdicts[candidate.identity] = recorded.id if different else None
        return self._verdicts[candidate.identity]

    def refusal(self, candidate: Candidate) -> str | None:
        """Return why a candidate may not be chosen after all."""
        if candidate.refused is not None:
            return candidate.refused
        if self._overlooks(candidate.ref.name):
            return None
        other = self.other_base(candidate)
        return None if other is None else f"made for another base model, {other}"

    def known_other_base(self, name: PackageName, version: Version) -> str | None:
        """Return the other base model that a version was found to be made for; looks nothing up."""
        return self._verdicts.get((name.key, version, None))

    @property
    def found_other_bases(self) -> bool:
        """True when a candidate was made for another base model."""
        return any(other is not None for other in self._verdicts.values())


def _commit(revision: str | None) -> str | None:
    return revision if revision is not None and re.fullmatch(COMMIT_PATTERN, revision) else None
