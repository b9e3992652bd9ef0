"""The verdict on two base models: the one that was recorded and the one that is here."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from adapterhub.spec.base_model import BaseFingerprints, BaseModelRef
from adapterhub.spec.digest import Digest


class Verdict(Enum):
    """How a base model that is here stands to the one that was recorded."""

    EXACT = "exact"
    UNPACKED = "unpacked"
    SIBLING = "sibling"
    REVISION = "revision"
    UNKNOWN = "unknown"
    DIFFERENT = "different"


def compare(recorded: BaseModelRef, actual: BaseModelRef) -> Verdict:
    """Say whether the base model that is here is the one that was recorded.

    EXACT: the weights are equal, or all weight files, or both are the same commit of one repository and nothing
    contradicts it. UNPACKED: the one here was made of exactly the weights that were recorded, which are packed in few
    bits, and stands for them. UNKNOWN: nothing that tells weights apart was recorded on both sides. REVISION: another
    revision of the same repository. SIBLING: one names the other as what it was derived from, or both name the same
    source. DIFFERENT: everything else; a bare name that two people gave to different weights is no kinship.
    """
    ours, theirs = recorded.fingerprints, actual.fingerprints
    same_bytes = _same(ours.weights, theirs.weights)
    same_files = _same_files(ours.files, theirs.files)
    if same_bytes or (same_files and same_bytes is None):
        return Verdict.EXACT
    if stands_for(actual, recorded):
        return Verdict.UNPACKED
    same_commit = recorded.id == actual.id and recorded.pinned and recorded.revision == actual.revision
    told_apart = (
        same_bytes is False
        or same_files is False
        or _same(ours.tensors, theirs.tensors) is False
        or (same_commit and _same(ours.config, theirs.config) is False)
    )
    if not told_apart:
        unlike = recorded.id == actual.id and _revisions_differ(recorded, actual)
        return Verdict.EXACT if same_commit else Verdict.REVISION if unlike else Verdict.UNKNOWN
    if same_commit:
        return Verdict.DIFFERENT
    if recorded.id == actual.id and ("/" in recorded.id or _revisions_differ(recorded, actual)):
        return Verdict.REVISION
    return Verdict.SIBLING if _kin(recorded, actual) else Verdict.DIFFERENT


def stands_for(copy: BaseModelRef, packed: BaseModelRef) -> bool:
    """Say whether a base was unpacked from exactly the weights of another, which its digest then tells."""
    weights = packed.fingerprints.weights
    return weights is not None and copy.derived_from is not None and copy.derived_from.digest == weights


def differing_parts(recorded: BaseFingerprints, actual: BaseFingerprints) -> tuple[str, ...]:
    """Return the names of the fingerprints that are known on both sides and unequal."""
    pairs: tuple[tuple[str, bool | None], ...] = (
        ("weights", _same(recorded.weights, actual.weights)),
        ("tensors", _same(recorded.tensors, actual.tensors)),
        ("files", _same_files(recorded.files, actual.files)),
        ("config", _same(recorded.config, actual.config)),
        ("tokenizer", _same(recorded.tokenizer, actual.tokenizer)),
        ("chat_template", _same(recorded.chat_template, actual.chat_template)),
    )
    return tuple(name for name, same in pairs if same is False)


def _same(one: Digest | None, other: Digest | None) -> bool | None:
    """Compare two digests; None when one of them was not computed."""
    return None if one is None or other is None else one == other


def _same_files(one: Mapping[str, Digest], other: Mapping[str, Digest]) -> bool | None:
    """Compare weight files by their bytes, whatever they are called; None when one side has none recorded."""
    return sorted(one.values()) == sorted(other.values()) if one and other else None


def _revisions_differ(one: BaseModelRef, other: BaseModelRef) -> bool:
    return one.revision is not None and other.revision is not None and one.revision != other.revision


def _kin(one: BaseModelRef, other: BaseModelRef) -> bool:
    """Say whether one names the other as its source, or both name the same one."""

    def sources(ref: BaseModelRef) -> set[str]:
        derived = ref.derived_from
        return {str(item) for item in (derived.id, derived.digest) if item is not None} if derived else set()

    return one.id in sources(other) or other.id in sources(one) or bool(sources(one) & sources(other))
