"""From a requirement to one exact version, with the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapterhub.errors import UnsatisfiedError, UsageError
from adapterhub.registry.base import Listed
from adapterhub.spec.refs import PackageRef, Requirement

_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """The version that was chosen for a requirement, and why."""

    requirement: Requirement
    ref: PackageRef
    reasons: tuple[str, ...]


def choose(requirement: Requirement, listed: Sequence[Listed], *, where: str) -> Resolution:
    """Choose the highest version that satisfies a requirement; `where` names the registry in errors.

    A pre-release is chosen when the range names one or when nothing else satisfies it (packaging's rule, PEP 440).

    Raises:
        UnsatisfiedError: no version satisfies it; the hint lists those there are. UsageError: it asks for a revision.
    """
    if requirement.revision is not None:
        raise UsageError(
            f"{requirement} asks for a revision, and a folder has none",
            where=where,
            hint=f"name a version: {requirement.name}@X.Y.Z",
        )
    versions = sorted(item.version for item in listed)
    fitting = sorted(requirement.specifier.filter(versions))
    if not fitting:
        shown = ", ".join(str(version) for version in versions[-_SHOWN:])
        more = f" (and {len(versions) - _SHOWN} older)" if len(versions) > _SHOWN else ""
        raise UnsatisfiedError(
            f"no version satisfies {requirement}", where=where, hint=f"available: {shown or 'none'}{more}"
        )
    chosen = fitting[-1]
    wanted = str(requirement.specifier) or "any version"
    if requirement.exact is not None:
        reasons = [f"{chosen} is asked for"]
    else:
        reasons = [f"{chosen} is the highest of {len(fitting)} that satisfy {wanted}"]
    passed = [version for version in versions if version > chosen and version.is_prerelease]
    if passed and requirement.exact is None:
        reasons.append(f"{passed[-1]} is a pre-release: ask for it with @{passed[-1]}")
    return Resolution(requirement=requirement, ref=PackageRef(requirement.name, chosen), reasons=tuple(reasons))
