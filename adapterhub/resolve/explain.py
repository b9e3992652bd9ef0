"""Why a version was chosen, which were passed over, and why there is no answer, in prose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from packaging.version import Version

from adapterhub.errors import UnsatisfiedError
from adapterhub.registry.base import Listed
from adapterhub.resolve.candidates import Candidate, Candidates, satisfies
from adapterhub.resolve.values import Wanted
from adapterhub.spec.refs import PackageName, Requirement

if TYPE_CHECKING:
    from adapterhub.resolve.solver import Cause, Conflict

# How many versions a list shows, how many a sentence names, how many facts one sentence holds, how many lines follow.
_SHOWN, _NAMED, _IN_A_SENTENCE, _LINES = 10, 4, 4, 20


def reasons_for(candidate: Candidate, requirements: Sequence[Requirement], candidates: Candidates) -> tuple[str, ...]:
    """Return why this version was chosen."""
    version = candidate.ref.version
    if candidate.locked is not None:
        return ("locked",)
    if candidate.answers:
        return (f"{version} is what {', '.join(sorted(candidate.answers))} names",)
    listed = candidates.listing(candidate.ref.name)
    allowed, _ = candidates.sort_out(candidate.ref.name, tuple(requirements))
    if any(requirement.exact == version for requirement in requirements):
        reasons = [f"{version} is asked for"]
        yanked = next((item.yanked for item in listed if item.version == version), None)
        if yanked is not None:
            reasons.append(f"{version} is yanked" + (f": {yanked}" if yanked else ""))
        return tuple(reasons)
    ranges = sorted({str(requirement.specifier) for requirement in requirements if requirement.specifier})
    wanted = " and ".join(ranges) or "any version"
    if allowed and version == allowed[0].version:
        reasons = [f"{version} is the highest of {len(allowed)} that satisfy {wanted}"]
    else:
        reasons = [f"{version} is the highest that satisfies {wanted} and goes with the rest"]
    other = candidates.known_other_base(candidate.ref.name, version)
    if other is not None:
        reasons.append(f"no version is made for the base model here; this one is made for {other}")
    passed = [
        item.version
        for item in listed
        if item.version > version
        and item.version.is_prerelease
        and all(satisfies(item.version, requirement) for requirement in requirements)
    ]
    if passed and not version.is_prerelease:
        reasons.append(f"{max(passed)} is a pre-release: ask for it with @{max(passed)}")
    return tuple(reasons)


def skipped(
    pinned: Mapping[str, Candidate],
    asked: Mapping[str, Sequence[Wanted]],
    candidates: Candidates,
) -> tuple[str, ...]:
    """Return a note on every higher version that satisfies and was passed over, and on yanked ones that were not."""
    notes = []
    for key in sorted(asked):
        candidate = pinned[key]
        name, chosen = candidate.ref.name, candidate.ref.version
        if candidate.locked is not None or candidate.answers:
            continue
        requirements = tuple(item.requirement for item in asked[key])
        allowed, barred = candidates.sort_out(name, requirements)
        reasons = {item.version: reason for item, reason in barred}
        for item in allowed:
            other = candidates.known_other_base(name, item.version)
            requires = [str(requirement) for requirement in candidates.known_requires(name, item)]
            told = f" ({_joined(requires)})" if requires else ""
            reason = f"what it requires{told} does not go with the rest"
            reasons.setdefault(item.version, reason if other is None else f"made for another base model, {other}")
        notes += [
            f"{name} {version} is passed over: {reason}"
            for version, reason in sorted(reasons.items(), reverse=True)
            if version > chosen
        ]
        own = next((item for item in candidates.listing(name) if item.version == chosen), None)
        if own is not None and own.yanked is not None:
            notes.append(f"{name} {chosen} is yanked" + (f": {own.yanked}" if own.yanked else ""))
    return tuple(notes)


@dataclass(slots=True)
class _Facts:
    """What is true and cannot be so at once; every part is sorted when it is told.

    required: by whom and what, with the asker's versions (none for the user's own). refused: candidates that may not
    be chosen. missing: what the registries said of packages that they do not have.
    """

    required: dict[tuple[str, str], set[Version]] = field(default_factory=dict)
    requirements: dict[str, Requirement] = field(default_factory=dict)
    refused: dict[str, tuple[Candidate, str]] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    askers: dict[str, PackageName] = field(default_factory=dict)

    @classmethod
    def of(cls, conflict: Conflict, candidates: Candidates) -> _Facts:
        """Follow a conflict back: who asked, who asked for those, and why their other versions were no way out."""
        facts, seen = cls(), set[str]()
        pending = list(conflict.causes)
        while pending:
            cause = pending.pop()
            facts._add(cause, candidates)
            keys = [cause.requirement.requirement.name.key]
            if cause.parent is not None:
                keys.append(cause.parent.ref.name.key)
            for key in keys:
                if key not in seen:
                    seen.add(key)
                    pending += [other for found in conflict.rejections.get(key, ()) for other in found.causes]
                    pending += conflict.asked.get(key, ())
        return facts

    def _add(self, cause: Cause, candidates: Candidates) -> None:
        want, parent = cause.requirement, cause.parent
        if want.refusal is not None:
            if parent is not None:
                self.refused[str(parent.ref)] = (parent, want.refusal)
            return
        text = str(want.requirement)
        self.requirements[text] = want.requirement
        versions = self.required.setdefault((want.by, text), set())
        if parent is not None:
            versions.add(parent.ref.version)
            self.askers[want.by] = parent.ref.name
        error = candidates.missing(want.requirement)
        if error is not None:
            self.missing.add(error.message + (f" ({error.where})" if error.where else ""))

    def lines(self, candidates: Candidates) -> list[str]:
        """Return one line for each fact: what stacks require, what the user does, what stands in the way."""
        told = []
        for by, versions in sorted({(by, tuple(sorted(found))) for (by, _), found in self.required.items()}):
            texts = sorted(
                text for (other, text), found in self.required.items() if (other, found) == (by, {*versions})
            )
            told.append((not versions, by, versions, f"{self._subject(by, versions, candidates)} {_joined(texts)}"))
        lines = [line for *_, line in sorted(told)]
        lines += [
            f"{candidate.ref.name} {candidate.ref.version} is {reason}"
            for _, (candidate, reason) in sorted(self.refused.items())
        ]
        return [*lines, *self._unmet(candidates), *sorted(self.missing)]

    def _subject(self, by: str, versions: tuple[Version, ...], candidates: Candidates) -> str:
        if not versions:
            return f"{by} requires"
        known = {item.version for item in candidates.listed(self.askers[by])}
        if len(versions) > 1 and known == set(versions):
            return f"every version of {by} requires"
        if len(versions) > _NAMED:
            return f"{len(versions)} versions of {by}, from {versions[0]} to {versions[-1]}, require"
        only = " (its only version)" if known == set(versions) else ""
        return f"{by} {_joined([str(item) for item in versions])}{only} require{'s' if len(versions) == 1 else ''}"

    def _unmet(self, candidates: Candidates) -> list[str]:
        """Return a line for each range in which a package has no version at all."""
        lines = []
        for _, requirement in sorted(self.requirements.items()):
            versions = [item.version for item in candidates.listed(requirement.name)]
            if (
                requirement.revision is None
                and versions
                and not any(satisfies(version, requirement) for version in versions)
            ):
                shown = [str(version) for version in versions[-_SHOWN:]]
                lines.append(f"{requirement.name} is there as {_joined(shown)} only")
        return lines


def explain(conflict: Conflict, wanted: Sequence[Wanted], candidates: Candidates) -> UnsatisfiedError:
    """Return the error that tells why no set of versions satisfies everything, and what could be changed."""
    facts = _Facts.of(conflict, candidates)
    mine = {(item.by, str(item.requirement)): item.requirement for item in wanted}
    changeable = {at: requirement for at, requirement in mine.items() if at in facts.required}
    for requirement in changeable.values():
        error = _alone(requirement, facts, candidates)
        if error is not None:
            return error
    lines = facts.lines(candidates)
    conclusion = _conclusion(conflict)
    hint = _advice(changeable, facts)
    if len(lines) > _IN_A_SENTENCE:
        details = [f"because {line}" for line in lines[:_LINES]]
        details += [f"and {len(lines) - _LINES} reasons more"] if len(lines) > _LINES else []
        return UnsatisfiedError(conclusion, details=tuple(details), hint=hint)
    comma = "," if len(lines) > 2 else ""
    because = lines[0] if len(lines) == 1 else f"{', '.join(lines[:-1])}{comma} and {lines[-1]}"
    return UnsatisfiedError(f"because {because}, {conclusion}", hint=hint)


def _alone(requirement: Requirement, facts: _Facts, candidates: Candidates) -> UnsatisfiedError | None:
    """Return the error for a requirement that cannot be met whatever else is asked for."""
    missing = candidates.missing(requirement)
    if missing is not None or requirement.revision is not None or not candidates.listed(requirement.name):
        return missing
    allowed, barred = candidates.sort_out(requirement.name, (requirement,))
    pins = {other.exact for other in facts.requirements.values() if other.name.key == requirement.name.key}
    met = allowed or any(item.version in pins for item, _ in barred)
    return None if met else no_version(requirement, candidates)


def _conclusion(conflict: Conflict) -> str:
    """Return what follows: for one name when everything that was required of it is known to be too much."""
    causes = [cause.requirement for cause in conflict.causes if cause.requirement.refusal is None]
    names = {str(cause.requirement.name) for cause in causes}
    ranges = {str(cause.requirement) for cause in causes}
    if len(names) == 1 and len(ranges) > 1:
        return f"no version of {names.pop()} satisfies {'both' if len(ranges) == 2 else 'all'}"
    return "the requirements cannot be met together"


def _advice(changeable: Mapping[tuple[str, str], Requirement], facts: _Facts) -> str:
    texts = sorted({text for _, text in changeable})
    places = _joined(sorted({by for by, _ in changeable}))
    hint = f"change what {places} requires: {_joined(texts, 'or')}"
    pins = [str(candidate.ref) for _, (candidate, _) in sorted(facts.refused.items()) if candidate.refused is not None]
    return f"{hint}; or ask for the very version: {_joined(pins, 'or')}" if pins else hint


def _joined(items: Sequence[str], word: str = "and") -> str:
    """Return items as a sentence has them."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {word} {items[-1]}"


def no_version(requirement: Requirement, candidates: Candidates) -> UnsatisfiedError:
    """Return the error for one requirement that no version satisfies; the hint lists those there are."""
    listed = sorted(candidates.listing(requirement.name), key=lambda item: item.version)
    barred = {item.version: reason for item, reason in candidates.sort_out(requirement.name, (requirement,))[1]}
    shown = ", ".join(_told(item, barred, requirement, candidates) for item in listed[-_SHOWN:])
    more = f" (and {len(listed) - _SHOWN} older)" if len(listed) > _SHOWN else ""
    return UnsatisfiedError(
        f"no version satisfies {requirement}",
        where=candidates.registry(requirement.name).location,
        hint=f"available: {shown or 'none'}{more}",
    )


def _told(item: Listed, barred: Mapping[Version, str], requirement: Requirement, candidates: Candidates) -> str:
    reason = barred.get(item.version)
    if reason is None and item.yanked is not None:
        reason = "yanked" + (f": {item.yanked}" if item.yanked else "")
    if reason is None and satisfies(item.version, requirement):
        other = candidates.known_other_base(requirement.name, item.version)
        reason = None if other is None else f"made for another base model, {other}"
    return f"{item.version} ({reason})" if reason else str(item.version)
