"""Fixtures for tests that talk to the Hub on loopback with the real client.

In the folder's conftest.py: `from tests.hub.fixtures import hub, hub_client`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.hub.server import Hub, running_hub

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOOPBACK = ("127.0.0.1", "localhost")


def hub_environment(hub: Hub, home: Path, token: str | None = None) -> dict[str, str]:
    """The variables with which a child process talks to this Hub and nothing else."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING")) and "proxy" not in name.lower() and name != "TRANSFORMERS_OFFLINE"
    }
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": ",".join(LOOPBACK),
    }
    return environment | ({"HF_TOKEN": token} if token else {})


@contextlib.contextmanager
def real_client(hub: Hub, home: Path) -> Iterator[list[float]]:
    """Point huggingface_hub of this process at the Hub: online, without xet, its waits noted and not slept.

    The client reads its switches when it is imported, which another test may have caused: they are set where they
    are kept. Yields the list of seconds that the client would have waited.
    """
    from huggingface_hub import close_session, constants, file_download
    from huggingface_hub.utils import _http

    waits: list[float] = []
    clock = types.SimpleNamespace(sleep=waits.append)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if "proxy" in name.lower()]:
            patch.delenv(name)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        # The URL of a download is made from the template; with ENDPOINT alone changed it would name the public Hub.
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_URL_HOSTS", constants.HF_URL_HOSTS | {"127.0.0.1"})
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        patch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("HF_ENDPOINT", hub.endpoint)
        patch.setenv("HF_HOME", str(home))
        patch.setattr(_http, "time", clock)
        patch.setattr(file_download, "time", clock)
        patch.setattr(socket, "getaddrinfo", _loopback_only(socket.getaddrinfo))
        close_session()
        try:
            yield waits
        finally:
            close_session()


def _loopback_only(real: Callable[..., Any]) -> Callable[..., Any]:
    def getaddrinfo(host: Any, *args: Any, **keywords: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in LOOPBACK:
            raise AssertionError(f"a test tried to reach {name}")
        return real(host, *args, **keywords)

    return getaddrinfo


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty Hub on loopback."""
    with running_hub() as running:
        yield running


@pytest.fixture
def hub_client(hub: Hub, tmp_path: Path) -> Iterator[HubClient]:
    """The real client, pointed at the test's Hub."""
    with real_client(hub, tmp_path / "hf-home") as waits:
        yield HubClient(hub, waits, tmp_path / "hf-home" / "hub")


class HubClient:
    """Makes HfApi objects for users of the Hub; `waits` are the seconds that retries asked for."""

    def __init__(self, hub: Hub, waits: list[float], cache: Path) -> None:
        self.hub, self.waits, self.cache = hub, waits, cache

    def api(self, token: str | None = None) -> HfApi:
        """The client with a token, or anonymous."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.hub.endpoint, token=token or False)

    def download(self, repo_id: str, path: str, *, token: str | None = None, **options: Any) -> bytes:
        """Fetch one file through the client's cache and read it."""
        found = self.api(token).hf_hub_download(repo_id, path, cache_dir=self.cache, **options)
        return Path(found).read_bytes()

    def snapshot(self, repo_id: str, *, token: str | None = None, **options: Any) -> Mapping[str, bytes]:
        """Fetch a repository through the client's cache and read all of it."""
        root = Path(self.api(token).snapshot_download(repo_id, cache_dir=self.cache, max_workers=2, **options))
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
