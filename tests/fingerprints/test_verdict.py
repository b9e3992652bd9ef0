"""Every line of the verdict's table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest

from adapterhub.fingerprints import Verdict, compare, differing_parts
from adapterhub.spec.base_model import BaseFingerprints, BaseModelRef, Derivation
from adapterhub.spec.digest import Digest

A, B, C = (Digest.of(letter.encode()) for letter in "abc")
COMMIT, OTHER = "0" * 40, "1" * 40


def ref(
    id: str = "org/base",
    *,
    revision: str | None = None,
    weights: Digest | None = None,
    tensors: Digest | None = None,
    config: Digest | None = None,
    files: Mapping[str, Digest] | None = None,
    derived: Derivation | None = None,
) -> BaseModelRef:
    fingerprints = BaseFingerprints(
        weights=weights, tensors=tensors, config=config, files=MappingProxyType(dict(files or {}))
    )
    return BaseModelRef(id=id, revision=revision, fingerprints=fingerprints, derived_from=derived)


@pytest.mark.parametrize(
    ("recorded", "actual", "verdict"),
    [
        # equal bytes, whatever they are called and however they are cut into files
        (ref(weights=A), ref("mirror/base", weights=A), Verdict.EXACT),
        (ref(weights=A, files={"x": B}), ref(weights=A, files={"y": C}), Verdict.EXACT),
        (ref(files={"m": A, "n": B}), ref("mirror", files={"n": A, "m": B}), Verdict.EXACT),
        (ref(files={"m": A, "n": B}), ref("mirror", files={"m": A}), Verdict.DIFFERENT),
        # the same commit, nothing to contradict it; a changed copy of the same commit
        (ref(revision=COMMIT), ref(revision=COMMIT, weights=A), Verdict.EXACT),
        (ref(revision=COMMIT, weights=A), ref(revision=COMMIT, weights=B), Verdict.DIFFERENT),
        (ref(revision=COMMIT, tensors=A), ref(revision=COMMIT, tensors=B), Verdict.DIFFERENT),
        (ref(revision=COMMIT, config=A), ref(revision=COMMIT, config=B), Verdict.DIFFERENT),
        # a branch's name pins nothing
        (ref(revision="main"), ref(revision="main", weights=A), Verdict.UNKNOWN),
        # another revision of one repository
        (ref(revision=COMMIT, weights=A), ref(revision=OTHER, weights=B), Verdict.REVISION),
        (ref(weights=A), ref(weights=B), Verdict.REVISION),
        (ref(revision=COMMIT), ref(revision=OTHER, weights=B), Verdict.REVISION),
        # nothing recorded
        (ref(), ref("other/base", weights=A), Verdict.UNKNOWN),
        (ref(weights=A), ref("other/base"), Verdict.UNKNOWN),
        (ref(tensors=A), ref("other/base", tensors=A, weights=B), Verdict.UNKNOWN),
        (ref(config=A), ref("other/base", config=B, weights=B), Verdict.UNKNOWN),
        # kin
        (ref("q4", weights=A, derived=Derivation(how="GGUF", id="org/base")), ref(weights=B), Verdict.SIBLING),
        (ref(weights=A), ref("q4", weights=B, derived=Derivation(how="GGUF", id="org/base")), Verdict.SIBLING),
        (
            ref("q4", weights=A, derived=Derivation(how="GGUF", digest=C)),
            ref("q4", weights=B, derived=Derivation(how="GGUF", digest=C)),
            Verdict.SIBLING,
        ),
        # others
        (ref(weights=A), ref("other/base", weights=B), Verdict.DIFFERENT),
        (ref(weights=A, tensors=C), ref("other/base", weights=B, tensors=C), Verdict.DIFFERENT),
        (ref(tensors=A), ref("other/base", tensors=B), Verdict.DIFFERENT),
        (ref("local", weights=A), ref("local", weights=B), Verdict.DIFFERENT),
        (
            ref("q4", weights=A, derived=Derivation(how="GGUF")),
            ref("q5", weights=B, derived=Derivation(how="GGUF")),
            Verdict.DIFFERENT,
        ),
    ],
)
def test_verdict(recorded: BaseModelRef, actual: BaseModelRef, verdict: Verdict) -> None:
    assert compare(recorded, actual) is verdict


def test_what_differs_is_named_and_what_is_unknown_is_not() -> None:
    one = BaseFingerprints(weights=A, tensors=B, tokenizer=A, chat_template=A)
    other = BaseFingerprints(weights=B, tensors=B, tokenizer=B, config=C)
    assert differing_parts(one, other) == ("weights", "tokenizer")
    assert differing_parts(one, one) == ()
