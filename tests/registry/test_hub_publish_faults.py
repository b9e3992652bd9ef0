"""Publishing that breaks off, for real: answers lost, others faster, processes killed; the next call ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from adapterhub.errors import (
    NetworkError,
    UnsatisfiedError,
)
from adapterhub.registry import _hub_client, _hub_publish
from adapterhub.registry.hub import HubRegistry
from tests.factory import tiny_lora
from tests.hub.faults import LostAnswer, RacingCommit, Stall, Status
from tests.hub.fixtures import hub_environment
from tests.hub.server import Hub
from tests.hub.state import User
from tests.registry.publishing import COMMIT, NAME, TAG, Publish, commits, index, repo


def test_a_lost_answer_to_the_commit_is_found_at_the_head(hub: Hub, publish: Publish, built: Path) -> None:
    hub.faults.add(LostAnswer(), method="POST", path=COMMIT)
    assert publish(built).created
    assert hub.faults.unused() == []
    assert len(commits(hub)) == 1
    assert repo(hub).tags == {"v1.2.0": repo(hub).head.oid}


def test_a_lost_answer_to_the_tag_is_found_among_the_refs(hub: Hub, publish: Publish, built: Path) -> None:
    hub.faults.add(LostAnswer(), method="POST", path=TAG)
    assert publish(built).created
    assert hub.faults.unused() == []
    assert len(hub.seen("POST", TAG)) == 1


@pytest.mark.parametrize(("path", "left"), [(COMMIT, 0), (TAG, 1)])
def test_what_broke_off_is_ended_by_a_second_call(
    hub: Hub, publish: Publish, built: Path, path: str, left: int
) -> None:
    hub.faults.add(Status(status=503), method="POST", path=path)
    with pytest.raises(NetworkError) as caught:
        publish(built)
    assert "same command again" in (caught.value.hint or "")
    assert len(commits(hub)) == left
    assert repo(hub).tags == {}
    assert publish(built).created
    assert len(commits(hub)) == 1
    assert repo(hub).tags == {"v1.2.0": repo(hub).head.oid}


def test_a_racing_commit_is_built_upon(hub: Hub, publish: Publish, built: Path) -> None:
    hub.faults.add(RacingCommit(), method="POST", path=COMMIT)
    publish(built)
    assert hub.faults.unused() == []
    assert [line.status for line in hub.seen("POST", COMMIT)] == [412, 200]
    assert "racing.txt" in repo(hub).head.files
    assert commits(hub)[0] == "racing commit"


def test_the_last_try_counts(hub: Hub, publish: Publish, built: Path) -> None:
    for number in range(5):
        change = {"racing.txt": str(number).encode()}
        hub.faults.add(RacingCommit(files=change), method="POST", path=COMMIT, skip=number)
    assert publish(built).created
    assert len(hub.seen("POST", COMMIT)) == 6
    assert hub.faults.unused() == []


def test_others_that_are_always_faster_end_it(hub: Hub, publish: Publish, built: Path) -> None:
    files = [{"racing.txt": str(number).encode()} for number in range(20)]
    for number, change in enumerate(files):
        hub.faults.add(RacingCommit(files=change), method="POST", path=COMMIT, skip=number)
    with pytest.raises(NetworkError, match="keep changing"):
        publish(built)
    assert len(hub.seen("POST", COMMIT)) == 6
    assert repo(hub).tags == {}
    hub.faults.clear()
    assert publish(built).created


def test_an_unfinished_version_under_later_commits_gets_its_tag(hub: Hub, publish: Publish, built: Path) -> None:
    hub.faults.add(Status(status=503), method="POST", path=TAG)
    with pytest.raises(NetworkError):
        publish(built)
    ours = repo(hub).head.oid
    hub.store.put_files(repo(hub), {"adapter_config.json": b"{}", "more.txt": b"more"})
    publish(built)
    assert repo(hub).tags == {"v1.2.0": ours}
    assert commits(hub)[-1] == "Upload files"


def test_an_unfinished_version_that_no_commit_holds_is_committed_again(hub: Hub, publish: Publish, built: Path) -> None:
    hub.faults.add(Status(status=503), method="POST", path=TAG)
    with pytest.raises(NetworkError):
        publish(built)
    row = index(hub).rows[0]
    hub.store.put_files(repo(hub), {"adapter_config.json": b"{}"})
    hub.store.squash(repo(hub), "main", "squashed", "alice")
    publish(built)
    assert repo(hub).tags == {"v1.2.0": repo(hub).head.oid}
    assert repo(hub).head.files["adapter_config.json"].content == (built / "adapter_config.json").read_bytes()
    assert index(hub).rows == (row,)


def test_an_unfinished_version_of_other_bytes_is_not_replaced(
    hub: Hub, publish: Publish, built: Path, base: Path, tmp_path: Path
) -> None:
    hub.faults.add(Status(status=503), method="POST", path=TAG)
    with pytest.raises(NetworkError):
        publish(built)
    other = tiny_lora(tmp_path / "other", base, name="legal", version="1.2.0", seed=1)
    with pytest.raises(UnsatisfiedError, match="never changes") as caught:
        publish(other)
    assert "no tag yet" in (caught.value.hint or "")
    assert len(commits(hub)) == 1


CHILD = """
    import sys
    from pathlib import Path
    from adapterhub.package import open_package
    from adapterhub.progress import SILENT
    from adapterhub.registry.hub import HubRegistry
    from adapterhub.spec.refs import PackageName

    done = HubRegistry().publish(open_package(Path(sys.argv[1])), PackageName.parse("acme/Legal-LoRA"), progress=SILENT)
"""


@pytest.mark.parametrize(
    ("path", "commits_left", "tags_left"),
    [("*/repos/create", 0, 0), ("*/objects/batch", 0, 0), (COMMIT, 1, 0), (TAG, 1, 1)],
)
def test_a_killed_process_is_ended_by_the_next_call(
    hub: Hub, alice: User, publish: Publish, built: Path, tmp_path: Path, path: str, commits_left: int, tags_left: int
) -> None:
    """The Hub does what the request asks and is slow to say so; the process is killed while it waits to hear."""
    hub.faults.add(Stall(seconds=60), method="POST", path=path)
    environment = hub_environment(hub, tmp_path / "hf", alice.token) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(CHILD), str(built)], env=environment) as child:
        deadline = time.monotonic() + 60
        while not hub.seen("POST", path) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert (len(commits(hub)), len(repo(hub).tags)) == (commits_left, tags_left)
    if not tags_left:  # a row without its tag is no version
        with pytest.raises(UnsatisfiedError):
            HubRegistry().versions(NAME)
    assert publish(built).created is not bool(tags_left)
    assert len(commits(hub)) == 1
    assert repo(hub).tags == {"v1.2.0": repo(hub).head.oid}


def test_processes_that_publish_versions_of_one_package_at_once_all_come_through(
    hub: Hub, alice: User, base: Path, tmp_path: Path
) -> None:
    environment = hub_environment(hub, tmp_path / "hf", alice.token) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    versions = ["1.0.0", "1.1.0", "2.0.0"]
    folders = [tiny_lora(tmp_path / version, base, version=version, seed=len(version)) for version in versions]
    words = [sys.executable, "-c", textwrap.dedent(CHILD)]
    children = [subprocess.Popen([*words, str(folder)], env=environment) for folder in folders]
    assert [child.wait(timeout=60) for child in children] == [0, 0, 0]
    assert [str(row.version) for row in index(hub).rows] == versions
    for version, folder in zip(versions, folders, strict=True):
        held = repo(hub).commits[repo(hub).tags[f"v{version}"]].files
        assert held["adapter_manifest.json"].content == (folder / "adapter_manifest.json").read_bytes()


def test_a_tag_that_the_hub_does_not_list_yet_is_waited_for(
    hub: Hub, publish: Publish, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    hidden: dict[str, str] = {}

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            repo(hub).tags.update(hidden)

    # A Hub whose list of refs lags behind: the tag is made, and taken out of sight until some time has passed.
    create = _hub_publish._Publication._tag

    def tag(self: Any, commit: str) -> None:
        create(self, commit)
        hidden.update(repo(hub).tags)
        repo(hub).tags.clear()

    monkeypatch.setattr(_hub_client, "sleep", sleep)
    monkeypatch.setattr(_hub_publish._Publication, "_tag", tag)
    assert publish(built).created
    assert waits == [0.5, 1.0, 2.0]
    hidden.clear()
    repo(hub).tags.clear()
    with pytest.raises(NetworkError, match="does not list it") as caught:
        publish(built)
    assert sum(waits[3:]) >= 60
    assert "same command again" in (caught.value.hint or "")
