"""Bytes from file to file without passing through this process, where the system can."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import BinaryIO

PIECE_BYTES = 64 << 20
_PLAIN_BYTES = 1 << 20
# What the kernel answers where it cannot do this between these two files; everything else is a real fault.
_CANNOT = {
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EBADF,
    errno.EPERM,
    errno.ENOTSOCK,
    errno.ETXTBSY,
}


def copy_bytes(source: BinaryIO, target: BinaryIO, start: int, count: int, advance: Callable[[int], None]) -> int:
    """Append `count` bytes from `start` of an unbuffered file to another at its position; return how many there were.

    By copy_file_range, which shares blocks instead where the file system can, else sendfile, else read and write.
    """
    done = 0
    for way in (_by_copy_file_range, _by_sendfile, _by_hand):
        try:
            while done < count:
                moved = way(source, target, start + done, min(count - done, PIECE_BYTES))
                if not moved:
                    break
                done += moved
                advance(moved)
        except OSError as error:
            if way is _by_hand or error.errno not in _CANNOT:
                raise
        # Some file systems (procfs, overlays) answer 0 where there is more: the next way decides.
        if done == count:
            break
    return done


def write_all(target: BinaryIO, data: bytes | memoryview) -> None:
    """Write everything to an unbuffered file, which may take less at once."""
    view = memoryview(data).cast("B")
    while view:
        view = view[target.write(view) :]


def _by_copy_file_range(source: BinaryIO, target: BinaryIO, start: int, count: int) -> int:
    copy = getattr(os, "copy_file_range", None)  # Linux
    if copy is None:
        raise OSError(errno.ENOSYS, "no copy_file_range here")
    return int(copy(source.fileno(), target.fileno(), count, start))


def _by_sendfile(source: BinaryIO, target: BinaryIO, start: int, count: int) -> int:
    send = getattr(os, "sendfile", None)  # to a file on Linux, to a socket alone elsewhere
    if send is None:
        raise OSError(errno.ENOSYS, "no sendfile here")
    return int(send(target.fileno(), source.fileno(), start, count))


def _by_hand(source: BinaryIO, target: BinaryIO, start: int, count: int) -> int:
    source.seek(start)
    data = source.read(min(count, _PLAIN_BYTES))
    write_all(target, data)
    return len(data)
