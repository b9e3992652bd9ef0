"""Routes that move bytes: LFS up (whole or in parts), resolve and the CDN down (whole or in ranges)."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote

from tests.hub.content import Blob
from tests.hub.state import HubError
from tests.hub.wire import KIND, REPO, Request, Response, Service, json_response, route

GIT = f"(?:/(?P<kind>datasets|spaces))?/{REPO}[.]git/info/lfs"
RESOLVE = f"(?:/(?P<kind>datasets|spaces))?/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
OID = "(?P<oid>[0-9a-f]{64})"


def signature(*facts: object) -> str:
    """Sign a URL: whoever has it needs no token, and nobody can make one up."""
    return hashlib.sha256(repr(("loopback hub", facts)).encode()).hexdigest()[:32]


def _check_signature(request: Request, *facts: object) -> None:
    if request.first("signature") != signature(*facts):
        raise HubError(403, "SignatureDoesNotMatch")


@route("POST", f"{GIT}/objects/batch")
def batch(service: Service, request: Request, repo_id: str, kind: str = "models") -> Response:
    """Say where each LFS object must go; one that is there has no actions."""
    repo, _ = service.repo_to_write(request, kind, repo_id)
    body = request.json()
    if body.get("operation") != "upload" or body.get("hash_algo", "sha256") != "sha256":
        raise HubError(400, "This server's batch route takes sha256 uploads only")
    part, parts_known = service.lfs_part_size, "multipart" in body.get("transfers", ())
    answer: list[dict[str, object]] = []
    transfer = "basic"
    for item in body["objects"]:
        oid, size = str(item["oid"]), int(item["size"])
        row: dict[str, object] = {"oid": oid, "size": size}
        if oid not in service.store.lfs:
            verify = {"href": f"{service.endpoint}/{repo.page_path}.git/info/lfs/verify"}
            if part is not None and parts_known and size > part:
                transfer = "multipart"
                upload = _multipart(service, oid, size, part)
            else:
                upload = {"href": f"{service.cdn}/lfs/upload/{oid}?signature={signature('upload', oid)}"}
            row["actions"] = {"upload": upload, "verify": verify}
        answer.append(row)
    return json_response({"transfer": transfer, "objects": answer})


def _multipart(service: Service, oid: str, size: int, part: int) -> dict[str, object]:
    count = -(-size // part)
    header = {"chunk_size": str(part)}
    for number in range(1, count + 1):
        signed = signature("part", oid, number)
        header[str(number)] = f"{service.cdn}/lfs/part/{oid}/{number}?signature={signed}"
    signed = signature("complete", oid, count)
    return {"href": f"{service.endpoint}/lfs/complete/{oid}/{count}?signature={signed}", "header": header}


@route("PUT", f"/lfs/upload/{OID}")
def upload(service: Service, request: Request, oid: str) -> Response:
    """Take an LFS object in one piece."""
    _check_signature(request, "upload", oid)
    service.store.put_lfs(oid, request.body)
    return Response()


@route("PUT", f"/lfs/part/{OID}/(?P<number>[0-9]+)")
def upload_part(service: Service, request: Request, oid: str, number: str) -> Response:
    """Take one part of an LFS object; parts may come again."""
    _check_signature(request, "part", oid, int(number))
    with service.store.changing():
        service.store.parts[oid, int(number)] = request.body
    return Response(headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


@route("POST", f"/lfs/complete/{OID}/(?P<count>[0-9]+)")
def complete(service: Service, request: Request, oid: str, count: str) -> Response:
    """Put the parts together, each named by the ETag it was answered with."""
    _check_signature(request, "complete", oid, int(count))
    parts = service.store.parts
    numbers = [row["partNumber"] for row in request.json()["parts"]]
    if numbers != list(range(1, int(count) + 1)):
        raise HubError(400, "InvalidPartOrder")
    for row in request.json()["parts"]:
        content = parts.get((oid, row["partNumber"]))
        if content is None or row["etag"].strip('"') != hashlib.md5(content).hexdigest():
            raise HubError(400, "InvalidPart")
    with service.store.changing():
        service.store.put_lfs(oid, b"".join(parts.pop((oid, number)) for number in numbers))
    return json_response({})


@route("POST", f"{GIT}/verify")
def verify(service: Service, request: Request, repo_id: str, kind: str = "models") -> Response:
    """Confirm that an LFS object arrived with the size it should have."""
    service.repo_to_write(request, kind, repo_id)
    body = request.json()
    content = service.store.lfs.get(body["oid"])
    if content is None or len(content) != body["size"]:
        raise HubError(404, "The LFS object is not there")
    return json_response({})


@route("GET", RESOLVE)
def resolve(
    service: Service, request: Request, repo_id: str, revision: str, path: str, kind: str = "models"
) -> Response:
    """Answer for a file at a revision: LFS by a redirect to the CDN, others here or by the resolve cache."""
    repo = service.repo(request, kind, repo_id)
    service.check_gate(request, repo)
    commit = repo.commit_at(revision)
    blob = commit.files.get(path)
    if blob is None:
        missing = HubError(404, "Entry not found", code="EntryNotFound")
        missing.headers["X-Repo-Commit"] = commit.oid
        raise missing
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    if blob.lfs:
        signed = signature("cdn", blob.sha256)
        headers["Location"] = f"{service.cdn}/cdn/{repo.id}/{blob.sha256}/{quote(path)}?signature={signed}"
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        return Response(status=302, headers=headers)
    if service.resolve_cache:
        headers["Location"] = f"/api/resolve-cache/{kind}/{repo.id}/{commit.oid}/{quote(path)}"
        headers |= {"X-Linked-Etag": f'"{blob.oid}"', "X-Linked-Size": str(blob.size)}
        return Response(status=307, headers=headers)
    return send_blob(request, blob, headers | {"ETag": f'"{blob.oid}"'})


@route("GET", f"/api/resolve-cache/{KIND}/{REPO}/(?P<revision>[0-9a-f]{{40}})/(?P<path>.+)")
def resolve_cache(service: Service, request: Request, kind: str, repo_id: str, revision: str, path: str) -> Response:
    """Answer a regular file of a commit."""
    repo = service.repo(request, kind, repo_id)
    service.check_gate(request, repo)
    blob = repo.commit_at(revision).files.get(path)
    if blob is None or blob.lfs:
        raise HubError(404, "Entry not found", code="EntryNotFound")
    headers = {"X-Repo-Commit": revision, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
    return send_blob(request, blob, headers)


@route("GET", f"/cdn/{REPO}/{OID}/(?P<path>.+)")
def cdn(service: Service, request: Request, repo_id: str, oid: str, path: str) -> Response:
    """Answer an LFS object to whoever holds a signed URL."""
    _check_signature(request, "cdn", oid)
    content = service.store.lfs.get(oid)
    if content is None:
        raise HubError(404, "NoSuchKey")
    blob = Blob(content=content, lfs=True, sha256=oid, oid="", pointer_size=0)
    return send_blob(request, blob, {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})


def send_blob(request: Request, blob: Blob, headers: dict[str, str]) -> Response:
    """Answer a file, or the one range of it that was asked for."""
    span = parse_range(request.headers.get("range"), blob.size)
    headers = {"Content-Type": "application/octet-stream", **headers}
    if span is None:
        return Response(headers=headers, body=blob.content)
    if not span:
        return Response(status=416, headers=headers | {"Content-Range": f"bytes */{blob.size}"})
    headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{blob.size}"
    return Response(status=206, headers=headers, body=blob.content[span.start : span.stop])


def parse_range(header: str | None, size: int) -> range | None:
    """Read a Range header: None without one (or with several ranges, which may be ignored), empty if unsatisfiable."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        return range(max(0, size - int(last)), size)
    return range(int(first), min(int(last) + 1, size) if last else size)
