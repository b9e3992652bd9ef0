"""Typed getters over plain data that carry the path of every field into the error, and report all faults at once."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias, TypeVar, cast

from adapterhub.errors import InvalidFileError
from adapterhub.spec.migrations import migrated

T = TypeVar("T")
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Frozen: TypeAlias = "bool | int | float | str | tuple[Frozen, ...] | Mapping[str, Frozen] | None"

# Beyond these, a person is helped no further, and a stranger's file could have a reader compare and list for minutes.
MAX_FAULTS = 100
MAX_TEXT = 4096
_MAX_SUGGESTED = 100

_VERSION = re.compile(r"(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})")


UPGRADE = "upgrade with `pip install -U adapterhub`"


class Missing:
    """Marks a getter's key as required."""


REQUIRED = Missing()


def freeze(value: object) -> Frozen:
    """Return plain JSON data as an immutable, hash-free copy: lists become tuples, objects read-only mappings."""
    if isinstance(value, Mapping):
        return MappingProxyType({str(key): freeze(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} is not JSON data")


def thaw(value: object) -> Json:
    """Return frozen data as plain lists and dicts, ready for a JSON or YAML writer."""
    if isinstance(value, Mapping):
        return {str(key): thaw(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [thaw(item) for item in value]
    return cast(Json, value)


def kind_of(value: object) -> str:
    """Name a value's type as a person who writes YAML would."""
    if value is None:
        return "nothing"
    names = {bool: "true/false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    if isinstance(value, Mapping):
        return "a mapping"
    return names.get(type(value), type(value).__name__)


def suggest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word nearest to `word`, if one is near; nobody mistypes a very long one."""
    if len(word) > _MAX_SUGGESTED:
        return None
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return near[0] if near else None


def repeated(keys: Iterable[T]) -> list[T]:
    """Return the keys that come more than once, each once, in the order of their second coming."""
    seen: set[T] = set()
    found: dict[T, None] = {}
    for key in keys:
        if key in seen:
            found[key] = None
        seen.add(key)
    return list(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing wrong with one field."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


@dataclass(slots=True)
class Faults:
    """What was found wrong while reading one document; of very many faults the first MAX_FAULTS."""

    where: str
    authored: bool = True
    found: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unlisted: int = 0

    @property
    def full(self) -> bool:
        """True when further faults are only counted."""
        return len(self.found) >= MAX_FAULTS

    def add(self, path: str, message: str) -> None:
        """Record one fault."""
        if self.full:
            self.unlisted += 1
        else:
            self.found.append(Fault(path=path, message=message))

    def raise_if_any(self, *, hint: str | None = None) -> None:
        """Raise one InvalidFileError that lists every fault, in the order of the document."""
        if not self.found:
            return
        if len(self.found) == 1:
            fault = self.found[0]
            raise InvalidFileError(fault.message, where=_join(self.where, fault.path), hint=hint)
        details = [str(fault) for fault in self.found]
        if self.unlisted:
            details.append(f"… and {self.unlisted} more")
        raise InvalidFileError(
            f"{len(self.found) + self.unlisted} faults", where=self.where, hint=hint, details=tuple(details)
        )


def _join(where: str, path: str) -> str:
    return f"{where}: {path}" if path else where


class Reader:
    """One mapping being read. A getter that finds a fault records it and returns a harmless placeholder."""

    __slots__ = ("_data", "_faults", "_seen", "path")

    def __init__(self, data: object, faults: Faults, path: str = "") -> None:
        self._faults = faults
        self._seen: set[str] = set()
        self.path = path
        if isinstance(data, Mapping):
            self._data: Mapping[str, object] = data
        else:
            self._data = {}
            faults.add(path, f"expected a mapping, found {kind_of(data)}")

    def __contains__(self, key: str) -> bool:
        return key in self._data

    @property
    def clean(self) -> bool:
        """True while nothing was found wrong in the whole document; cross-field rules ask first."""
        return not self._faults.found

    def at(self, key: str | int) -> str:
        """Return the path of a field below this mapping."""
        if isinstance(key, int):
            return f"{self.path}[{key}]"
        return f"{self.path}.{key}" if self.path else key

    def fault(self, key: str | int | None, message: str) -> None:
        """Record a fault at a field of this mapping, or at the mapping itself."""
        self._faults.add(self.path if key is None else self.at(key), message)

    def note(self, text: str) -> None:
        """Record something a person may want to know that is no fault."""
        self._faults.notes.append(text)

    def raw(self, key: str, default: object = REQUIRED) -> object:
        """Return a field as it stands, recording a fault when it is required and absent."""
        self._seen.add(key)
        if key in self._data:
            return self._data[key]
        if isinstance(default, Missing):
            self.fault(key, "is required")
            return default
        return default

    def _typed(self, key: str, default: object, accept: tuple[type, ...], expected: str) -> object:
        value = self.raw(key, default)
        if isinstance(value, Missing) or (value is default and not isinstance(default, Missing)):
            return default
        if not isinstance(value, accept) or (isinstance(value, bool) and bool not in accept):
            self.fault(key, f"expected {expected}, found {_shown(value)}")
            return REQUIRED
        return value

    def string(
        self,
        key: str,
        default: str | Missing = REQUIRED,
        *,
        pattern: str | None = None,
        choices: Iterable[str] | None = None,
        max_length: int = MAX_TEXT,
        shape: str = "",
    ) -> str:
        """Read text; `pattern` must match whole, `choices` lists what is allowed."""
        value = self._typed(key, default, (str,), "text")
        if not isinstance(value, str):
            return ""
        self._check_text(self.at(key), value, pattern=pattern, choices=choices, max_length=max_length, shape=shape)
        return value

    def optional_string(
        self, key: str, *, pattern: str | None = None, max_length: int = MAX_TEXT, shape: str = ""
    ) -> str | None:
        """Read text that may be absent or null."""
        if self._data.get(key) is None:
            self._seen.add(key)
            return None
        return self.string(key, pattern=pattern, max_length=max_length, shape=shape)

    def _check_text(
        self, path: str, value: str, *, pattern: str | None, choices: Iterable[str] | None, max_length: int, shape: str
    ) -> None:
        if len(value) > max_length:
            self._faults.add(path, f"is longer than {max_length} characters")
        elif any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) <= 0x9F for c in value):
            self._faults.add(path, "holds control characters")
        elif pattern is not None and not re.fullmatch(pattern, value):
            self._faults.add(path, f"{value!r} is not {shape or f'of the form {pattern}'}")
        elif choices is not None and value not in (known := list(choices)):
            near = suggest(value, known)
            tail = f"; did you mean {near!r}?" if near else f"; known: {', '.join(known)}"
            self._faults.add(path, f"{value!r} is not known{tail}")

    def integer(
        self, key: str, default: int | Missing = REQUIRED, *, minimum: int = 0, maximum: int = 2**63 - 1
    ) -> int:
        """Read a whole number within bounds."""
        value = self._typed(key, default, (int,), "a whole number")
        if not isinstance(value, int):
            return 0
        if not minimum <= value <= maximum:
            bound = f"at least {minimum}" if value < minimum else f"at most {maximum}"
            self.fault(key, f"must be {bound}, is {value}")
        return value

    def optional_integer(self, key: str, *, minimum: int = 0, maximum: int = 2**63 - 1) -> int | None:
        """Read a whole number that may be absent or null."""
        if self._data.get(key) is None:
            self._seen.add(key)
            return None
        return self.integer(key, minimum=minimum, maximum=maximum)

    def number(
        self, key: str, default: float | Missing = REQUIRED, *, minimum: float = -math.inf, maximum: float = math.inf
    ) -> float:
        """Read a finite number within bounds."""
        value = self._typed(key, default, (int, float), "a number")
        if not isinstance(value, int | float):
            return 0.0
        if not finite(value):
            self.fault(key, f"must be finite, is {value}")
        elif not minimum <= value <= maximum:
            bound = f"at least {minimum:g}" if value < minimum else f"at most {maximum:g}"
            self.fault(key, f"must be {bound}, is {value:g}")
        return float(value) if finite(value) else 0.0

    def boolean(self, key: str, default: bool | Missing = REQUIRED) -> bool:
        """Read true or false."""
        value = self._typed(key, default, (bool,), "true or false")
        return value if isinstance(value, bool) else False

    def strings(
        self, key: str, default: tuple[str, ...] | Missing = REQUIRED, *, pattern: str | None = None, shape: str = ""
    ) -> tuple[str, ...]:
        """Read a list of texts."""
        value = self._typed(key, default, (list, tuple), "a list of texts")
        if not isinstance(value, list | tuple):
            return ()
        found: list[str] = []
        for index, item in enumerate(value):
            if not isinstance(item, str):
                self.fault(f"{key}[{index}]", f"expected text, found {_shown(item)}")
            else:
                self._check_text(
                    self.at(f"{key}[{index}]"), item, pattern=pattern, choices=None, max_length=MAX_TEXT, shape=shape
                )
                found.append(item)
        return tuple(found)

    def parse(self, key: str, parser: Callable[[str], T], default: T | Missing = REQUIRED) -> T:
        """Read text and hand it to `parser`, whose ValueError becomes the fault."""
        value = self._typed(key, default, (str,), "text")
        if not isinstance(value, str):
            return cast(T, value)
        if len(value) > MAX_TEXT:
            self.fault(key, f"is longer than {MAX_TEXT} characters")
            return cast(T, None)
        try:
            return parser(value)
        except ValueError as error:
            self.fault(key, str(error))
            return cast(T, None)

    def optional_parse(self, key: str, parser: Callable[[str], T]) -> T | None:
        """Read text that may be absent or null, and hand it to `parser`."""
        if self._data.get(key) is None:
            self._seen.add(key)
            return None
        return self.parse(key, parser)

    def mapping(self, key: str, *, optional: bool = True) -> Reader | None:
        """Open a mapping below this one; None when it is optional and absent or null."""
        value = self.raw(key, None if optional else REQUIRED)
        if (value is None and optional) or isinstance(value, Missing):
            return None
        return Reader(value, self._faults, self.at(key))

    def below(self, key: str, data: object) -> Reader:
        """Open data found under a key as a mapping of its own."""
        self._seen.add(key)
        return Reader(data, self._faults, self.at(key))

    def mappings(self, key: str) -> Iterator[Reader]:
        """Open each mapping of a list; an absent list is empty."""
        value = self._typed(key, (), (list, tuple), "a list")
        for index, item in enumerate(value if isinstance(value, list | tuple) else ()):
            yield Reader(item, self._faults, self.at(f"{key}[{index}]"))

    def items(self, key: str) -> Iterator[tuple[str, object]]:
        """Walk over the entries of a mapping whose keys are free; an absent mapping is empty."""
        value = self.raw(key, {})
        if isinstance(value, Mapping):
            yield from value.items()
        elif value is not None:
            self.fault(key, f"expected a mapping, found {kind_of(value)}")

    def free(self, key: str) -> Mapping[str, Frozen]:
        """Read a mapping of any JSON data, frozen; an absent or null one is empty."""
        value = self.raw(key, None)
        if value is None:
            return MappingProxyType({})
        if not isinstance(value, Mapping):
            self.fault(key, f"expected a mapping, found {kind_of(value)}")
            return MappingProxyType({})
        try:
            return cast("Mapping[str, Frozen]", freeze(value))
        except TypeError as error:
            self.fault(key, str(error))
            return MappingProxyType({})

    def names(self) -> tuple[str, ...]:
        """Return the keys as they stand in the document."""
        return tuple(str(key) for key in self._data)

    def finish(self, *, known: Iterable[str] = ()) -> None:
        """Refuse the keys that nobody asked for, naming the nearest known one."""
        known_keys = {*self._seen, *known}
        for key in self._data:
            if key in known_keys:
                continue
            near = None if self._faults.full else suggest(str(key), known_keys)
            self.fault(str(key), "unknown key" + (f"; did you mean {near!r}?" if near else ""))

    def authored_version(self, key: str, *, supported: str) -> None:
        """Read `MAJOR.MINOR` in a file that a person writes; a newer one is a fault, since its keys mean something."""
        if self.format_version(key, supported=supported):
            self.fault(key, f"is newer than this adapterhub knows ({supported}): {UPGRADE}")

    def format_version(self, key: str, *, supported: str) -> bool:
        """Read `MAJOR.MINOR`; return True when the document is of a newer MINOR, whose unknown keys are ignored.

        An older document is read as what its migrations make of it, so this comes before any other field. A newer MAJOR
        is a fault that says to upgrade.
        """
        text = self.raw(key)
        if isinstance(text, float):
            self.fault(key, f'expected text, found a number: quote it ("{text}")')
            return False
        if not isinstance(text, str):
            if not isinstance(text, Missing):
                self.fault(key, f"expected text such as '{supported}', found {_shown(text)}")
            return False
        match = _VERSION.fullmatch(text)
        if not match:
            self.fault(key, f"{text!r} is not a format version such as '{supported}'")
            return False
        self._data = migrated(self._data, key)
        match = _VERSION.fullmatch(str(self._data[key])) or match
        major, minor = int(match[1]), int(match[2])
        our_major, our_minor = (int(part) for part in supported.split("."))
        if major > our_major:
            self.fault(key, f"{text} is newer than this adapterhub reads ({supported}): {UPGRADE}")
        elif major < our_major:
            self.fault(key, f"{text} is older than this adapterhub reads ({supported}), and no migration is known")
        return (major, minor) > (our_major, our_minor) and major == our_major

    def finish_versioned(self, newer: bool, supported: str) -> None:
        """Close a top-level document: unknown keys are noted when its MINOR is newer than ours, else faults."""
        if not newer:
            self.finish()
            return
        unknown = [str(key) for key in self._data if key not in self._seen]
        if unknown:
            self.note(f"ignored keys of a newer format than {supported}: {', '.join(sorted(unknown))}")


def finite(value: float) -> bool:
    """Say whether a number is finite as a float, too; a whole number of any size may come."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _shown(value: object) -> str:
    """Describe a wrong value, with itself when it is short."""
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return f"{kind_of(value)} ({text})" if value is not None and len(text) <= 40 else kind_of(value)
