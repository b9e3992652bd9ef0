"""`adapt login` and `adapt whoami`, in processes of their own against the Hub on loopback."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.faults import BareUnauthorized, Page, Status
from tests.hub.fixtures import hub_environment
from tests.hub.server import Hub

ADAPT = [sys.executable, "-m", "adapterhub.cli.main"]


class Person:
    """Somebody with a home of their own at a Hub."""

    def __init__(self, hub: Hub, root: Path) -> None:
        self.hub, self.home = hub, root / "hf"
        self.environment = hub_environment(hub, self.home)
        self.environment |= {"ADAPTERHUB_HOME": str(root / "home"), "HF_HUB_OFFLINE": "0"}

    def __call__(self, *words: str, typed: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*ADAPT, *words],
            env=self.environment | environment,
            input=typed,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in done.stderr
        return done

    @property
    def token(self) -> str | None:
        path = self.home / "token"
        return path.read_text() if path.exists() else None


@pytest.fixture
def person(hub: Hub, tmp_path: Path) -> Person:
    hub.add_user("alice", organizations=("acme", "zed"))
    return Person(hub, tmp_path)


def test_a_token_from_standard_input_is_checked_and_kept(person: Person) -> None:
    done = person("login", "--token-stdin", typed="hf_alice\n")
    assert done.returncode == 0, done.stderr
    assert person.token == "hf_alice"
    assert "as alice (write)" in done.stderr
    assert "hf_alice" not in done.stdout + done.stderr
    assert (person.home / "token").stat().st_mode & 0o077 == 0
    who = person("whoami")
    assert who.returncode == 0, who.stderr
    facts = dict(line.split(None, 1) for line in who.stdout.splitlines())
    assert (facts["name"], facts["organisations"], facts["role"]) == ("alice", "acme, zed", "write")
    assert facts["hub"] == person.hub.endpoint
    data = json.loads(person("whoami", "--json").stdout)
    assert data["organizations"] == ["acme", "zed"] and data["token_from"] is None
    # huggingface_hub's own tool is logged in as well.
    code = "import huggingface_hub; print(huggingface_hub.whoami()['name'])"
    hf = subprocess.run(
        [sys.executable, "-c", code], env=person.environment, capture_output=True, text=True, timeout=60
    )
    assert hf.stdout == "alice\n"


def test_a_token_of_the_environment_comes_first_and_is_named(person: Person) -> None:
    person.hub.add_user("bob", role="read")
    assert person("login", "--token-stdin", typed="hf_alice").returncode == 0
    data = json.loads(person("whoami", "--json", HF_TOKEN="hf_bob_read").stdout)
    assert (data["name"], data["role"], data["token_from"]) == ("bob", "read", "HF_TOKEN")
    again = person("login", "--token-stdin", typed="hf_alice", HF_TOKEN="hf_bob_read")
    assert again.returncode == 0 and "HF_TOKEN is set" in again.stderr


def test_a_bad_token_is_refused_and_not_kept(person: Person) -> None:
    assert person("login", "--token-stdin", typed="hf_alice").returncode == 0
    done = person("login", "--token-stdin", typed="hf_nobody\n")
    assert done.returncode == 6
    assert f"{person.hub.endpoint}/settings/tokens" in done.stderr
    assert "hf_nobody" not in done.stdout + done.stderr
    assert person.token == "hf_alice"


def test_an_organisation_s_token_is_refused(person: Person) -> None:
    done = person("login", "--token-stdin", typed="api_org_x")
    assert done.returncode == 6 and person.token is None


def test_the_token_is_never_an_argument(person: Person) -> None:
    assert person("login", "hf_alice").returncode == 2
    assert person("login", "--token", "hf_alice").returncode == 2
    assert person.token is None


def test_without_a_terminal_nothing_is_asked(person: Person) -> None:
    done = person("login")
    assert done.returncode == 2 and "--token-stdin" in done.stderr


def test_a_terminal_is_asked_and_shows_nothing(person: Person) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*ADAPT, "login"], env=person.environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    received, typed = b"", False
    while select.select([master], [], [], 60)[0]:
        try:
            chunk = os.read(master, 65536)
        except OSError:
            break
        received += chunk
        if b"not shown" in received and not typed:
            os.write(master, b"hf_alice\n")
            typed = True
    os.close(master)
    assert process.wait(timeout=60) == 0, received
    assert typed and b"hf_alice" not in received and b"as alice" in received
    assert person.token == "hf_alice"


def test_nobody_is_logged_in(person: Person) -> None:
    done = person("whoami")
    assert done.returncode == 6 and "adapt login" in done.stderr


def test_a_stored_token_that_was_revoked(person: Person) -> None:
    assert person("login", "--token-stdin", typed="hf_alice").returncode == 0
    del person.hub.store.users["hf_alice"]
    assert person("whoami").returncode == 6
    person.hub.faults.add(BareUnauthorized(), path="/api/whoami-v2")
    assert person("whoami").returncode == 6


def test_no_answer_is_the_network_s_fault(person: Person) -> None:
    person.hub.faults.add(Page(), path="/api/whoami-v2")
    assert person("login", "--token-stdin", typed="hf_alice").returncode == 5
    assert person.token is None
    person.hub.faults.add(Status(status=503), path="/api/whoami-v2")
    assert person("whoami", HF_TOKEN="hf_alice").returncode == 5


def test_offline(person: Person) -> None:
    assert person("whoami", HF_HUB_OFFLINE="1", HF_TOKEN="hf_alice").returncode == 5
    assert person("login", "--token-stdin", typed="hf_alice", HF_HUB_OFFLINE="1").returncode == 5
    assert person.hub.requests == []


def test_a_home_that_cannot_be_written(person: Person) -> None:
    person.home.parent.mkdir(exist_ok=True)
    person.home.write_text("a file where the folder should be")
    done = person("login", "--token-stdin", typed="hf_alice")
    assert done.returncode == 9, done.stderr
