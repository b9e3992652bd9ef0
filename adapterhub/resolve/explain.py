"""Why a version was chosen, which were passed over, and why there is no answer, in prose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from packaging.version import Version

from adapterhub.errors import UnsatisfiedError
from adapterhub.registry.base import Listed
from adapterhub.resolve.candidates import Candidate, Candidates, satisfies
from adapterhub.resolve.values import Wanted
from adapterhub.spec.refs import Requirement

if TYPE_CHECKING:
    from adapterhub.resolve.solver import Conflict, Rejection

_SHOWN = 10


def reasons_for(candidate: Candidate, requirements: Sequence[Requirement], candidates: Candidates) -> tuple[str, ...]:
    """Return why this version was chosen."""
    version = candidate.ref.version
    if candidate.locked is not None:
        return ("locked",)
    if candidate.answers:
        return (f"{version} is what {', '.join(sorted(candidate.answers))} names",)
    listed = candidates.listing(candidate.ref.name)
    allowed, _ = candidates.sort_out(candidate.ref.name, requirements)
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
        reasons = [f"{version} satisfies {wanted}"]
    passed = [item.version for item in listed if item.version > version and item.version.is_prerelease]
    if passed:
        reasons.append(f"{max(passed)} is a pre-release: ask for it with @{max(passed)}")
    return tuple(reasons)


def skipped(
    pinned: Mapping[str, Candidate],
    asked: Mapping[str, Sequence[Wanted]],
    rejections: Sequence[Rejection],
    candidates: Candidates,
) -> tuple[str, ...]:
    """Return a note on every higher version that satisfies and was passed over, and on yanked ones that were not."""
    notes = []
    rejected = {rejection.candidate.identity: rejection for rejection in rejections}
    for key in sorted(asked):
        candidate = pinned[key]
        name, chosen = candidate.ref.name, candidate.ref.version
        if candidate.locked is not None or candidate.answers:
            continue
        requirements = [item.requirement for item in asked[key]]
        allowed, barred = candidates.sort_out(name, requirements)
        reasons = {item.version: reason for item, reason in barred}
        for item in allowed:
            rejection = rejected.get((key, item.version, None))
            other = candidates.known_other_base(name, item.version)
            if other is not None:
                reasons.setdefault(item.version, f"made for another base model, {other}")
            elif rejection is not None:
                reasons.setdefault(item.version, "what it requires does not go with the rest")
        notes += [
            f"{name} {version} is passed over: {reason}"
            for version, reason in sorted(reasons.items(), reverse=True)
            if version > chosen
        ]
        own = next((item for item in candidates.listing(name) if item.version == chosen), None)
        if own is not None and own.yanked is not None:
            notes.append(f"{name} {chosen} is yanked" + (f": {own.yanked}" if own.yanked else ""))
    return tuple(notes)


def explain(conflict: Conflict, wanted: Sequence[Wanted], candidates: Candidates) -> UnsatisfiedError:
    """Return the error that tells why no set of versions satisfies everything, and what could be changed."""
    asked = {
        (information.requirement.by, str(information.requirement.requirement)): information.requirement.requirement
        for information in conflict.causes
        if information.requirement.refusal is None
    }
    mine = {str(item.requirement): item for item in wanted}
    if len(asked) == 1:
        ((by, text),) = asked
        requirement = asked[by, text]
        if text in mine and mine[text].by == by:
            missing = candidates.missing(requirement)
            return missing if missing is not None else no_version(requirement, candidates)
    told = [f"{by} requires {text}" for by, text in asked]
    return UnsatisfiedError(
        f"because {' and '.join(told)}, there is no set of versions that satisfies everything",
        hint=f"change one of these: {', '.join(sorted(text for _, text in asked if text in mine))}",
    )


def no_version(requirement: Requirement, candidates: Candidates) -> UnsatisfiedError:
    """Return the error for one requirement that no version satisfies; the hint lists those there are."""
    listed = sorted(candidates.listing(requirement.name), key=lambda item: item.version)
    barred = {item.version: reason for item, reason in candidates.sort_out(requirement.name, [requirement])[1]}
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
