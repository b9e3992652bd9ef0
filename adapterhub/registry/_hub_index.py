"""adapter_index.json in a Hub repository: read to be written again, and yanking, which is an edit of it on main."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace

from adapterhub.documents import MAX_DOCUMENT_BYTES, parse_json
from adapterhub.errors import AdapterHubError, InvalidFileError, NetworkError, UnsatisfiedError
from adapterhub.registry import _hub_client
from adapterhub.registry._hub_client import Conflict, HubClient
from adapterhub.registry.base import differs_in_case
from adapterhub.spec.index import INDEX_FILE, INDEX_VERSION, AdapterIndex, IndexRow
from adapterhub.spec.manifest import MANIFEST_FILE, Manifest
from adapterhub.spec.refs import PackageRef, parse_version

TRIES = 6
"""How often a commit is made anew because somebody else was faster."""
AGAIN = "run the same command again: it goes on where this one stopped"


def tag_of(ref: PackageRef) -> str:
    """Return the tag that makes a commit this version."""
    return f"v{ref.version}"


def read_index(client: HubClient, name: str, commit: str) -> AdapterIndex:
    """Return the index as it stands at a commit, to be written again; an absent one is empty.

    Raises:
        InvalidFileError: it cannot be read, or is of a newer format, whose fields writing it would lose.
    """
    where = f"{name}: {INDEX_FILE}"
    data = client.read(name, commit, INDEX_FILE, MAX_DOCUMENT_BYTES)
    if data is None:
        return AdapterIndex()
    try:
        content = parse_json(data, where=where)
        index = AdapterIndex.from_data(content, where=where)
    except InvalidFileError as error:
        raise InvalidFileError(
            f"the index of versions cannot be read: {error.message}",
            where=error.where,
            hint=f"upgrade adapterhub; where it is damaged, restore or delete {INDEX_FILE} on main: the tags rule",
            details=error.details,
        ) from error
    said = content.get("index_version") if isinstance(content, dict) else None
    if said != INDEX_VERSION:
        raise InvalidFileError(
            f"the index of versions is of the format {said}, newer than this adapterhub writes ({INDEX_VERSION})",
            where=where,
            hint="upgrade adapterhub: pip install --upgrade adapterhub",
        )
    return index


def set_yanked(client: HubClient, ref: PackageRef, reason: str | None) -> bool:
    """Mark a version as yanked in the index on main, or take the mark away (None); return False if nothing changed.

    Raises:
        UnsatisfiedError: there is no such version. AuthorizationError: the token may not write there. NetworkError.
    """
    name = str(ref.name)
    require_spelling(client, name)
    for attempt in range(TRIES):
        refs = client.refs(name)
        commit = refs.tags.get(tag_of(ref))
        if commit is None:
            hint = (
                f"available: {known}"
                if (known := _versions(refs.tags))
                else "nothing there has a version that could be yanked"
            )
            raise UnsatisfiedError(f"the registry has no {ref}", where=name, hint=hint)
        index = read_index(client, name, refs.head)
        row = index.row(ref.version)
        if (row.yanked if row else None) == reason:
            return False
        changed = index.with_row(replace(row or _row_of_tag(client, ref, commit), yanked=reason))
        try:
            _commit_index(client, ref, refs.head, changed, reason)
        except Conflict:
            pause(attempt)
            continue
        return True
    raise overtaken(name)


def _commit_index(client: HubClient, ref: PackageRef, head: str, index: AdapterIndex, reason: str | None) -> None:
    """Commit the index on top of the head it was read from; a lost answer is looked for.

    Raises:
        Conflict: the head has moved.
    """
    from huggingface_hub import CommitOperationAdd

    name = str(ref.name)
    title = f"Take back the yank of {ref.version}" if reason is None else f"Yank {ref.version}"
    try:
        with client.guarded("commit the index", name):
            client.api.create_commit(
                name,
                [CommitOperationAdd(INDEX_FILE, index.canonical_bytes())],
                commit_message=title,
                commit_description=reason or "",
                parent_commit=head,
            )
    except NetworkError as error:
        try:
            row = read_index(client, name, client.refs(name).head).row(ref.version)
        except AdapterHubError:
            row = None
        if row is None or row.yanked != reason:
            raise NetworkError(error.message, where=error.where, hint=AGAIN) from error


def _row_of_tag(client: HubClient, ref: PackageRef, commit: str) -> IndexRow:
    """Make the row of a version that only its tag tells of.

    Raises:
        UnsatisfiedError: the tag holds no manifest of ours.
    """
    name = str(ref.name)
    data = client.read(name, commit, MANIFEST_FILE, MAX_DOCUMENT_BYTES)
    if data is None:
        raise UnsatisfiedError(
            "a plain adapter has no published version that could be yanked", where=str(ref), hint="adapt pack DIR"
        )
    manifest = Manifest.from_data(parse_json(data, where=f"{ref}: {MANIFEST_FILE}"), where=f"{ref}: {MANIFEST_FILE}")
    with client.guarded("list its commits", name):
        made = client.api.list_repo_commits(name, revision=commit)[0].created_at
    return IndexRow.of(manifest, published=made)


def require_spelling(client: HubClient, name: str) -> None:
    """Refuse a name that the Hub takes for another: names that differ in case alone are one, and moved ones redirect.

    Raises:
        UnsatisfiedError: the repository is called otherwise, or there is none.
    """
    there = client.repository(name).name
    if there == name:
        return
    if there.casefold() == name.casefold():
        raise differs_in_case(there, name, where=client.endpoint)
    raise UnsatisfiedError(f"{name} has moved to {there}", where=client.endpoint, hint=f"use that name: {there}")


def pause(attempt: int) -> None:
    """Let whoever was faster come to an end."""
    _hub_client.sleep(0.2 * 2**attempt)


def overtaken(name: str) -> NetworkError:
    """Return the error of a commit that others were always faster than."""
    return NetworkError(f"others keep changing the repository: tried {TRIES} times to commit", where=name, hint=AGAIN)


def _versions(tags: Iterable[str]) -> str:
    """Return the versions among tags, as a person reads them."""
    found = []
    for tag in tags:
        with contextlib.suppress(ValueError):
            found += [parse_version(tag[1:])] if tag.startswith("v") else []
    return ", ".join(map(str, sorted(found)[-10:]))
