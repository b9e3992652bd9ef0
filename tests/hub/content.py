"""Files and commits of a repository, as values."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

GIT_ATTRIBUTES = b"".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n".encode()
    for pattern in ("*.safetensors", "*.bin", "*.gguf", "*.pt", "*.onnx", "*.zip", "*.tar.*")
)
REGULAR_LIMIT = 10 * 1024 * 1024
SAMPLE_BYTES = 512
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def git_sha1(content: bytes, kind: str = "blob") -> str:
    """Name an object as git does: sha1 of `kind SIZE NUL content`, 40 hex digits."""
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def timestamp(tick: int) -> str:
    """Write the store's clock (whole seconds since 2026-01-01) the way the Hub writes a date."""
    return (_EPOCH + timedelta(seconds=tick)).strftime("%Y-%m-%dT%H:%M:%S.000Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One file's bytes, and whether git holds them or only a pointer to them."""

    content: bytes = field(repr=False)
    lfs: bool
    sha256: str
    oid: str
    pointer_size: int

    @classmethod
    def of(cls, content: bytes, *, lfs: bool) -> Blob:
        """Hash the content once; an LFS file's git oid is its pointer's."""
        sha256 = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
        oid = git_sha1(pointer if lfs else content)
        return cls(content=content, lfs=lfs, sha256=sha256, oid=oid, pointer_size=len(pointer) if lfs else 0)

    @property
    def size(self) -> int:
        """The file's size in bytes, not the pointer's."""
        return len(self.content)

    @property
    def etag(self) -> str:
        """What /resolve names the content by: sha256 for LFS, git sha1 otherwise."""
        return self.sha256 if self.lfs else self.oid

    def lfs_record(self) -> dict[str, object]:
        """The `lfs` object of a tree row."""
        return {"oid": self.sha256, "size": self.size, "pointerSize": self.pointer_size}


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A state of all files, with its parent and when it was made (seconds of the store's clock)."""

    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    tick: int
    files: Mapping[str, Blob] = field(repr=False)

    @classmethod
    def make(
        cls, files: Mapping[str, Blob], *, parent: str | None, title: str, message: str, author: str, tick: int
    ) -> Commit:
        """Name the commit by everything in it, so that equal histories have equal commits."""
        tree = [[path, files[path].oid] for path in sorted(files)]
        facts = json.dumps([parent, title, message, author, tick, tree]).encode()
        ordered = {path: files[path] for path in sorted(files)}
        return cls(
            oid=git_sha1(facts, "commit"),
            parent=parent,
            title=title,
            message=message,
            author=author,
            tick=tick,
            files=ordered,
        )

    def row(self) -> dict[str, object]:
        """The row of the commits list."""
        return {
            "id": self.oid,
            "title": self.title,
            "message": self.message,
            "date": timestamp(self.tick),
            "authors": [{"user": self.author}],
        }

    def last_commit(self) -> dict[str, object]:
        """The `lastCommit` object of an expanded tree row."""
        return {"id": self.oid, "title": self.title, "date": timestamp(self.tick)}


def lfs_patterns(files: Mapping[str, Blob]) -> list[str]:
    """Read from .gitattributes which names go to LFS."""
    attributes = files.get(".gitattributes")
    lines = attributes.content.decode("utf-8", "replace").splitlines() if attributes else []
    return [line.split()[0] for line in lines if "filter=lfs" in line.split()]


def goes_to_lfs(path: str, size: int, sample: bytes, patterns: list[str]) -> bool:
    """Decide as preupload does: by pattern, by size (10 MiB), or because the sample is binary; empty files never."""
    if size == 0:
        return False
    name = path.rsplit("/", 1)[-1]
    if any(fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(path, pattern) for pattern in patterns):
        return True
    return size > REGULAR_LIMIT or b"\0" in sample


def file_row(path: str, blob: Blob) -> dict[str, object]:
    """A file's row in tree and paths-info."""
    row: dict[str, object] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
    return row | {"lfs": blob.lfs_record()} if blob.lfs else row


def folder_row(path: str, files: Mapping[str, Blob]) -> dict[str, object]:
    """A folder's row; its oid changes with what lies below."""
    below = [[name, blob.oid] for name, blob in files.items() if name.startswith(path + "/")]
    return {"type": "directory", "oid": git_sha1(json.dumps(below).encode(), "tree"), "size": 0, "path": path}


def tree_rows(files: Mapping[str, Blob], folder: str, *, recursive: bool) -> list[dict[str, object]] | None:
    """List what lies in a folder ("" is the root), folders included; None when there is no such folder."""
    prefix = folder + "/" if folder else ""
    inside = [path for path in files if path.startswith(prefix)]
    if folder and not inside:
        return None
    folders: set[str] = set()
    shown: list[str] = []
    for path in inside:
        parts = path.removeprefix(prefix).split("/")
        parents = [prefix + "/".join(parts[:depth]) for depth in range(1, len(parts))]
        folders.update(parents if recursive else parents[:1])
        if recursive or len(parts) == 1:
            shown.append(path)
    rows = {path: folder_row(path, files) for path in folders} | {path: file_row(path, files[path]) for path in shown}
    return [rows[path] for path in sorted(rows)]


def decode_base64(text: str) -> bytes:
    """Decode strictly: a server that shrugs at bad base64 would hide a client's fault."""
    return base64.b64decode(text, validate=True)
