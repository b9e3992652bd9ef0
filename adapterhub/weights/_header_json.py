"""A strict reader of a safetensors header's JSON, one member at a time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import NoReturn, cast

from adapterhub.errors import IntegrityError

MAX_ENTRY_CHARACTERS = 65_536
"""Longest JSON text of one tensor's entry: keeps what the parser holds at a time small, whatever the header says."""

# serde_json stops at 128 levels; the header's own object and the entry are two of them.
MAX_DEPTH_IN_ENTRY = 126
_FIRST_WINDOW = 256
_DAMAGED_HINT = "the file is damaged or was not written by safetensors: fetch it again, or ask its author"


def quoted(name: str) -> str:
    """Return a name from a file fit for a message: escaped, and cut where it is absurdly long."""
    return repr(name) if len(name) <= 200 else f"{name[:200]!r}…"


def malformed(file: str, message: str, place: str | None = None, hint: str = _DAMAGED_HINT) -> IntegrityError:
    return IntegrityError(message, where=f"{file}: {place}" if place else file, hint=hint)


class Cursor:
    """A place in the header's JSON text, moved forward member by member.

    json.loads on the whole text would build every value of a 100 MB header before the first check; this holds one
    member at a time, and knows where it is when something is wrong.
    """

    __slots__ = ("file", "position", "text")

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.position = 0

    def fail(self, message: str) -> NoReturn:
        raise malformed(self.file, message, f"header character {self.position}")

    def peek(self) -> str:
        """Skip white space and return the next character, '' at the end."""
        position = self.position
        character = self.text[position : position + 1]
        if character in _SPACES:
            match = _SPACE_RUN.match(self.text, position)
            self.position = position = match.end() if match else position
            character = self.text[position : position + 1]
        return character

    def members(self) -> Iterator[str]:
        """Yield the keys of the object here; the consumer reads each value before it asks for the next key."""
        self._take("{")
        if self.peek() == "}":
            self.position += 1
            return
        while True:
            key = self.string()
            self._take(":")
            yield key
            if self.peek() == "}":
                self.position += 1
                return
            self._take(",")

    def string(self) -> str:
        """Read the string here."""
        if self.peek() != '"':
            self.fail("a string was expected")
        try:
            value, self.position = _scan(self.text, self.position)
            if not value.isascii():
                value.encode("utf-8")
        except json.JSONDecodeError as error:
            self.position = error.pos
            self.fail(f"header is not JSON: {error.msg}")
        except UnicodeEncodeError:
            self.fail("a string holds half a surrogate pair")
        return cast(str, value)

    def small_object(self) -> dict[str, object]:
        """Read the object here, of at most MAX_ENTRY_CHARACTERS."""
        if self.peek() != "{":
            self.fail("an object was expected")
        for window in (_FIRST_WINDOW, MAX_ENTRY_CHARACTERS):
            piece = self.text[self.position : self.position + window]
            whole = self.position + window >= len(self.text)
            try:
                value, length = _scan(piece, 0)
                if "\\u" in piece:
                    json.dumps(value, ensure_ascii=False).encode("utf-8")
            except (StopIteration, RecursionError, ValueError) as error:
                if window == _FIRST_WINDOW and not whole:
                    continue
                self._fail_value(error, whole)
            self.position += length
            return cast(dict[str, object], value)
        raise AssertionError("the last window always returns or fails")

    def finish(self) -> None:
        """Check that nothing but white space is left."""
        if self.peek():
            self.fail("header goes on after its JSON object")

    def _take(self, character: str) -> None:
        if not self.text.startswith(character, self.position) and self.peek() != character:
            self.fail(f"header is not JSON: {character!r} was expected")
        self.position += 1

    def _fail_value(self, error: Exception, whole: bool) -> NoReturn:
        if isinstance(error, RecursionError):
            self.fail("JSON is nested too deeply")
        if isinstance(error, UnicodeEncodeError):
            self.fail("a string holds half a surrogate pair")
        if isinstance(error, json.JSONDecodeError):
            reason = error.msg
            self.position += error.pos
        elif isinstance(error, StopIteration):
            reason = "a value was expected"
        else:
            reason = str(error)
        longer = "" if whole else f", or an entry is longer than {MAX_ENTRY_CHARACTERS:,} characters"
        self.fail(f"header is not JSON{longer}: {reason}")


def depth(value: object) -> int:
    """Return how many objects and arrays are nested in each other, without recursion."""
    deepest = 0
    pending = [(value, 1)]
    while pending:
        item, level = pending.pop()
        children = item.values() if isinstance(item, dict) else item if isinstance(item, list) else None
        if children is not None:
            deepest = max(deepest, level)
            pending.extend((child, level + 1) for child in children)
    return deepest


def _integer(text: str) -> int | float:
    if text == "-0":
        return -0.0  # as serde_json reads it: no whole number
    return int(text) if len(text) < 300 else _real(text)


def _real(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("number out of range")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result


_SPACES = frozenset(" \t\n\r")
_SPACE_RUN = re.compile(r"[ \t\n\r]*")
# The C scanner under json.loads: reads one value at an index and says where it ends (StopIteration: none there).
_scan = json.JSONDecoder(
    object_pairs_hook=unique, parse_int=_integer, parse_float=_real, parse_constant=_constant
).scan_once  # type: ignore[attr-defined]
