"""Requests and answers as values, the table of routes, and what every route needs: caller, repository, pages."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlencode

from tests.hub.state import HubError, Repo, Store, User, may_download, may_read, may_write

KIND = r"(?P<kind>models|datasets|spaces)"
REPO = r"(?P<repo_id>[^/]+/[^/]+)"
API = f"/api/{KIND}/{REPO}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as it came: header names in lower case, `raw_path` still quoted."""

    method: str
    host: str
    raw_path: str
    raw_query: str = ""
    query: Mapping[str, Sequence[str]]
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def path(self) -> str:
        """The path unquoted, for people and for fault patterns."""
        return unquote(self.raw_path)

    @property
    def origin(self) -> str:
        """Scheme, host and port as the client wrote them."""
        return f"http://{self.host}"

    def first(self, name: str, default: str = "") -> str:
        """The first value of a query key."""
        values = self.query.get(name)
        return values[0] if values else default

    def flag(self, name: str) -> bool:
        """A boolean of the query."""
        return self.first(name) in ("true", "1", "True")

    def json(self) -> dict[str, Any]:
        """The body as a JSON object."""
        try:
            value = json.loads(self.body)
        except ValueError as error:
            raise HubError(400, f"Invalid JSON: {error}") from error
        if not isinstance(value, dict):
            raise HubError(400, "Expected a JSON object")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer; `length` is the Content-Length of a HEAD, whose body is empty."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with JSON."""
    body = json.dumps(value).encode()
    return Response(status=status, headers={"Content-Type": "application/json", **(headers or {})}, body=body)


def error_response(error: HubError) -> Response:
    """Answer with an error in the Hub's form."""
    # A header is one line of Latin-1; the body has the message as it is.
    plain = " ".join(error.message.encode("ascii", "replace").decode().split())
    headers = {"X-Error-Message": plain, **error.headers}
    if error.code:
        headers["X-Error-Code"] = error.code
    return json_response({"error": error.message, **error.extra}, error.status, headers)


@dataclass(slots=True, kw_only=True)
class Service:
    """What the routes act on: the store and the switches of this server.

    `page_size` cuts every list (None: the Hub's own sizes); LFS objects larger than `lfs_part_size` bytes go up in
    parts; with `resolve_cache` regular files are answered by a redirect, as the Hub does.
    """

    store: Store
    endpoint: str
    cdn: str
    page_size: int | None = None
    lfs_part_size: int | None = None
    resolve_cache: bool = True

    def caller(self, request: Request) -> User | None:
        """Who asks; None for an anonymous caller.

        Raises:
            HubError: 401 for a token that nobody has.
        """
        header = request.headers.get("authorization")
        if header is None:
            return None
        user = self.store.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def repo(self, request: Request, kind: str, repo_id: str) -> Repo:
        """Find a repository that the caller may see, whatever the case of its name; others look missing.

        Raises:
            HubError: 401 (anonymous) or 404 RepoNotFound, 403 when disabled, 307 for an old name.
        """
        user = self.caller(request)
        repo = self.store.find(kind, repo_id)
        new_name = self.store.moved.get((kind, repo_id))
        if repo is None and new_name and request.method in ("GET", "HEAD"):
            moved = HubError(307, f"Moved to {new_name}")
            old, new = (quote(name, safe="/") for name in (repo_id, new_name))
            moved.headers["Location"] = request.raw_path.replace(old, new, 1)
            raise moved
        if repo is None or not may_read(repo, user):
            if user is None:
                raise HubError(401, "Invalid username or password.", code="RepoNotFound")
            raise HubError(404, "Repository not found", code="RepoNotFound")
        if repo.disabled:
            raise HubError(403, "Access to this resource is disabled.")
        return repo

    def repo_to_write(self, request: Request, kind: str, repo_id: str) -> tuple[Repo, User]:
        """Find a repository that the caller may change.

        Raises:
            HubError: as `repo`, and 401 or 403 for callers who may only look.
        """
        repo = self.repo(request, kind, repo_id)
        user = self.caller(request)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if not may_write(repo, user):
            raise HubError(403, f"Forbidden: you don't have write access to {repo_id}")
        return repo, user

    def check_gate(self, request: Request, repo: Repo) -> None:
        """Let only granted users at the contents of a gated repository.

        Raises:
            HubError: 401 or 403 GatedRepo.
        """
        user = self.caller(request)
        if not may_download(repo, user):
            what = f"Access to model {repo.id} is restricted"
            if user is None:
                raise HubError(
                    401, f"{what}. You must have access to it and be authenticated to access it.", code="GatedRepo"
                )
            page = f"{self.endpoint}/{repo.id}"
            raise HubError(
                403, f"{what} and you are not in the authorized list. Visit {page} to ask for access.", code="GatedRepo"
            )

    def page(self, request: Request, rows: Sequence[object], own_size: int) -> Response:
        """Answer with a page of a list and the link to the next."""
        size = min(own_size, self.page_size or own_size)
        cursor = request.first("cursor")
        try:
            start = int(base64.urlsafe_b64decode(cursor)) if cursor else 0
        except ValueError as error:
            raise HubError(400, "Invalid cursor") from error
        headers = {}
        if start + size < len(rows):
            pairs = [(key, value) for key, values in request.query.items() if key != "cursor" for value in values]
            pairs.append(("cursor", base64.urlsafe_b64encode(str(start + size).encode()).decode()))
            headers["Link"] = f'<{request.origin}{request.raw_path}?{urlencode(pairs)}>; rel="next"'
        return json_response(list(rows[start : start + size]), headers=headers)


Handler = Callable[..., Response]
ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []


def route(method: str, pattern: str) -> Callable[[Handler], Handler]:
    """Register `handler(service, request, **groups)` for a method and a pattern on the raw path."""

    def register(handler: Handler) -> Handler:
        ROUTES.append((method, re.compile(pattern), handler))
        return handler

    return register


def dispatch(service: Service, request: Request) -> Response:
    """Find the route and run it; HEAD falls back on GET without its body."""
    for wanted in (request.method, "GET") if request.method == "HEAD" else (request.method,):
        for method, pattern, handler in ROUTES:
            match = pattern.fullmatch(request.raw_path) if method == wanted else None
            if match:
                groups = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                try:
                    return handler(service, request, **groups)
                except HubError as error:
                    return error_response(error)
    return error_response(HubError(404, f"Sorry, we can't find the page you are looking for: {request.path}"))
