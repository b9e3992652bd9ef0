"""The Hub on loopback: a threaded HTTP server over the routes, with a log of requests and faults on demand."""

from __future__ import annotations

import contextlib
import fnmatch
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs

from tests.hub import cards, files, repositories, transfer
from tests.hub.faults import (
    Action,
    BareUnauthorized,
    Corrupt,
    Drop,
    FaultBook,
    IgnoreRange,
    LostAnswer,
    Page,
    RacingCommit,
    Redirect,
    Reset,
    Stall,
    Status,
    Truncate,
)
from tests.hub.state import Gated, HubError, Repo, Store, User
from tests.hub.wire import Request, Response, Service, dispatch, error_response, json_response

# Importing them is what registers their routes.
ROUTE_MODULES = (cards, files, repositories, transfer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One line of the log: a request, the status it was given (0: the answer was lost) and the faults that hit it."""

    request: Request
    status: int
    faults: tuple[Action, ...]

    @property
    def method(self) -> str:
        """The method."""
        return self.request.method

    @property
    def path(self) -> str:
        """The path, unquoted."""
        return self.request.path


class Hub:
    """A running server: add repositories and users, arrange faults, read what was asked."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.store: Store = service.store
        self.faults = FaultBook()
        self._requests: list[Seen] = []
        self._lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT must be."""
        return self.service.endpoint

    @property
    def cdn(self) -> str:
        """The other origin, where LFS contents come from: the same server under another name."""
        return self.service.cdn

    @property
    def requests(self) -> list[Seen]:
        """All requests answered so far, in order."""
        with self._lock:
            return list(self._requests)

    def seen(self, method: str | None = None, path: str = "*") -> list[Seen]:
        """The requests of a method whose path fits a pattern."""
        return [
            line for line in self.requests if method in (None, line.method) and fnmatch.fnmatchcase(line.path, path)
        ]

    def forget(self) -> None:
        """Empty the log."""
        with self._lock:
            self._requests.clear()

    def record(self, line: Seen) -> None:
        """Add a line to the log."""
        with self._lock:
            self._requests.append(line)

    def add_user(
        self, name: str, *, role: Literal["read", "write"] = "write", organizations: tuple[str, ...] = ()
    ) -> User:
        """Register a user; `.token` is theirs."""
        return self.store.add_user(name, role=role, organizations=organizations)

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | None = None,
        *,
        kind: str = "models",
        private: bool = False,
        gated: Gated = False,
        tags: tuple[str, ...] = (),
    ) -> Repo:
        """Put a repository there, with a commit of files and tags on it, without the wire."""
        with self.store.changing():
            repo = self.store.create_repo(
                repo_id, author=repo_id.split("/")[0], kind=kind, private=private, gated=gated
            )
            if files:
                self.store.put_files(repo, files)
            repo.tags.update(dict.fromkeys(tags, repo.head.oid))
        return repo

    def repo(self, repo_id: str, kind: str = "models") -> Repo:
        """The repository as it is now."""
        return self.store.repos[kind, repo_id]

    def race(self, path: str, action: RacingCommit) -> None:
        """Let somebody's commit land on the repository that a request is about."""
        asked = path.replace(".git/", "/") + "/"
        with self.store.changing():
            named = [repo for (_, name), repo in self.store.repos.items() if f"/{name}/" in asked]
        if len(named) != 1:
            raise ValueError(f"the fault {action} fits no single repository in {path}")
        self.store.put_files(named[0], action.files, title=action.title)


def instead_of(hub: Hub, request: Request, action: Action) -> Response | None:
    """The answer of a fault that leaves the work undone; None for the others."""
    if isinstance(action, Status):
        error = HubError(action.status, action.message, code=action.code)
        if action.retry_after is not None:
            error.headers["Retry-After"] = str(action.retry_after)
        if action.rate_limit_reset is not None:
            error.headers["RateLimit"] = f'"api";r=0;t={action.rate_limit_reset}'
        return error_response(error)
    if isinstance(action, BareUnauthorized):
        return json_response({"error": "Invalid username or password."}, 401)
    if isinstance(action, Page):
        return Response(headers={"Content-Type": "text/html; charset=utf-8"}, body=action.html.encode())
    if isinstance(action, Redirect):
        other = hub.cdn if request.origin != hub.cdn else hub.endpoint
        query = f"?{request.raw_query}" if request.raw_query else ""
        target = (action.origin or other) + request.raw_path + query
        return Response(status=action.status, headers={"Location": target})
    return None


def mangle(response: Response, action: Action) -> Response:
    """The answer with its body spoilt.

    Raises:
        ValueError: the body is too short for the fault, which would otherwise test nothing.
    """
    body = response.body
    if isinstance(action, Corrupt):
        spoilt = bytearray(body)
        if not -len(body) <= action.offset < len(body):
            raise ValueError(f"{action} can't apply to {len(body)} bytes")
        spoilt[action.offset] ^= 0xFF
        return replace(response, body=bytes(spoilt))
    if isinstance(action, Truncate):
        if action.keep >= len(body):
            raise ValueError(f"{action} can't apply to {len(body)} bytes")
        return replace(response, body=body[: action.keep])
    if isinstance(action, Drop | Reset | Stall) and action.after >= len(body):
        raise ValueError(f"{action} can't apply to {len(body)} bytes")
    return response


class Handler(BaseHTTPRequestHandler):
    """One connection; `server.hub` knows everything."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: the log is `hub.requests`."""

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _request(self) -> Request:
        raw_path, _, query = self.path.partition("?")
        return Request(
            method=self.command,
            host=self.headers.get("Host", ""),
            raw_path=raw_path,
            raw_query=query,
            query=parse_qs(query, keep_blank_values=True),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=self._read_body(),
        )

    def serve(self) -> None:
        """Answer one request, with whatever must go wrong with it."""
        hub = self.server.hub
        request = self._request()
        actions = hub.faults.due(request.method, request.path)
        try:
            response = self._answer(hub, request, actions)
        except Exception as error:
            # A fault in the test's own server must not look like a fault of the network.
            self.server.errors.append(error)
            response = error_response(HubError(501, f"the test server failed: {error!r}"))
        lost = any(isinstance(action, LostAnswer) for action in actions)
        hub.record(Seen(request=request, status=0 if lost else response.status, faults=actions))
        if lost:
            self.close_connection = True
            return
        way = next((action for action in actions if isinstance(action, Drop | Reset | Stall)), None)
        if request.method == "HEAD":
            response = replace(response, body=b"", length=len(response.body))
        self._send(hub, response, way)

    def _answer(self, hub: Hub, request: Request, actions: tuple[Action, ...]) -> Response:
        for action in actions:
            if (response := instead_of(hub, request, action)) is not None:
                return response
            if isinstance(action, RacingCommit):
                hub.race(request.path, action)
            if isinstance(action, IgnoreRange):
                headers = {name: value for name, value in request.headers.items() if name != "range"}
                request = replace(request, headers=headers)
        response = dispatch(hub.service, request)
        for action in actions:
            response = mangle(response, action)
        return response

    def _send(self, hub: Hub, response: Response, way: Drop | Reset | Stall | None) -> None:
        body = response.body
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if response.length is None else response.length))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[: way.after] if way else body)
            if isinstance(way, Stall):
                hub.closing.wait(way.seconds)
                self.wfile.write(body[way.after :])
        if isinstance(way, Drop | Reset):
            self.close_connection = True
        if isinstance(way, Reset):
            # Closing with a linger time of zero sends RST; the descriptor must go now, past rfile's and wfile's hold.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            socket.socket(fileno=self.connection.detach()).close()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve


class HubServer(ThreadingHTTPServer):
    """The listening socket; threads die with the process and errors of the server itself are kept."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    hub: Hub

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.errors: list[BaseException] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Forget clients that went away in the middle (a killed client is ordinary here); keep anything else."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            self.errors.append(error)


@contextlib.contextmanager
def running_hub(
    *, page_size: int | None = None, lfs_part_size: int | None = None, resolve_cache: bool = True
) -> Iterator[Hub]:
    """Run a Hub on loopback until the block ends.

    Raises:
        ExceptionGroup: the server itself failed while it answered (a fault that could not apply, a bad route).
    """
    server = HubServer()
    port = server.server_address[1]
    service = Service(
        store=Store(),
        endpoint=f"http://127.0.0.1:{port}",
        cdn=f"http://localhost:{port}",
        page_size=page_size,
        lfs_part_size=lfs_part_size,
        resolve_cache=resolve_cache,
    )
    server.hub = Hub(service)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.hub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
    if server.errors:
        raise BaseExceptionGroup("the server of the test failed", server.errors)
