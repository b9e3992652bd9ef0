"""The frozen weights an adapter was trained on, and how to tell them from others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from adapterhub.spec._decode import Reader
from adapterhub.spec.digest import Digest
from adapterhub.spec.refs import REVISION_PATTERN, check_part

COMMIT_PATTERN = r"[0-9a-f]{40}"


def check_base_id(text: str) -> str:
    """Return a base model's id: `org/name` or a bare `name`, by the Hub's rules; never a path.

    Raises:
        ValueError: it is of another form.
    """
    parts = text.split("/")
    if len(parts) > 2:
        raise ValueError(
            f"{text[:100]!r} is not a base model id (name or org/name); "
            "name a folder first with `adapt base add NAME --from DIR`"
        )
    for part in parts:
        check_part(part, "a base model id")
    return text


def parse_base(text: str) -> tuple[str, str | None]:
    """Read `name`, `org/name` or either with `#REV`, as recipes and project files write a base model.

    Raises:
        ValueError: it is of another form.
    """
    name, mark, revision = text.partition("#")
    if mark and not revision:
        raise ValueError(f"{text!r} ends in '#': name a branch, tag or commit, or leave it out")
    return check_base_id(name), revision or None


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFingerprints:
    """What identifies a base model's bytes; each is None (or empty) where it was not computed.

    weights: over sorted (tensor name, dtype, shape, sha256 of its bytes), independent of sharding.
    tensors: the same table without the bytes.
    files: sha256 by weight file.
    config: over the config fields that change shapes or computation.
    tokenizer, chat_template: over those files' canonical content.
    """

    weights: Digest | None = None
    tensors: Digest | None = None
    files: Mapping[str, Digest] = field(default_factory=lambda: MappingProxyType({}))
    config: Digest | None = None
    tokenizer: Digest | None = None
    chat_template: Digest | None = None

    @classmethod
    def read(cls, reader: Reader | None) -> BaseFingerprints:
        """Read the mapping of a document; an absent one is empty."""
        if reader is None:
            return cls()
        files: dict[str, Digest] = {}
        inner = reader.mapping("files")
        for name in inner.names() if inner else ():
            assert inner is not None
            files[name] = inner.parse(name, Digest.parse)
        value = cls(
            weights=reader.optional_parse("weights", Digest.parse),
            tensors=reader.optional_parse("tensors", Digest.parse),
            files=MappingProxyType(files),
            config=reader.optional_parse("config", Digest.parse),
            tokenizer=reader.optional_parse("tokenizer", Digest.parse),
            chat_template=reader.optional_parse("chat_template", Digest.parse),
        )
        reader.finish()
        return value

    @property
    def empty(self) -> bool:
        """True when nothing at all was recorded."""
        return self == BaseFingerprints()

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "weights": _text(self.weights),
            "tensors": _text(self.tensors),
            "files": {name: str(self.files[name]) for name in sorted(self.files)},
            "config": _text(self.config),
            "tokenizer": _text(self.tokenizer),
            "chat_template": _text(self.chat_template),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """Where a converted or re-quantized base came from: the source's id where known, how, and its file's digest."""

    how: str
    id: str | None = None
    digest: Digest | None = None

    @classmethod
    def read(cls, reader: Reader) -> Derivation:
        """Read the mapping of a document."""
        value = cls(
            how=reader.string("how"),
            id=reader.optional_parse("id", check_base_id),
            digest=reader.optional_parse("digest", Digest.parse),
        )
        reader.finish()
        return value

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {"how": self.how, "id": self.id, "digest": _text(self.digest)}


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModelRef:
    """A base model as a manifest or a lockfile names it.

    revision: a branch, tag or commit; 40 hex digits once pinned; None for a local or converted base.
    architecture: transformers' class (`LlamaForCausalLM`); model_type: its config's word (`llama`).
    """

    id: str
    revision: str | None = None
    architecture: str | None = None
    model_type: str | None = None
    fingerprints: BaseFingerprints = BaseFingerprints()
    derived_from: Derivation | None = None

    @classmethod
    def read(cls, reader: Reader) -> BaseModelRef:
        """Read the mapping of a document."""
        derived = reader.mapping("derived_from")
        value = cls(
            id=reader.parse("id", check_base_id),
            revision=reader.optional_string("revision", pattern=REVISION_PATTERN, shape="a revision"),
            architecture=reader.optional_string("architecture", max_length=200),
            model_type=reader.optional_string("model_type", max_length=200),
            fingerprints=BaseFingerprints.read(reader.mapping("fingerprints")),
            derived_from=Derivation.read(derived) if derived else None,
        )
        reader.finish()
        return value

    @property
    def pinned(self) -> bool:
        """True when the revision is a commit."""
        return self.revision is not None and re.fullmatch(COMMIT_PATTERN, self.revision) is not None

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "id": self.id,
            "revision": self.revision,
            "architecture": self.architecture,
            "model_type": self.model_type,
            "fingerprints": self.fingerprints.to_data(),
            "derived_from": self.derived_from.to_data() if self.derived_from else None,
        }


def _text(digest: Digest | None) -> str | None:
    return None if digest is None else str(digest)
