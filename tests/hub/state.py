"""What the Hub on loopback holds in memory: users, repositories, LFS objects. No HTTP here."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from tests.hub.content import GIT_ATTRIBUTES, Blob, Commit, goes_to_lfs, lfs_patterns

Gated = Literal["auto", "manual", False]
MAIN = "main"


class HubError(Exception):
    """A request the Hub refuses: status, X-Error-Code and message go on the wire as they are."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, extra: Mapping[str, object] | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.extra: Mapping[str, object] = extra or {}
        self.headers: dict[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody with a token; `role` is the token's."""

    name: str
    token: str
    role: Literal["read", "write"] = "write"
    organizations: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        """Whether the user may act for this namespace."""
        return namespace == self.name or namespace in self.organizations


@dataclass(slots=True, kw_only=True)
class Repo:
    """One repository: its history, its refs, its settings. Changed only under the store's lock."""

    kind: str
    id: str
    private: bool = False
    gated: Gated = False
    disabled: bool = False
    granted: set[str] = field(default_factory=set)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    created: int = 0
    downloads: int = 0
    likes: int = 0

    @property
    def page_path(self) -> str:
        """The path of its page: models have no prefix."""
        return self.id if self.kind == "models" else f"{self.kind}/{self.id}"

    @property
    def namespace(self) -> str:
        """The user or organization it belongs to."""
        return self.id.split("/")[0]

    @property
    def head(self) -> Commit:
        """The newest commit of main."""
        return self.commits[self.branches[MAIN]]

    def commit_at(self, revision: str) -> Commit:
        """Find a branch, tag, full ref or 40-hex commit.

        Raises:
            HubError: 404 RevisionNotFound.
        """
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        oid = self.branches.get(name) or self.tags.get(name) or self.pulls.get(revision) or revision
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return self.commits[oid]

    def history(self, revision: str) -> list[Commit]:
        """The commits that lead to a revision, newest first."""
        commit: Commit | None = self.commit_at(revision)
        found = []
        while commit is not None:
            found.append(commit)
            commit = self.commits[commit.parent] if commit.parent else None
        return found

    def last_change(self, path: str, revision: str) -> Commit:
        """The newest commit that touched a file or anything below a folder."""
        history = self.history(revision)
        for newer, older in itertools.pairwise(history):
            if _below(newer, path) != _below(older, path):
                return newer
        return history[-1]


def _below(commit: Commit, path: str) -> list[tuple[str, str]]:
    return [(name, blob.oid) for name, blob in commit.files.items() if name == path or name.startswith(path + "/")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one commit does: files to put (path to blob) and paths or folders (trailing slash) to delete."""

    put: Mapping[str, Blob] = field(default_factory=dict)
    delete: tuple[str, ...] = ()

    def apply(self, files: Mapping[str, Blob]) -> dict[str, Blob]:
        """Make the new set of files.

        Raises:
            HubError: 404 EntryNotFound where a path to delete is not there.
        """
        result = dict(files)
        for path in self.delete:
            gone = [name for name in result if name == path or (path.endswith("/") and name.startswith(path))]
            if not gone:
                raise HubError(404, f"A file with this name doesn't exist: {path}", code="EntryNotFound")
            for name in gone:
                del result[name]
        return result | dict(self.put)


class Store:
    """Everything the server knows; every method is safe to call from any thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users: dict[str, User] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.moved: dict[tuple[str, str], str] = {}
        self.lfs: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self._tick = 0

    def tick(self) -> int:
        """Advance the clock by a second: time passes only when something happens."""
        with self.lock:
            self._tick += 1
            return self._tick

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the store while several steps must be one."""
        with self.lock:
            yield

    def add_user(
        self, name: str, *, role: Literal["read", "write"] = "write", organizations: tuple[str, ...] = ()
    ) -> User:
        """Register a user; the token is `hf_NAME` (`hf_NAME_read` for a read token)."""
        token = f"hf_{name}" if role == "write" else f"hf_{name}_read"
        user = User(name=name, token=token, role=role, organizations=organizations)
        with self.lock:
            self.users[token] = user
        return user

    def find(self, kind: str, repo_id: str) -> Repo | None:
        """Find a repository whatever the case of its name: on the Hub, names that differ in case alone are one."""
        with self.lock:
            exact = self.repos.get((kind, repo_id))
            if exact is not None:
                return exact
            wanted = repo_id.casefold()
            return next(
                (repo for (of, name), repo in self.repos.items() if of == kind and name.casefold() == wanted), None
            )

    def create_repo(
        self, repo_id: str, *, author: str, kind: str = "models", private: bool = False, gated: Gated = False
    ) -> Repo:
        """Create a repository with the Hub's first commit (.gitattributes).

        Raises:
            HubError: 409 where the name is taken.
        """
        with self.lock:
            if self.find(kind, repo_id) is not None:
                raise HubError(409, "You already created this model repo")
            self.moved.pop((kind, repo_id), None)
            repo = Repo(kind=kind, id=repo_id, private=private, gated=gated, created=self.tick())
            self.repos[kind, repo_id] = repo
            first = Change(put={".gitattributes": Blob.of(GIT_ATTRIBUTES, lfs=False)})
            self.commit(repo, first, author=author, title="initial commit")
            return repo

    def commit(
        self,
        repo: Repo,
        change: Change,
        *,
        author: str,
        title: str,
        message: str = "",
        branch: str = MAIN,
        expected_parent: str | None = None,
    ) -> Commit:
        """Put a commit on a branch (or an open pull request's ref).

        Raises:
            HubError: 404 RevisionNotFound, 404 EntryNotFound, 412 where `expected_parent` is not the head.
        """
        with self.lock:
            refs = repo.pulls if branch in repo.pulls else repo.branches
            parent = refs.get(branch)
            if parent is None and repo.commits:
                raise HubError(404, f"Invalid rev id: {branch}", code="RevisionNotFound")
            if expected_parent is not None and expected_parent != parent:
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = change.apply(repo.commits[parent].files if parent else {})
            commit = Commit.make(files, parent=parent, title=title, message=message, author=author, tick=self.tick())
            repo.commits[commit.oid] = commit
            refs[branch] = commit.oid
            return commit

    def open_pull(self, repo: Repo, base: str) -> str:
        """Open a pull request on a revision and return its ref."""
        with self.lock:
            ref = f"refs/pr/{len(repo.pulls) + 1}"
            repo.pulls[ref] = repo.commit_at(base).oid
            return ref

    def squash(self, repo: Repo, branch: str, title: str, author: str) -> Commit:
        """Make a branch one commit without a parent; the old commits can still be read by their oid."""
        with self.lock:
            if branch not in repo.branches:
                raise HubError(404, f"Invalid rev id: {branch}", code="RevisionNotFound")
            files = repo.commits[repo.branches[branch]].files
            commit = Commit.make(files, parent=None, title=title, message="", author=author, tick=self.tick())
            repo.commits[commit.oid] = commit
            repo.branches[branch] = commit.oid
            return commit

    def put_files(self, repo: Repo, files: Mapping[str, bytes], *, title: str = "Upload files") -> Commit:
        """Commit files to main without the wire, LFS decided as preupload would."""
        with self.lock:
            patterns = lfs_patterns(repo.head.files)
            put = {}
            for path, content in files.items():
                lfs = goes_to_lfs(path, len(content), content[:512], patterns)
                put[path] = Blob.of(content, lfs=lfs)
                if lfs:
                    self.lfs[put[path].sha256] = content
            return self.commit(repo, Change(put=put), author=repo.namespace, title=title)

    def move_repo(self, kind: str, old: str, new: str) -> None:
        """Rename a repository; the old name redirects from then on."""
        with self.lock:
            if (kind, new) in self.repos:
                raise HubError(409, "A repo with this name already exists")
            repo = self.repos.pop((kind, old))
            repo.id = new
            self.repos[kind, new] = repo
            self.moved[kind, old] = new

    def put_lfs(self, oid: str, content: bytes) -> None:
        """Keep an LFS object.

        Raises:
            HubError: 400 where the content is not what the oid says.
        """
        if hashlib.sha256(content).hexdigest() != oid:
            raise HubError(400, "The provided checksum doesn't match the content")
        with self.lock:
            self.lfs[oid] = content


def may_read(repo: Repo, user: User | None) -> bool:
    """Whether the repository is visible at all."""
    return not repo.private or (user is not None and (user.owns(repo.namespace) or user.name in repo.granted))


def may_download(repo: Repo, user: User | None) -> bool:
    """Whether file contents are open: a gate asks for a grant."""
    if not may_read(repo, user):
        return False
    return not repo.gated or (user is not None and (user.owns(repo.namespace) or user.name in repo.granted))


def may_write(repo: Repo, user: User | None) -> bool:
    """Whether the user's token may change the repository."""
    return user is not None and user.role == "write" and user.owns(repo.namespace)
