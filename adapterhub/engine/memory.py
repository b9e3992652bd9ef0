"""Memory of a training: telling that it ran out, and keeping what was freed."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from adapterhub.errors import AdapterHubError, BuildError

# What torch's CPU allocator says in its RuntimeError, by version and platform.
_CPU_WORDS = ("can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on whatever device."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_WORDS)


@contextmanager
def memory_errors(hint: str) -> Iterator[None]:
    """Turn running out of memory into a BuildError that says what to lower."""
    try:
        yield
    except AdapterHubError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise BuildError("memory ran out in training", hint=hint) from error


def free_memory() -> None:
    """Give back what a failed computation held."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step instead of handing it back to the kernel after each one.

    Every step allocates and frees the same gigabyte; fetching it anew costs page faults, 10 to 15 % of a step's time on
    CPU. No effect where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        return
