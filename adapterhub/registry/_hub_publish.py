"""Publishing to the Hub: one commit on main that holds a version, then its tag, which is what makes it a version.

A version is published when the tag `vX.Y.Z` is there. The commit before it brings payload, manifest, card and the row
of adapter_index.json together, on top of the very head that was read: if somebody else commits meanwhile, the Hub says
412 and all is read anew. So every moment at which a process may die leaves one of two states, nothing or a row without
its tag, and publishing the same package again finishes the second. A request whose answer was lost is looked for among
the refs and at the head before it counts as failed.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from adapterhub.documents import MAX_DOCUMENT_BYTES, parse_json
from adapterhub.errors import (
    AdapterHubError,
    AuthorizationError,
    IntegrityError,
    InvalidFileError,
    NetworkError,
    UnsatisfiedError,
)
from adapterhub.files import local_io
from adapterhub.package import Package, refuse_pickles, regular_file
from adapterhub.progress import Progress
from adapterhub.registry import _hub_client
from adapterhub.registry._hub_card import is_generated, published_card
from adapterhub.registry._hub_client import Conflict, HubClient, Refs, RemoteFile
from adapterhub.registry._hub_index import AGAIN, TRIES, overtaken, pause, read_index, require_spelling, tag_of
from adapterhub.registry._hub_index import set_yanked as set_yanked
from adapterhub.registry.base import COMPANIONS, Published, differs_in_case, version_taken
from adapterhub.spec.digest import Digest, FileEntry, digest_stream
from adapterhub.spec.index import INDEX_FILE, AdapterIndex, IndexRow
from adapterhub.spec.manifest import CARD_FILE, LOSS_PLOT_FILE, MANIFEST_FILE, Manifest
from adapterhub.spec.provenance import PROVENANCE_FILE
from adapterhub.spec.refs import PackageName, PackageRef
from adapterhub.store import check_same

VISIBLE_SECONDS = 60.0
"""How long a tag may take until the Hub lists it."""
_LOOKED_BACK = 5
_RESERVED = (INDEX_FILE, ".gitattributes", ".gitignore")
# Smaller files are held in memory, so that what is sent is what was hashed.
_IN_MEMORY = 8 << 20
_CARD_LIMIT = 1 << 20


def published(client: HubClient, ref: PackageRef, manifest: Manifest) -> bool:
    """Say whether this very manifest is published under a ref, and whether publishing it could succeed at all.

    Raises:
        UnsatisfiedError: that version is there with other bytes, or the name is another's. AuthorizationError: the
            token is missing or may not write. NetworkError: as `HubClient`.
    """
    name = str(ref.name)
    refs = _refs(client, name)
    if refs is None:
        _require_token(client, ref.name)
        return False
    require_spelling(client, name)
    if (commit := refs.tags.get(tag_of(ref))) is not None:
        _require_same(client, ref, commit, manifest)
        return True
    _require_own_row(read_index(client, name, refs.head), ref, manifest, where=name)
    _require_any_token(client, ref.name)
    with client.guarded("write to the repository", name):
        client.api.auth_check(name, write=True)
    return False


def publish(client: HubClient, package: Package, name: PackageName, *, progress: Progress) -> Published:
    """Put a package on the Hub; the same bytes again change nothing, and what an earlier call left half-done is ended.

    Raises:
        UnsatisfiedError: that version is there with other bytes, or the name is another's. AuthorizationError: the
            token may not write there. IntegrityError: the package's files are not what its manifest says, or what the
            Hub holds after the commit is not what was sent; there is no tag then. NetworkError: no answer.
    """
    return _Publication(client, package, name, progress).run()


@dataclass(frozen=True)
class _Publication:
    """One package on its way to one name."""

    client: HubClient
    package: Package
    full_name: PackageName
    progress: Progress

    @property
    def name(self) -> str:
        return str(self.full_name)

    @property
    def manifest(self) -> Manifest:
        return self.package.manifest

    @property
    def ref(self) -> PackageRef:
        return PackageRef(self.full_name, self.manifest.version)

    @property
    def title(self) -> str:
        """The commit's; by it a commit that never got its tag is found again."""
        return f"Publish {self.manifest.version} (manifest {self.manifest.digest.short})"

    @cached_property
    def contents(self) -> Mapping[str, bytes | Path]:
        """The payload as it is sent: small files as bytes, large ones by their path; all of it checked."""
        names = [entry.path for entry in self.manifest.files]
        for name in names:
            if name in _RESERVED or ".git" in name.split("/"):
                raise InvalidFileError("no package on the Hub may hold a file of this name", where=name)
        refuse_pickles(self.package.path, names)
        return {entry.path: _checked(self.package.path, entry) for entry in self.manifest.files}

    def run(self) -> Published:
        # Nothing is asked or made before the files are known to be sound: `contents` reads them.
        size = sum(entry.size for entry in self.manifest.files if entry.path in self.contents)
        with self.progress.task(f"publish {self.ref}", total=size, unit="B") as task:
            created = self._publish()
            task.advance(size)
        where = f"{self.client.endpoint}/{self.name}/tree/{tag_of(self.ref)}"
        return Published(ref=self.ref, digest=self.manifest.digest, created=created, where=where)

    def _publish(self) -> bool:
        """Make commit and tag; return whether anything was written."""
        refs = self._repository()
        written = False
        for attempt in range(TRIES):
            if (commit := refs.tags.get(tag_of(self.ref))) is not None:
                _require_same(self.client, self.ref, commit, self.manifest)
                return written
            index = read_index(self.client, self.name, refs.head)
            try:
                found = self._unfinished(refs, index)
                commit = found or self._commit(refs, index)
                written = written or found is None
                self._tag(commit)
            except Conflict:
                pause(attempt)
                refs = self.client.refs(self.name)
            else:
                refs = self._wait_for_tag()
                _require_same(self.client, self.ref, refs.tags[tag_of(self.ref)], self.manifest)
                return True
        raise overtaken(self.name)

    def _repository(self) -> Refs:
        """Return the refs of the repository, which is made if there is none."""
        refs = _refs(self.client, self.name)
        if refs is None:
            _require_token(self.client, self.full_name)
            with self.client.guarded("create the repository", self.name):
                self.client.api.create_repo(self.name, exist_ok=True)
            refs = self.client.refs(self.name)
        require_spelling(self.client, self.name)
        return refs

    def _unfinished(self, refs: Refs, index: AdapterIndex) -> str | None:
        """Return the commit of an earlier call that did not come to its tag; None where there is none."""
        if not _require_own_row(index, self.ref, self.manifest, where=self.name):
            return None
        if self._is_held_by(refs.head):
            return refs.head
        with self.client.guarded("list its commits", self.name):
            history = self.client.api.list_repo_commits(self.name)
        found = [str(commit.commit_id) for commit in history if commit.title == self.title]
        return next((commit for commit in found[:_LOOKED_BACK] if self._is_held_by(commit)), None)

    def _is_held_by(self, commit: str) -> bool:
        """Say whether a commit holds this manifest and payload."""
        there = {file.path: file for file in self.client.tree(self.name, commit)}
        manifest = self.manifest.canonical_bytes()
        entry = FileEntry(path=MANIFEST_FILE, size=len(manifest), digest=Digest.of(manifest))
        return _is_same(there.get(MANIFEST_FILE), entry, manifest) and all(
            _is_same(there.get(entry.path), entry, self.contents[entry.path]) for entry in self.manifest.files
        )

    def _commit(self, refs: Refs, index: AdapterIndex) -> str:
        """Commit the package on top of the head; return the commit, once it is seen to hold what was sent.

        Raises:
            Conflict: the head has moved.
        """
        operations = self._operations(refs, index)
        doing = "commit the package"
        try:
            with (
                local_io(self.package.path, "read the package"),
                self.client.guarded(doing, self.name),
                _told_by(self.progress),
            ):
                made = self.client.api.create_commit(
                    self.name,
                    operations,
                    commit_message=self.title,
                    commit_description=f"manifest {self.manifest.digest}",
                    parent_commit=refs.head,
                )
            commit = str(made.oid)
        except ValueError as error:  # what the Hub says of the card, and of LFS objects that it did not take
            raise InvalidFileError(f"cannot {doing}: {error}", where=self.name) from error
        except NetworkError as error:
            commit = self._landed(refs.head, error)
        if not self._is_held_by(commit):
            raise IntegrityError(
                "what the Hub holds after the commit is not what was sent; no version was made of it",
                where=f"{self.name}: {commit}",
                hint="check that no .gitignore or .gitattributes of the repository leaves out the package's files",
            )
        return commit

    def _landed(self, before: str, error: NetworkError) -> str:
        """Return the commit whose answer was lost.

        Raises:
            NetworkError: the one given; there is no such commit.
        """
        try:
            head = self.client.refs(self.name).head
            if head != before and self._is_held_by(head):
                return head
        except (AdapterHubError, Conflict):
            pass
        raise NetworkError(error.message, where=error.where, hint=AGAIN) from error

    def _operations(self, refs: Refs, index: AdapterIndex) -> list[Any]:
        """Return what the commit does: the payload, what goes with it, the index's row; what is stale is deleted."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        row = index.row(self.manifest.version) or IndexRow.of(self.manifest, published=datetime.now(UTC))
        present = {file.path for file in self.client.tree(self.name, refs.head)}
        files: dict[str, bytes | Path] = {
            **self.contents,
            **self._companions(refs, present),
            MANIFEST_FILE: self.manifest.canonical_bytes(),
            INDEX_FILE: index.with_row(row).canonical_bytes(),
        }
        stale = (self._stale(refs) & present) - set(files)
        operations: list[Any] = []
        for path, content in files.items():
            added = CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            if isinstance(content, Path):
                # The client sends what it hashed; with the digest checked, nothing else can get in between.
                entry = next(entry for entry in self.manifest.files if entry.path == path)
                info = added.upload_info
                check_same(entry, Digest.parse(f"sha256:{info.sha256.hex()}"), info.size, where=str(content))
            operations.append(added)
        return [*operations, *(CommitOperationDelete(path) for path in sorted(stale))]

    def _companions(self, refs: Refs, present: set[str]) -> dict[str, bytes | Path]:
        """Return the card, with what the Hub reads of it, and what else the package has beside its payload."""
        found: dict[str, bytes | Path] = {}
        for path in COMPANIONS:
            if (self.package.path / path).exists():
                where = regular_file(self.package.path, path)
                with local_io(where, "read the file"):
                    found[path] = where.read_bytes()
        card = found.get(CARD_FILE)
        if card is None and CARD_FILE in present:
            # Somebody may have written one on the Hub; one that we made for an older version is made anew.
            card = self.client.read(self.name, refs.head, CARD_FILE, _CARD_LIMIT)
        text = card.decode("utf-8", "replace") if isinstance(card, bytes) else None
        if text is not None and CARD_FILE not in found and is_generated(text):
            text = None
        where_card = str(self.package.path / CARD_FILE)
        plot = LOSS_PLOT_FILE in found
        new = published_card(text, self.manifest, self.full_name, where=where_card, plot=plot)
        return {**found, CARD_FILE: new.encode()}

    def _stale(self, refs: Refs) -> set[str]:
        """Return the files of the version before that this one has not, as its manifest lists them."""
        data = self.client.read(self.name, refs.head, MANIFEST_FILE, MAX_DOCUMENT_BYTES)
        if data is None:
            return set()
        try:
            before = Manifest.from_data(parse_json(data, where=MANIFEST_FILE))
        except InvalidFileError:
            return set()  # nothing says what is ours
        return {entry.path for entry in before.files} | {PROVENANCE_FILE, LOSS_PLOT_FILE}

    def _tag(self, commit: str) -> None:
        """Tag the commit, which is what publishes it.

        Raises:
            Conflict: the tag is there already.
        """
        tag = tag_of(self.ref)
        try:
            with self.client.guarded(f"tag the commit {commit[:12]} as {tag}", self.name):
                self.client.api.create_tag(self.name, tag=tag, revision=commit)
        except NetworkError as error:
            try:
                if tag in self.client.refs(self.name).tags:
                    return
            except AdapterHubError:
                pass
            raise NetworkError(error.message, where=error.where, hint=AGAIN) from error

    def _wait_for_tag(self) -> Refs:
        """Return the refs once the Hub lists the tag.

        Raises:
            NetworkError: it does not in good time.
        """
        tag, waited, step = tag_of(self.ref), 0.0, 0.5
        while tag not in (refs := self.client.refs(self.name)).tags:
            if waited >= VISIBLE_SECONDS:
                raise NetworkError(
                    f"the tag {tag} was made, and the Hub does not list it after {waited:.0f} seconds",
                    where=self.name,
                    hint="run the same command again: nothing that is there is written twice",
                )
            _hub_client.sleep(step)
            waited, step = waited + step, min(2 * step, 8.0)
        return refs


def _refs(client: HubClient, name: str) -> Refs | None:
    """Return a repository's refs; None where there is none that this token may see."""
    try:
        return client.refs(name)
    except UnsatisfiedError:
        return None


def _require_any_token(client: HubClient, name: PackageName) -> None:
    if not client.has_token:
        raise AuthorizationError("publishing to the Hub needs a token", where=str(name), hint="adapt login")


def _require_token(client: HubClient, name: PackageName) -> None:
    """Refuse to make a repository anonymously, with a token that may only read, or in somebody else's namespace.

    Raises:
        AuthorizationError: that is so. UnsatisfiedError: the namespace is spelled otherwise.
    """
    _require_any_token(client, name)
    with client.guarded("ask whose token this is", str(name)):
        told = client.api.whoami()
    token = told.get("auth", {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise AuthorizationError(
            "the token may only read", where=str(name), hint="make one that may write, then: adapt login"
        )
    spaces = [str(told.get("name")), *(str(row["name"]) for row in told.get("orgs") or () if "name" in row)]
    if name.org in spaces:
        return
    for space in spaces:
        if space.casefold() == name.org.casefold():
            raise differs_in_case(space, name.org, where=client.endpoint)
    raise AuthorizationError(
        f"the token is {spaces[0]}'s, and {name.org} is neither that nor an organisation it belongs to",
        where=str(name),
        hint=f"publish as {spaces[0]}/{name.name}, or log in as somebody else: adapt login",
    )


def _require_same(client: HubClient, ref: PackageRef, commit: str, manifest: Manifest) -> None:
    """Refuse to publish other bytes under a version that has its tag."""
    data = client.read(str(ref.name), commit, MANIFEST_FILE, MAX_DOCUMENT_BYTES)
    if data is None or Digest.of(data) != manifest.digest:
        raise version_taken(ref, where=client.endpoint)


def _require_own_row(index: AdapterIndex, ref: PackageRef, manifest: Manifest, *, where: str) -> bool:
    """Say whether the index has this package's row; it has no tag yet, whoever wrote it.

    Raises:
        UnsatisfiedError: it has a row of this version with other bytes.
    """
    row = index.row(ref.version)
    if row is None or row.manifest == manifest.digest:
        return row is not None
    taken = version_taken(ref, where=where)
    raise UnsatisfiedError(
        taken.message,
        where=where,
        hint=f"{taken.hint}; it has no tag yet: whoever began it can end it by publishing {row.manifest.short}… again",
    )


def _checked(folder: Path, entry: FileEntry) -> bytes | Path:
    """Return a file's bytes, or its path where it is large, once they are seen to be what the manifest says."""
    path = regular_file(folder, entry.path)
    with local_io(path, "read the file"), path.open("rb") as stream:
        hint = "build or pack the package again"
        if entry.size > _IN_MEMORY:
            check_same(entry, *digest_stream(stream), where=str(path), hint=hint)
            return path
        data = stream.read(entry.size + 1)
    check_same(entry, Digest.of(data), len(data), where=str(path), hint=hint)
    return data


def _is_same(remote: RemoteFile | None, entry: FileEntry, content: bytes | Path) -> bool:
    """Say whether a file on the Hub has these bytes: by sha256 where LFS keeps it, else by git's id of a blob."""
    if remote is None or remote.size != entry.size:
        return False
    if remote.sha256 is not None:
        return remote.sha256 == entry.digest
    # Source: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects; git's own ids are SHA-1.
    state = hashlib.sha1(b"blob %d\0" % entry.size, usedforsecurity=False)
    if isinstance(content, bytes):
        state.update(content)
    else:
        with local_io(content, "read the file"), content.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                state.update(chunk)
    return state.hexdigest() == remote.blob_id


@contextmanager
def _told_by(progress: Progress) -> Iterator[None]:
    """Keep the client's bars off the terminal, and pass on what it warns of: the Hub's words about the card."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_off = are_progress_bars_disabled()
    if not were_off:
        disable_progress_bars()
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            yield
    finally:
        if not were_off:
            enable_progress_bars()
    for line in dict.fromkeys(str(item.message) for item in said if issubclass(item.category, UserWarning)):
        progress.note(line)
