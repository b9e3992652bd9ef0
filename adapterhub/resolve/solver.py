"""The search for one version of every name, by resolvelib; this file says what it may try, and in which order.

resolvelib pins one name after the other, each to the best candidate under what is known to be required of it, and goes
back when a later requirement cannot be met. Names are pinned in the order in which they were asked for: what the user
wants, then the members of its stacks, by name.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from resolvelib import AbstractProvider, BaseReporter, ResolutionImpossible, ResolutionTooDeep, Resolver
from resolvelib.resolvers import Criterion, RequirementInformation
from resolvelib.structs import Matches

from adapterhub.errors import UnsatisfiedError
from adapterhub.resolve.candidates import Candidate, Candidates, Identity, satisfies
from adapterhub.resolve.values import MAX_DEPTH, Wanted
from adapterhub.spec.refs import Requirement

MAX_NAMES = 1000
MAX_ROUNDS = 5_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Want:
    """A requirement on its way through the search: whose it is, and how deep in stacks.

    refusal: set where this stands for the fact that a candidate may not be chosen at all.
    """

    requirement: Requirement
    by: str
    depth: int = 0
    refusal: str | None = None


Cause = RequirementInformation[Want, Candidate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A candidate that was tried in vain, and all that was required of the name it failed for."""

    candidate: Candidate
    causes: tuple[Cause, ...]


class Conflict(Exception):
    """No set of versions satisfies everything; what the search learned on its way.

    causes: where it gave up. rejections: what was tried before, by key. asked: all that was required of each key.
    """

    def __init__(self, causes: Iterable[Cause], rejections: Iterable[Rejection], asked: Iterable[Cause]) -> None:
        super().__init__("no set of versions satisfies everything")
        self.causes = tuple(causes)
        self.rejections: dict[str, list[Rejection]] = {}
        self.asked: dict[str, list[Cause]] = {}
        for rejection in rejections:
            self.rejections.setdefault(rejection.candidate.ref.name.key, []).append(rejection)
        for cause in asked:
            self.asked.setdefault(cause.requirement.requirement.name.key, []).append(cause)


@dataclass(slots=True)
class Record(BaseReporter[Want, Candidate, str]):
    """Keeps what was required by whom, what was tried in vain, and how often each name had to do with a conflict."""

    candidates: Candidates
    rejected: dict[Identity, Rejection] = field(default_factory=dict)
    asked: dict[int, Cause] = field(default_factory=dict)
    trouble: Counter[str] = field(default_factory=Counter)
    _askers: dict[str, set[str]] = field(default_factory=dict)

    def adding_requirement(self, requirement: Want, parent: Candidate | None) -> None:
        """Called for every requirement that comes up."""
        if requirement.refusal is None:
            self.asked[id(requirement)] = RequirementInformation(requirement, parent)
            if parent is not None:
                self._askers.setdefault(requirement.requirement.name.key, set()).add(parent.ref.name.key)

    def rejecting_candidate(self, criterion: Criterion[Want, Candidate], candidate: Candidate) -> None:
        """Called for every candidate whose requirements cannot be met."""
        found = Rejection(candidate=candidate, causes=tuple(criterion.information))
        self.rejected[candidate.identity] = found

    def resolving_conflicts(self, causes: Collection[Cause]) -> None:
        """Called when the search has to go back; whoever asked for what cannot be had is part of it."""
        # A range that no version lies in is to blame alone, whatever else is required of the name.
        blamed = [cause for cause in causes if self._is_empty(cause)] or list(causes)
        names = {cause.requirement.requirement.name.key for cause in blamed}
        pending = {cause.parent.ref.name.key for cause in blamed if cause.parent is not None}
        while pending:
            key = pending.pop()
            names.add(key)
            pending |= self._askers.get(key, set()) - names
        self.trouble.update(names)

    def _is_empty(self, cause: Cause) -> bool:
        want = cause.requirement
        return want.refusal is None and next(self.candidates.matches([want.requirement], (), depth=0), None) is None


class _Drawn:
    """Candidates that are drawn once, however often they are gone through."""

    def __init__(self, source: Iterator[Candidate]) -> None:
        self._source = source
        self._drawn: list[Candidate] = []

    def __iter__(self) -> Iterator[Candidate]:
        for index in itertools.count():
            if index == len(self._drawn):
                candidate = next(self._source, None)
                if candidate is None:
                    return
                self._drawn.append(candidate)
            yield self._drawn[index]


class Provider(AbstractProvider[Want, Candidate, str]):
    """Answers resolvelib's questions out of the registries.

    settled: versions, by key, that a first search ended with and that this one is to try first.
    """

    def __init__(self, candidates: Candidates, settled: Mapping[str, Candidate], record: Record) -> None:
        self._candidates = candidates
        self._settled = settled
        self._record = record
        self._satisfied: dict[tuple[int, Identity], bool] = {}
        self._spelled: dict[str, Requirement] = {}
        self._wants: dict[Identity, tuple[Want, ...]] = {}

    def identify(self, requirement_or_candidate: Want | Candidate) -> str:
        """Return the key of the name."""
        if isinstance(requirement_or_candidate, Want):
            return requirement_or_candidate.requirement.name.key
        return requirement_or_candidate.ref.name.key

    def narrow_requirement_selection(
        self,
        identifiers: Iterable[str],
        resolutions: Mapping[str, Candidate],
        candidates: Mapping[str, Iterator[Candidate]],
        information: Mapping[str, Iterator[RequirementInformation[Want, Candidate]]],
        backtrack_causes: Sequence[RequirementInformation[Want, Candidate]],
    ) -> Iterable[str]:
        """Choose the name to pin next: the most often in conflict, the least deep in stacks, then by name.

        What fails whatever else is pinned thus comes first soon, and not below every combination of the others. One
        that may not be chosen yet comes last: somebody may pin it exactly.
        """
        del resolutions, information, backtrack_causes

        def rank(key: str) -> tuple[bool, int, int, str]:
            first = next(candidates[key], None)
            depth = first.depth if first is not None else 0
            return (first is None or first.refused is not None, -self._record.trouble[key], depth, key)

        return [min(identifiers, key=rank)]

    def get_preference(
        self,
        identifier: str,
        resolutions: Mapping[str, Candidate],
        candidates: Mapping[str, Iterator[Candidate]],
        information: Mapping[str, Iterator[RequirementInformation[Want, Candidate]]],
        backtrack_causes: Sequence[RequirementInformation[Want, Candidate]],
    ) -> str:
        """Return the key: one name alone is left by `narrow_requirement_selection`."""
        del resolutions, candidates, information, backtrack_causes
        return identifier

    def find_matches(
        self,
        identifier: str,
        requirements: Mapping[str, Iterator[Want]],
        incompatibilities: Mapping[str, Iterator[Candidate]],
    ) -> Matches[Candidate]:
        """Return what may be chosen for a name, looked up only as far as it is tried."""
        wants = list(requirements[identifier])
        if any(want.refusal is not None for want in wants):
            return []
        asked = [want.requirement for want in wants]
        if not asked:
            # Nothing requires it any more, and the search keeps the name all the same: any version will do.
            asked = [Requirement(self._spelled[identifier].name)]
        self._check_spelling(asked)
        excluded = {candidate.identity for candidate in incompatibilities[identifier]}
        depth = min((want.depth for want in wants), default=0)
        settled = self._settled.get(identifier)

        def found() -> Iterator[Candidate]:
            first = settled is not None and settled.identity not in excluded and _meets_all(settled, asked)
            if first and settled is not None:
                yield settled
            for candidate in self._candidates.matches(asked, excluded, depth=depth):
                if not first or settled is None or candidate.identity != settled.identity:
                    yield candidate

        return _Drawn(found()).__iter__

    def _check_spelling(self, asked: Sequence[Requirement]) -> None:
        for requirement in asked:
            known = self._spelled.setdefault(requirement.name.key, requirement)
            if known.name != requirement.name:
                raise UnsatisfiedError(
                    f"{known.name} and {requirement.name} are both required and differ in case alone",
                    hint="use one spelling, the one that the registry has",
                )
        if len(self._spelled) > MAX_NAMES:
            raise UnsatisfiedError(
                f"more than {MAX_NAMES} packages are required", hint="look at what the stacks among them require"
            )

    def is_satisfied_by(self, requirement: Want, candidate: Candidate) -> bool:
        """Say whether a candidate is what is required."""
        if requirement.refusal is not None:
            return False
        at = (id(requirement), candidate.identity)
        if at not in self._satisfied:
            self._satisfied[at] = meets(candidate, requirement.requirement)
        return self._satisfied[at]

    def get_dependencies(self, candidate: Candidate) -> tuple[Want, ...]:
        """Return what a stack asks for; for what may not be chosen, a requirement that nothing meets."""
        at = candidate.identity
        refusal = self._candidates.refusal(candidate)
        if refusal is not None:
            itself = Requirement(candidate.ref.name)
            return (Want(requirement=itself, by=str(candidate.ref), refusal=refusal),)
        if at not in self._wants:
            requires = self._candidates.requires(candidate)
            if requires and candidate.depth >= MAX_DEPTH:
                raise UnsatisfiedError(
                    f"stacks are nested more than {MAX_DEPTH} deep", where=str(candidate.ref), hint="unnest them"
                )
            self._wants[at] = tuple(
                Want(requirement=item, by=str(candidate.ref.name), depth=candidate.depth + 1) for item in requires
            )
        return self._wants[at]


def meets(candidate: Candidate, requirement: Requirement) -> bool:
    """Say whether a candidate is what a requirement asks for."""
    if requirement.revision is not None:
        return requirement.revision in candidate.answers
    return satisfies(candidate.ref.version, requirement)


def _meets_all(candidate: Candidate, requirements: Iterable[Requirement]) -> bool:
    return all(meets(candidate, requirement) for requirement in requirements)


def solve(
    wanted: Sequence[Wanted], candidates: Candidates, *, settled: Mapping[str, Candidate] | None = None
) -> dict[str, Candidate]:
    """Find one version of every name that is wanted or required; names that no one needs in the end may be with them.

    settled: by key, what a first search ended with, to be tried first.

    Raises:
        Conflict: there is none. UnsatisfiedError: the stacks are too many or too deep to search.
    """
    record = Record(candidates)
    resolver = Resolver(Provider(candidates, settled or {}, record), record)
    wants = [Want(requirement=item.requirement, by=item.by) for item in wanted]
    try:
        found = resolver.resolve(wants, max_rounds=MAX_ROUNDS)
    except ResolutionImpossible as error:
        raise Conflict(error.causes, record.rejected.values(), record.asked.values()) from error
    except ResolutionTooDeep as error:
        raise UnsatisfiedError(
            f"found no set of versions in {MAX_ROUNDS} steps",
            hint="name exact versions of the stacks, so that there is less to search",
        ) from error
    return dict(found.mapping)
