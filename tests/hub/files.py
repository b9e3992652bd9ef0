"""Routes about files: preupload, commit, tree, paths-info."""

from __future__ import annotations

import binascii
import json
from typing import Any
from urllib.parse import parse_qs

from tests.hub.content import Blob, decode_base64, file_row, folder_row, goes_to_lfs, lfs_patterns, tree_rows
from tests.hub.state import Change, HubError, Repo, Store
from tests.hub.wire import API, Request, Response, Service, json_response, route

REVISION = "(?P<revision>[^/]+)"


def _bytes(text: str) -> bytes:
    try:
        return decode_base64(text)
    except binascii.Error as error:
        raise HubError(400, f"Invalid base64: {error}") from error


@route("POST", f"{API}/preupload/{REVISION}")
def preupload(service: Service, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    """Say for each file how it must come, and what lies at its path now."""
    repo, _ = service.repo_to_write(request, kind, repo_id)
    present = repo.commit_at(revision).files
    patterns = lfs_patterns(present)
    answer = []
    files = request.json()["files"]
    if len(files) > 256:
        raise HubError(400, "At most 256 files can be checked at once")
    for file in files:
        lfs = goes_to_lfs(file["path"], file["size"], _bytes(file["sample"]), patterns)
        row = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        blob = present.get(file["path"])
        answer.append(row | ({"oid": blob.etag} if blob is not None and blob.lfs == lfs else {}))
    return json_response({"files": answer})


def read_change(store: Store, repo: Repo, body: bytes, revision: str) -> tuple[dict[str, Any], Change]:
    """Read the NDJSON of a commit: its header, and what it puts and deletes.

    Raises:
        HubError: 400 for a line that makes no sense or an LFS object that never came.
    """
    header: dict[str, Any] = {}
    put: dict[str, Blob] = {}
    delete: list[str] = []
    for line in body.splitlines():
        try:
            record = json.loads(line)
            key, value = record["key"], record["value"]
        except (ValueError, KeyError, TypeError) as error:
            raise HubError(400, f"Invalid line in commit: {error}") from error
        if key == "header":
            header = value
            continue
        path = value["path"]
        if path.startswith("/") or any(part in ("", ".", "..", ".git") for part in path.rstrip("/").split("/")):
            raise HubError(400, f"Invalid path in commit: {path}")
        if key == "file":
            put[path] = Blob.of(_bytes(value["content"]), lfs=False)
        elif key == "lfsFile":
            if value["oid"] not in store.lfs:
                raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path}")
            put[path] = Blob.of(store.lfs[value["oid"]], lfs=True)
            if value.get("size", put[path].size) != put[path].size:
                raise HubError(400, f"The size of the LFS object differs from the pointer's: {path}")
        elif key == "deletedFile":
            delete.append(path)
        elif key == "deletedFolder":
            delete.append(path.rstrip("/") + "/")
        else:
            raise HubError(400, f"Unknown operation in commit: {key}")
    if not header.get("summary"):
        raise HubError(400, "A commit needs a summary")
    return header, Change(put=put, delete=tuple(delete))


@route("POST", f"{API}/commit/{REVISION}")
def commit(service: Service, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    """Commit to a branch, or open a pull request with the commit."""
    repo, user = service.repo_to_write(request, kind, repo_id)
    store = service.store
    with store.changing():
        header, change = read_change(store, repo, request.body, revision)
        parent = header.get("parentCommit")
        branch = revision
        if request.flag("create_pr"):
            if parent not in (None, repo.commit_at(revision).oid):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            branch = store.open_pull(repo, revision)
        made = store.commit(
            repo,
            change,
            author=user.name,
            title=header["summary"],
            message=header.get("description") or "",
            branch=branch,
            expected_parent=parent,
        )
    page = f"{service.endpoint}/{repo.page_path}"
    answer = {"success": True, "commitOid": made.oid, "commitUrl": f"{page}/commit/{made.oid}", "hookOutput": ""}
    if branch != revision:
        answer["pullRequestUrl"] = f"{page}/discussions/{branch.rsplit('/', 1)[-1]}"
    return json_response(answer)


@route("GET", f"{API}/tree/{REVISION}(?:/(?P<path>[^/]+))?")
def tree(service: Service, request: Request, kind: str, repo_id: str, revision: str, path: str = "") -> Response:
    """List a folder; the path comes quoted as one segment."""
    repo = service.repo(request, kind, repo_id)
    rows = tree_rows(repo.commit_at(revision).files, path, recursive=request.flag("recursive"))
    if rows is None:
        raise HubError(404, f"{path} does not exist on {revision}", code="EntryNotFound")
    if request.flag("expand"):
        rows = [row | {"lastCommit": repo.last_change(str(row["path"]), revision).last_commit()} for row in rows]
    return service.page(request, rows, 100 if request.flag("expand") else 1000)


@route("POST", f"{API}/paths-info/{REVISION}")
def paths_info(service: Service, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    """Describe the named paths, leaving out those that are not there."""
    repo = service.repo(request, kind, repo_id)
    if request.headers.get("content-type", "").startswith("application/json"):
        form: dict[str, Any] = request.json()
        paths, expand = form["paths"], form.get("expand") is True
    else:
        form = parse_qs(request.body.decode())
        paths, expand = form.get("paths", []), form.get("expand") in (["true"], ["True"])
    files = repo.commit_at(revision).files
    rows = []
    for path in paths:
        if path in files:
            row = file_row(path, files[path])
        elif any(name.startswith(path + "/") for name in files):
            row = folder_row(path, files)
        else:
            continue
        rows.append(row | ({"lastCommit": repo.last_change(path, revision).last_commit()} if expand else {}))
    return json_response(rows)
