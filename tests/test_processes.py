"""Who left a file behind, and whether it is still at work."""

from __future__ import annotations

import subprocess
import sys

import pytest

from adapterhub.processes import FORGOTTEN_AFTER, is_abandoned, is_running, may_be_alive, new_owner, owner_in

CHILD = "from adapterhub.processes import new_owner; print(new_owner(), flush=True); input()"


def test_an_owner_is_found_in_the_name_of_its_file() -> None:
    owner = new_owner()
    assert owner_in(f"abcdef.{owner}.partial") == owner
    assert owner_in("abcdef.partial") is None
    assert owner != new_owner()


def test_a_process_is_alive_until_it_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stdin=subprocess.PIPE) as child:
        assert child.stdout is not None
        owner = child.stdout.readline().decode().strip()
        assert may_be_alive(owner)
        child.kill()
        child.wait()
    assert not may_be_alive(owner)
    assert may_be_alive(new_owner())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the start of a process is read from /proc")
def test_a_number_that_was_given_out_anew_is_no_owner() -> None:
    host, pid, start, nonce = new_owner().split("-")
    assert not may_be_alive(f"{host}-{pid}-{int(start) + 1}-{nonce}")


def test_a_process_of_another_machine_may_always_be_alive() -> None:
    _, pid, start, nonce = new_owner().split("-")
    assert may_be_alive(f"00000000-{pid}-{start}-{nonce}")


def test_a_word_that_names_no_process_is_an_error() -> None:
    with pytest.raises(ValueError, match="names no process"):
        may_be_alive("somebody")


def test_what_a_process_left_is_abandoned_when_it_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stdin=subprocess.PIPE) as child:
        assert child.stdout is not None
        owner = child.stdout.readline().decode().strip()
        assert not is_abandoned(owner, age=10 * FORGOTTEN_AFTER) or sys.platform == "win32"
        assert is_running(child.pid)
        child.kill()
        child.wait()
    assert is_abandoned(owner, age=0)
    if sys.platform != "win32":
        assert not is_running(child.pid)


def test_what_another_machine_left_is_abandoned_after_a_week() -> None:
    _, pid, start, nonce = new_owner().split("-")
    other = f"00000000-{pid}-{start}-{nonce}"
    assert not is_abandoned(other, age=FORGOTTEN_AFTER - 1)
    assert is_abandoned(other, age=FORGOTTEN_AFTER + 1)
