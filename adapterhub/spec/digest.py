"""Digests, file entries and the one canonical way to write JSON."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_HEX = re.compile(r"[0-9a-f]{64}")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?")
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A sha256, written `sha256:<64 hex>` in every file of ours."""

    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read `sha256:<hex>`.

        Raises:
            ValueError: the text is of another form.
        """
        algorithm, _, digits = text.partition(":")
        if algorithm != "sha256" or not _HEX.fullmatch(digits):
            raise ValueError(f"{text[:80]!r} is not a digest of the form sha256:<64 hex digits>")
        return cls(digits)

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """Return the digest of some bytes."""
        return cls(hashlib.sha256(data).hexdigest())

    @property
    def short(self) -> str:
        """The first twelve digits, for people."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


def digest_stream(stream: BinaryIO) -> tuple[Digest, int]:
    """Hash a stream to its end; return the digest and the number of bytes read."""
    state, size = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK_BYTES):
        state.update(chunk)
        size += len(chunk)
    return Digest(state.hexdigest()), size


def digest_file(path: Path) -> tuple[Digest, int]:
    """Hash a file; return its digest and its size in bytes.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return digest_stream(stream)


def canonical_json(data: object) -> bytes:
    """Write JSON the one way that digests are taken of: UTF-8, sorted keys, two-space indent, one newline at the end.

    Raises:
        ValueError: a number is not finite.
    """
    return (json.dumps(data, ensure_ascii=False, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()


def check_relative_path(text: str) -> str:
    """Return a relative POSIX path that is safe to create under any folder on any platform.

    Raises:
        ValueError: it is absolute, climbs, or holds a name that some file system refuses or reads otherwise.
    """
    if not text or len(text) > 1024:
        raise ValueError("a file path is empty or longer than 1024 characters")
    shown = text.encode("unicode_escape").decode()
    if text.startswith("/") or "\\" in text or re.match(r"[A-Za-z]:", text):
        raise ValueError(f"{shown!r} is not a relative POSIX path")
    for part in text.split("/"):
        if part in ("", ".", ".."):
            raise ValueError(f"{shown!r} holds an empty, '.' or '..' segment")
        if any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in part) or any(c in '<>:"|?*' for c in part):
            raise ValueError(f"{shown!r} holds a character that no portable file name may have")
        if part[-1] in ". " or part[0] == " " or _RESERVED.fullmatch(part) or len(part.encode()) > 255:
            raise ValueError(f"{shown!r} holds a name that not every platform can store")
    return text


def colliding_paths(paths: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of paths that a case-insensitive or normalising file system would take for one."""
    seen: dict[str, str] = {}
    pairs = []
    for path in paths:
        key = unicodedata.normalize("NFC", path).casefold()
        if key in seen:
            pairs.append((seen[key], path))
        seen.setdefault(key, path)
    return pairs


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class FileEntry:
    """One file of a package: a relative POSIX path, its size in bytes, and its digest."""

    path: str
    size: int
    digest: Digest

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {"path": self.path, "size": self.size, "sha256": self.digest.hex}
