"""One way to talk to the Hugging Face Hub: huggingface_hub's session, token and endpoint, and every failure as ours.

HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and the proxies' variables mean what they mean to huggingface_hub, which is
imported by the first request. A busy server (429, 5xx) and a lost connection are asked again a few times; how long it
may wait in all is bounded.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import ModuleType
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from adapterhub import __version__
from adapterhub.errors import (
    AdapterHubError,
    AuthorizationError,
    IntegrityError,
    InvalidFileError,
    NetworkError,
    UnsatisfiedError,
)
from adapterhub.spec.digest import Digest

CONNECT_SECONDS = 10.0
"""How long a connection may take."""
STALL_SECONDS = 30.0
"""How long a server may send nothing, unless HF_HUB_DOWNLOAD_TIMEOUT says otherwise."""
TRIES = 3
"""How often a request is made at most."""
MAX_WAIT_SECONDS = 60.0
"""How long a request may wait between its tries, all together."""
MAX_ANSWER_BYTES = 64 << 20
_BUSY = frozenset((408, 425, 429, 500, 502, 503, 504))
_MAX_PAGES = 100
_LOGIN = "check the name's spelling; where it is private, name a token that may see it: adapt login"
_AGAIN = "try again later; what was downloaded is kept"
_CONNECTION = "check the connection, the proxy's variables and HF_ENDPOINT, then run the same command again"

sleep: Callable[[float], None] = time.sleep


class Conflict(Exception):
    """Somebody else was faster: the branch has moved (412), or the name or tag is taken (409)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class ConnectionLost(NetworkError):
    """The connection failed, or stalled, on the way: what did not come may come by another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refs:
    """Where a repository's branches and tags point (commits); head: that of main."""

    head: str
    branches: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a commit: size in bytes, git's blob id; sha256 is known of LFS files alone."""

    path: str
    size: int
    sha256: Digest | None
    blob_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository: its name as the Hub spells it, the head of main, and when that was committed (UTC)."""

    name: str
    head: str
    modified: datetime | None = None


class HubClient:
    """The Hub that HF_ENDPOINT names, with the token that huggingface_hub finds."""

    def __init__(self, *, offline: bool = False) -> None:
        self._offline = offline
        self._api: Any = None

    @property
    def offline(self) -> bool:
        """Whether no connection may be opened."""
        return self._offline or bool(_hub("constants").is_offline_mode())

    @property
    def endpoint(self) -> str:
        """The Hub's address, without a slash at its end."""
        return str(_hub("constants").ENDPOINT)

    @property
    def api(self) -> Any:
        """huggingface_hub's HfApi; what it raises becomes ours inside `guarded`."""
        if self._api is None:
            from huggingface_hub import HfApi

            self._api = HfApi(endpoint=self.endpoint, library_name="adapterhub", library_version=__version__)
        return self._api

    @property
    def has_token(self) -> bool:
        """Whether requests say who asks."""
        return "authorization" in self._headers()

    @contextmanager
    def guarded(self, doing: str, where: str) -> Iterator[None]:
        """Turn every failure of the network, the Hub and its client inside the block into one of ours.

        doing: what is tried, as in "cannot {doing}". where: the package's name, or the endpoint.

        Raises:
            UnsatisfiedError: no such repository, revision or file, or the Hub takes no such request.
            AuthorizationError: it is gated, or the token may not. NetworkError: no answer, or none that makes sense.
            Conflict: 409 and 412, for the caller to act on.
        """
        if self.offline:
            raise _offline(doing, where)
        errors, http = _hub("errors"), _http()
        _limit_waiting(self._session())
        try:
            yield
        except AdapterHubError:
            raise
        except errors.OfflineModeIsEnabled as error:
            raise _offline(doing, where) from error
        except errors.HfHubHTTPError as error:
            raise self._refusal(error, doing, where) from error
        except errors.LocalTokenNotFoundError as error:
            raise AuthorizationError(f"cannot {doing}: no token", where=where, hint="adapt login") from error
        except json.JSONDecodeError as error:
            raise _page(doing, where) from error
        except http.TimeoutException as error:
            raise ConnectionLost(f"cannot {doing}: no answer in time", where=where, hint=_AGAIN) from error
        except (http.HTTPError, http.StreamError, http.InvalidURL) as error:
            raise ConnectionLost(f"cannot {doing}: {_cause(error)}", where=where, hint=_CONNECTION) from error
        except (errors.LocalEntryNotFoundError, ConnectionError) as error:
            raise NetworkError(f"cannot {doing}: {error}", where=where, hint=_CONNECTION) from error

    def refs(self, name: str) -> Refs:
        """Return a repository's branches and tags, by one request.

        Raises:
            UnsatisfiedError: no such repository, or it is private, or it has no commit at all.
        """
        doing = "list its versions"
        data = self._json(f"{self.endpoint}/api/models/{quote(name)}/refs", doing, name)
        try:
            branches = {row["name"]: _commit(row["targetCommit"]) for row in data["branches"]}
            tags = {row["name"]: _commit(row["targetCommit"]) for row in data["tags"]}
        except (KeyError, TypeError, ValueError) as error:
            raise _odd(doing, name) from error
        if not branches:
            raise UnsatisfiedError("the repository is empty", where=name)
        return Refs(head=branches.get("main") or next(iter(branches.values())), branches=branches, tags=tags)

    def repository(self, name: str) -> Repository:
        """Return what the Hub calls a repository: it takes a name in any case, and those of moved repositories.

        Raises:
            UnsatisfiedError: no such repository, or it is private.
        """
        doing = "look the package up"
        data = self._json(f"{self.endpoint}/api/models/{quote(name)}", doing, name)
        try:
            spelled, head, modified = data["id"], _commit(data["sha"]), data.get("lastModified")
            time = datetime.fromisoformat(modified).astimezone(UTC).replace(microsecond=0) if modified else None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _odd(doing, name) from error
        if not isinstance(spelled, str):
            raise _odd(doing, name)
        return Repository(name=spelled, head=head, modified=time)

    def commit_of(self, name: str, revision: str) -> str:
        """Return the commit that a branch, a tag, the beginning of a commit, or a commit names.

        Raises:
            UnsatisfiedError: no such repository or revision.
        """
        doing = f"look up its revision {revision}"
        url = f"{self.endpoint}/api/models/{quote(name)}/revision/{quote(revision, safe='')}"
        data = self._json(url, doing, name)
        try:
            return _commit(data["sha"])
        except (KeyError, TypeError, ValueError) as error:
            raise _odd(doing, name) from error

    def tree(self, name: str, commit: str) -> tuple[RemoteFile, ...]:
        """Return all files of a commit, by path."""
        doing = "list its files"
        url: str | None = f"{self.endpoint}/api/models/{quote(name)}/tree/{quote(commit, safe='')}?recursive=true"
        found = []
        for _ in range(_MAX_PAGES):
            assert url is not None
            rows, url = self._page(url, doing, name)
            try:
                found += [_remote_file(row) for row in rows if row["type"] == "file"]
            except (KeyError, TypeError, ValueError) as error:
                raise _odd(doing, name) from error
            if url is None:
                return tuple(sorted(found, key=lambda file: file.path))
        raise InvalidFileError("has too many files for a package", where=name)

    def models(self, parameters: Sequence[tuple[str, str]], *, doing: str) -> Iterator[Mapping[str, Any]]:
        """Walk over the rows that the Hub lists for a search, asking for a page when it is reached."""
        url: str | None = f"{self.endpoint}/api/models?{urlencode(parameters)}"
        for _ in range(_MAX_PAGES):
            assert url is not None
            rows, url = self._page(url, doing, self.endpoint)
            if not all(isinstance(row, dict) for row in rows):
                raise _odd(doing, self.endpoint)
            yield from rows
            if url is None:
                return

    def read(self, name: str, commit: str, path: str, limit: int) -> bytes | None:
        """Return a small file of a commit; None if it is not there.

        Raises:
            InvalidFileError: it has more than `limit` bytes.
        """
        doing = f"read {path}"
        try:
            answer, data = self._body(self.file_url(name, commit, path), doing, name, limit)
        except _Absent:
            return None
        if len(data) > limit:
            raise InvalidFileError(f"has more than {limit:,} bytes", where=f"{name}: {path}")
        length = answer.headers.get("content-length")
        if length is not None and length.isdigit() and len(data) < int(length):
            raise IntegrityError(f"only {len(data)} of {length} bytes came", where=f"{name}: {path}", hint=_AGAIN)
        return data

    def file_url(self, name: str, commit: str, path: str) -> str:
        """The address of a file of a commit."""
        return f"{self.endpoint}/{quote(name)}/resolve/{quote(commit, safe='')}/{quote(path)}"

    @contextmanager
    def stream(
        self,
        url: str,
        *,
        doing: str,
        where: str,
        headers: Mapping[str, str] | None = None,
        wait: Callable[[float], None] | None = None,
    ) -> Iterator[Any]:
        """Open a GET whose body is read in the block (an httpx Response); a busy server is asked again before that.

        An answer of 416 is given out as 200 and 206 are; a web page in place of a file is not. The token goes to the
        Hub and to nobody whom it redirects to.

        Raises:
            as `guarded`; a file that is not there (EntryNotFound) is an UnsatisfiedError too.
        """
        with self.guarded(doing, where):
            answer = self._open(url, headers or {}, wait or sleep)
            try:
                self._check(answer, doing, where)
                if "text/html" in answer.headers.get("content-type", "").lower():
                    raise _page(doing, where)
                yield answer
            finally:
                answer.close()

    def _open(self, url: str, headers: Mapping[str, str], wait: Callable[[float], None]) -> Any:
        """Send a request until an answer comes that is not merely "busy", and leave its body unread."""
        http, waited, last = _http(), 0.0, TRIES - 1
        for attempt in range(TRIES):
            session = self._session()
            request = session.build_request(
                "GET",
                url,
                headers={**self._headers(), "accept-encoding": "identity", **headers},
                timeout=http.Timeout(_patience(), connect=CONNECT_SECONDS, pool=None),
            )
            pause = 2.0**attempt
            try:
                answer = session.send(request, stream=True)
            except (http.TimeoutException, http.NetworkError, http.RemoteProtocolError):
                if attempt == last or waited + pause > MAX_WAIT_SECONDS:
                    raise
            else:
                if answer.status_code not in _BUSY or attempt == last:
                    return answer
                pause = _asked_to_wait(answer.headers) or pause
                if waited + pause > MAX_WAIT_SECONDS:
                    return answer
                answer.close()
            wait(pause)
            waited += pause
        raise AssertionError("the last try returns or raises")

    def _check(self, answer: Any, doing: str, where: str) -> None:
        """Raise what a status means, with the server's words."""
        if answer.status_code in (200, 206, 416):
            return
        if answer.headers.get("x-error-code") == "EntryNotFound":
            raise _Absent(f"cannot {doing}: there is no such file", where=where)
        _hub("utils").hf_raise_for_status(answer)
        raise NetworkError(f"cannot {doing}: the server answered {answer.status_code}", where=where, hint=_CONNECTION)

    def _json(self, url: str, doing: str, where: str) -> Any:
        """Return an answer's JSON."""
        _, data = self._body(url, doing, where, MAX_ANSWER_BYTES)
        if len(data) > MAX_ANSWER_BYTES:
            raise _odd(doing, where)
        with self.guarded(doing, where):
            return json.loads(data)

    def _body(self, url: str, doing: str, where: str, limit: int) -> tuple[Any, bytes]:
        """Return an answer and its body, at most a chunk past `limit`; one that broke off is asked for again."""
        for attempt in range(TRIES):
            begun = False
            try:
                with self.stream(url, doing=doing, where=where) as answer:
                    begun = True
                    return answer, _read_at_most(answer, limit)
            except ConnectionLost:
                if not begun or attempt == TRIES - 1:
                    raise
        raise AssertionError("the last try returns or raises")

    def _page(self, url: str, doing: str, where: str) -> tuple[Any, str | None]:
        """Return one page of a list and the address of the next, which has to be this Hub's."""
        answer, body = self._body(url, doing, where, MAX_ANSWER_BYTES)
        with self.guarded(doing, where):
            data = json.loads(body)
        following = answer.links.get("next", {}).get("url")
        if not isinstance(data, list) or (following and urlsplit(following)[:2] != urlsplit(url)[:2]):
            raise _odd(doing, where)
        return data, following

    def _headers(self) -> dict[str, str]:
        return dict(_hub("utils").build_hf_headers(library_name="adapterhub", library_version=__version__))

    def _session(self) -> Any:
        return _hub("utils").get_session()

    def _refusal(self, error: Any, doing: str, where: str) -> Exception:
        """Return what the Hub's refusal means."""
        errors, answer = _hub("errors"), error.response
        status, said = int(answer.status_code), _said(error)
        told = f": {said}" if said else ""
        name = getattr(error, "repo_id", None) or where
        reads = answer.request.method in ("GET", "HEAD") and not answer.request.url.path.startswith("/api/whoami")
        if isinstance(error, errors.GatedRepoError):
            return AuthorizationError(
                "is gated: its authors let in those who ask", where=str(name), hint=self._gate_hint(str(name))
            )
        if isinstance(error, errors.DisabledRepoError):
            return AuthorizationError("the Hub has disabled access to this repository", where=where)
        if isinstance(error, errors.RevisionNotFoundError):
            return UnsatisfiedError(f"cannot {doing}: no such revision", where=where, hint=f"see {self._url(where)}")
        if isinstance(error, errors.EntryNotFoundError):
            return UnsatisfiedError(f"cannot {doing}: there is no such file", where=where)
        if status == 401 and ("invalid credentials" in said.lower() or not reads):
            return AuthorizationError(
                f"cannot {doing}: the token is missing or refused", where=where, hint="adapt login"
            )
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
            return UnsatisfiedError("there is no such package, or it is private", where=where, hint=_LOGIN)
        if status == 403:
            hint = "use a token that may do this: adapt login"
            return AuthorizationError(f"cannot {doing}: the Hub forbids it{told}", where=where, hint=hint)
        if status in (409, 412) and not reads:
            return Conflict(status, said)
        if status in _BUSY or status >= 500:
            pause = _asked_to_wait(answer.headers)
            hint = f"try again in {pause:.0f} seconds" if pause else _AGAIN
            return NetworkError(f"cannot {doing}: the Hub answered {status}{told}", where=where, hint=hint)
        return UnsatisfiedError(f"cannot {doing}: the Hub answered {status}{told}", where=where)

    def _gate_hint(self, name: str) -> str:
        after = "then run the same command again" if self.has_token else "then: adapt login"
        return f"ask for access at {self._url(name)}, {after}"

    def _url(self, name: str) -> str:
        return f"{self.endpoint}/{name}"


def hang_up(answer: Any) -> None:
    """Wake a thread that waits for an answer's bytes by closing the connection under it."""
    with contextlib.suppress(Exception):
        answer.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)


class _Absent(UnsatisfiedError):
    """The commit has no such file."""


def _hub(part: str) -> Any:
    """Import a part of huggingface_hub when it is first asked for."""
    return importlib.import_module(f"huggingface_hub.{part}")


def _http() -> ModuleType:
    """Return the HTTP library that huggingface_hub raises errors of: httpx2, in its first major version httpx."""
    base = next(item for item in _hub("errors").HfHubHTTPError.__mro__[1:] if item.__name__ == "HTTPError")
    return importlib.import_module(base.__module__.partition(".")[0])


def _limit_waiting(session: Any) -> None:
    """Give the client's own requests, most of which would wait forever, a limit on how long they wait."""
    hooks = session.event_hooks
    if _set_limits not in hooks["request"]:
        session.event_hooks = {**hooks, "request": [*hooks["request"], _set_limits]}


def _patience() -> float:
    """Return for how many seconds a server may send nothing: HF_HUB_DOWNLOAD_TIMEOUT where it is set, as for `hf`."""
    try:
        return max(1.0, float(os.environ["HF_HUB_DOWNLOAD_TIMEOUT"]))
    except (KeyError, ValueError):
        return STALL_SECONDS


def _set_limits(request: Any) -> None:
    limits = dict(request.extensions.get("timeout") or {})
    for key, seconds in (("connect", CONNECT_SECONDS), ("read", 2 * STALL_SECONDS), ("write", 2 * STALL_SECONDS)):
        if limits.get(key) is None:
            limits[key] = seconds
    request.extensions["timeout"] = limits


def _read_at_most(answer: Any, limit: int) -> bytes:
    """Read a body, and stop within a chunk past `limit` bytes."""
    pieces, size = [], 0
    for piece in answer.iter_bytes():
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            break
    return b"".join(pieces)


def _asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a busy server names, in either of its two ways."""
    text = headers.get("retry-after", "").strip()
    if text.isdigit():
        return float(text[:9])
    match = re.search(r"\br=0\s*;\s*t=([0-9]{1,9})", headers.get("ratelimit", ""))
    return float(match[1]) + 1 if match else None


def _remote_file(row: Any) -> RemoteFile:
    lfs, size = row.get("lfs"), row["size"] if row.get("lfs") is None else row["lfs"]["size"]
    if not isinstance(row["path"], str) or type(size) is not int or size < 0:
        raise ValueError(row)
    return RemoteFile(
        path=row["path"],
        size=size,
        sha256=None if lfs is None else Digest.parse(f"sha256:{lfs.get('oid') or lfs['sha256']}"),
        blob_id=str(row["oid"]),
    )


def _commit(text: Any) -> str:
    if not isinstance(text, str) or not re.fullmatch("[0-9a-f]{40}", text):
        raise ValueError(f"{text!r} is no commit")
    return text


def _said(error: Any) -> str:
    """Return what the server said, one line."""
    text = error.server_message or error.response.headers.get("x-error-message") or ""
    return " ".join(str(text).split())[:300]


def _cause(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _offline(doing: str, where: str) -> NetworkError:
    return NetworkError(
        f"cannot {doing}: offline", where=where, hint="unset HF_HUB_OFFLINE, or run the command without --offline"
    )


def _page(doing: str, where: str) -> NetworkError:
    return NetworkError(
        f"cannot {doing}: the Hub's address answered with a web page, as a proxy or a sign-in page does",
        where=where,
        hint="sign in to the network with a browser, or check the proxy's variables and HF_ENDPOINT",
    )


def _odd(doing: str, where: str) -> NetworkError:
    return NetworkError(f"cannot {doing}: the answer makes no sense", where=where, hint="check HF_ENDPOINT")
