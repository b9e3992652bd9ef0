"""From requirements to one exact version of every package, with the reasons; conflicts are explained in prose.

values.py      what is asked and answered
candidates.py  which versions of a name may be chosen, in which order
solver.py      the search, by resolvelib
explain.py     why there is no answer, and what was passed over
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from adapterhub.errors import UnsatisfiedError
from adapterhub.registry.base import Registry
from adapterhub.resolve._choose import choose
from adapterhub.resolve.candidates import Candidate, Candidates
from adapterhub.resolve.explain import explain, reasons_for, skipped
from adapterhub.resolve.values import ALL, MAX_DEPTH, Choice, Locked, Policy, Resolution, Wanted
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.refs import PackageName, Requirement

__all__ = [
    "ALL",
    "Choice",
    "Locked",
    "Policy",
    "Resolution",
    "Wanted",
    "choose",
    "resolve",
]


def resolve(
    wanted: Sequence[Wanted],
    *,
    registry_of: Callable[[PackageName], Registry],
    locked: Mapping[str, Locked],
    base: BaseModelRef | None,
    policy: Policy,
) -> Resolution:
    """Choose one version of every package that is wanted, or that a stack among them requires.

    The highest version that satisfies is chosen; what is locked (by the name's key) stays while it satisfies, and is
    not looked up. Passed over are yanked and too young versions unless pinned exactly, pre-releases unless a range
    names one or there is nothing else, and versions made for another base model than `base` while others satisfy. A
    name is looked for in `registry_of(name)` alone.

    Raises:
        UnsatisfiedError: no set of versions satisfies everything, or a stack contains itself. IntegrityError,
        InvalidFileError: a version that would be chosen is damaged. UsageError: a name has no registry.
    """
    # What is found must not hang on the order in which somebody wrote things down.
    wanted = sorted(wanted, key=lambda item: (item.requirement.name.key, str(item.requirement), item.by))
    candidates = Candidates(registry_of=registry_of, locked=locked, base=base, policy=policy)
    pinned = _from_lock(wanted, candidates)
    notes: tuple[str, ...] = ()
    if pinned is None:
        pinned, notes = _search(wanted, candidates)
    asked = _asked(wanted, pinned, candidates)
    choices = tuple(
        _choice(pinned[key], askers, candidates) for key, askers in sorted(asked.items(), key=lambda item: item[0])
    )
    return Resolution(choices=choices, notes=notes)


def _from_lock(wanted: Sequence[Wanted], candidates: Candidates) -> dict[str, Candidate] | None:
    """Return the locked versions, if they are all that is needed: then there is nothing to search, nor to ask."""
    asked: dict[str, list[Requirement]] = {}
    pending = [item.requirement for item in wanted]
    while pending:
        requirement = pending.pop()
        known = asked.setdefault(requirement.name.key, [])
        known.append(requirement)
        if len(known) == 1:
            found = candidates.kept(requirement.name)
            if found is None:
                return None
            pending.extend(found.requires)
    pinned: dict[str, Candidate] = {}
    for key, requirements in asked.items():
        candidate = candidates.from_lock(requirements)
        if candidate is None or len({item.name for item in requirements}) > 1:
            return None
        pinned[key] = candidate
    return pinned


def _search(wanted: Sequence[Wanted], candidates: Candidates) -> tuple[dict[str, Candidate], tuple[str, ...]]:
    """Solve; where versions for this base alone are no solution, those for another are let in."""
    from adapterhub.resolve.solver import Conflict, solve

    try:
        found = solve(wanted, candidates)
    except Conflict as conflict:
        if not candidates.found_other_bases:
            raise explain(conflict, wanted, candidates) from conflict
        candidates.overlook = None
        try:
            found = solve(wanted, candidates)
        except Conflict as again:
            raise explain(again, wanted, candidates) from again
    asked = _asked(wanted, found, candidates)
    settled = {key: found[key] for key in asked if _is_best(found[key], asked[key], candidates)}
    if len(settled) < len(asked):
        # A stack that was tried first and given up may have held a version down: let that one climb, the rest settled.
        found = solve(wanted, candidates, settled=settled)
        asked = _asked(wanted, found, candidates)
    return dict(found), skipped(found, asked, candidates)


def _is_best(candidate: Candidate, askers: Sequence[Wanted], candidates: Candidates) -> bool:
    if candidate.locked is not None or candidate.answers:
        return True
    allowed, _ = candidates.sort_out(candidate.ref.name, tuple(item.requirement for item in askers))
    return bool(allowed) and allowed[0].version == candidate.ref.version


def _asked(
    wanted: Sequence[Wanted], pinned: Mapping[str, Candidate], candidates: Candidates
) -> dict[str, list[Wanted]]:
    """Return who asks for each name that is needed.

    Raises:
        UnsatisfiedError: a stack contains itself, or stacks are nested too deep.
    """
    asked: dict[str, list[Wanted]] = {}
    for item in wanted:
        asked.setdefault(item.requirement.name.key, []).append(item)
    done: dict[str, int] = {}

    def height(key: str, above: tuple[str, ...]) -> int:
        """Return how deep stacks are nested below a name, its members' askers noted on the way."""
        candidate = pinned[key]
        if key in above:
            names = [str(pinned[other].ref.name) for other in (*above[above.index(key) :], key)]
            raise UnsatisfiedError(
                f"a stack contains itself: {' → '.join(names)}",
                where=str(candidate.ref),
                hint="ask for another version of one of them, or tell their authors",
            )
        if key not in done:
            deepest = 0
            for requirement in candidates.requires(candidate):
                by = Wanted(requirement, str(candidate.ref.name))
                asked.setdefault(requirement.name.key, []).append(by)
                deepest = max(deepest, 1 + height(requirement.name.key, (*above, key)))
            done[key] = deepest
        if len(above) + done[key] > MAX_DEPTH:
            raise UnsatisfiedError(
                f"stacks are nested more than {MAX_DEPTH} deep", where=str(candidate.ref), hint="unnest them"
            )
        return done[key]

    for item in wanted:
        height(item.requirement.name.key, ())
    return asked


def _choice(candidate: Candidate, askers: Sequence[Wanted], candidates: Candidates) -> Choice:
    description = candidates.description(candidate)
    revision = candidate.listed.revision if candidate.listed is not None else None
    if candidate.locked is not None:
        revision = candidate.locked.revision
    elif description is not None:
        revision = description.revision
    return Choice(
        ref=candidate.ref,
        registry=None if candidate.locked is not None else candidates.registry(candidate.ref.name),
        revision=revision,
        requires=candidates.requires(candidate),
        required_by=tuple(sorted({item.by for item in askers})),
        reasons=reasons_for(candidate, [item.requirement for item in askers], candidates),
        locked=candidate.locked is not None,
        description=description,
    )
