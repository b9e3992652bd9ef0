"""The only file that knows YAML and JSON syntax: bytes in, plain data or values out, with limits on size and depth."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from adapterhub.errors import InvalidFileError, UnsatisfiedError
from adapterhub.files import local_io, write_atomic
from adapterhub.spec._decode import repeated, suggest
from adapterhub.spec.digest import canonical_json

if TYPE_CHECKING:
    from adapterhub.spec.lockfile import Lockfile
    from adapterhub.spec.manifest import Manifest
    from adapterhub.spec.project import Project
    from adapterhub.spec.provenance import Provenance
    from adapterhub.spec.recipe import Recipe
    from adapterhub.spec.recipe_lock import RecipeLock

# The types of the documents are imported where one is read: a command that reads a lockfile needs no recipe.

MAX_AUTHORED_BYTES = 1 << 20
MAX_JSON_BYTES = 64 << 20
# Manifests, configs and provenance come from strangers, and reading JSON takes up to a hundred times its size.
MAX_DOCUMENT_BYTES = 8 << 20
MAX_DEPTH = 64
# ruamel.yaml reads some 15,000 values a second: a person's file ends far below this.
MAX_YAML_VALUES = 25_000


def read_bytes(path: Path, *, limit: int) -> bytes:
    """Read a whole file of at most `limit` bytes.

    Raises:
        UnsatisfiedError: there is no such file. InvalidFileError: it is larger, or no regular file. LocalIOError.
    """
    if not path.exists():
        raise UnsatisfiedError("no such file", where=str(path), hint=_nearby(path))
    if not path.is_file():
        raise InvalidFileError("is not a regular file", where=str(path))
    with local_io(path, "read the file"), path.open("rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise InvalidFileError(f"is larger than {limit} bytes", where=str(path))
    return data


def _nearby(path: Path) -> str | None:
    """Suggest the file beside `path` whose name is nearest."""
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder} either"
    near = suggest(path.name, (item.name for item in folder.iterdir() if item.is_file()))
    return f"did you mean {folder / near}?" if near else "check the path"


def parse_json(data: bytes, *, where: str, halves: bool = False) -> object:
    """Read JSON strictly: UTF-8, no half surrogate pairs, no duplicate keys, no NaN, at most MAX_DEPTH levels.

    halves: let half surrogate pairs pass, which vocabularies of byte-level tokenizers hold.

    Raises:
        InvalidFileError: it is not that; the message names line and column where it can.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"is not UTF-8 (byte {error.start})", where=where) from error
    except json.JSONDecodeError as error:
        raise InvalidFileError(f"{error.msg} (line {error.lineno}, column {error.colno})", where=where) from error
    except RecursionError as error:
        raise InvalidFileError("is nested too deeply", where=where) from error
    except ValueError as error:
        raise InvalidFileError(str(error), where=where) from error
    _check_values(value, where, halves=halves)
    return value


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"the key {repeated(key for key, _ in pairs)[0]!r} comes twice")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _check_values(value: object, where: str, *, halves: bool = False) -> None:
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[object] = []
        for item in level:
            if isinstance(item, dict):
                deeper.extend(item.values())
                for key in item if not halves else ():
                    _check_text(key, where)
            elif isinstance(item, list):
                deeper.extend(item)
            elif isinstance(item, str):
                if not halves:
                    _check_text(item, where)
            elif isinstance(item, float) and not math.isfinite(item):
                raise InvalidFileError("holds a number that is too large", where=where)
        if not deeper:
            return
        level = deeper
    raise InvalidFileError(f"is nested more than {MAX_DEPTH} levels deep", where=where)


def _check_text(text: str, where: str) -> None:
    """Refuse what an escape can say and UTF-8 cannot: it could never be written again."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidFileError("holds half a surrogate pair, which is no character", where=where) from error


def read_json(path: Path, *, limit: int = MAX_JSON_BYTES, halves: bool = False) -> object:
    """Read a JSON file; see parse_json."""
    return parse_json(read_bytes(path, limit=limit), where=str(path), halves=halves)


def parse_yaml(data: bytes, *, where: str) -> object:
    """Read YAML 1.2 core data: no anchors, no aliases, no tags, no duplicate keys, one document.

    ruamel.yaml knows the syntax; scalars are resolved here by the core schema (YAML 1.2.2, section 10.3.2), since its
    own resolver also reads dates, `1_000` and `<<`.

    Raises:
        InvalidFileError: it is not that; the message names the line.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    yaml: Any = YAML(typ="safe", pure=True)
    try:
        return _YamlBuilder(yaml.parse(data.decode("utf-8")), where).document()
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"is not UTF-8 (byte {error.start})", where=where) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}: line {mark.line + 1}" if mark else where
        raise InvalidFileError(str(error.problem or error.context or "is not YAML"), where=place) from error
    except (YAMLError, ValueError, OverflowError) as error:  # OverflowError: "\\UFFFFFFFF" in ruamel.yaml's scanner
        raise InvalidFileError(f"is not YAML: {error}", where=where) from error
    except RecursionError as error:
        raise InvalidFileError("is nested too deeply", where=where) from error


_CORE_SCALARS: tuple[tuple[str, Callable[[str], object]], ...] = (
    (r"|~|null|Null|NULL", lambda _: None),
    (r"true|True|TRUE|false|False|FALSE", lambda text: text[0] in "tT"),
    (r"[-+]?[0-9]+", int),
    (r"0o[0-7]+", lambda text: int(text[2:], 8)),
    (r"0x[0-9a-fA-F]+", lambda text: int(text[2:], 16)),
    (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", float),
    (r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", lambda text: float(text.replace(".", ""))),
)


class _YamlBuilder:
    """Turns a stream of parser events into plain data, refusing what the format does not take."""

    def __init__(self, events: Iterator[Any], where: str) -> None:
        self._events = events
        self._where = where
        self._values = 0

    def document(self) -> object:
        value: object = None
        seen = 0
        for event in self._events:
            kind = type(event).__name__
            if kind in ("StreamStartEvent", "StreamEndEvent", "DocumentEndEvent"):
                continue
            if kind == "DocumentStartEvent":
                seen += 1
                if seen > 1:
                    self._refuse(event, "holds more than one document")
                continue
            value = self._value(event, 0)
        return value

    def _value(self, event: Any, depth: int) -> object:
        kind = type(event).__name__
        if kind == "AliasEvent" or event.anchor:
            self._refuse(event, "anchors and aliases are not allowed")
        if event.tag:
            self._refuse(event, f"the tag {event.tag} is not allowed")
        if depth > MAX_DEPTH:
            self._refuse(event, f"is nested more than {MAX_DEPTH} levels deep")
        self._values += 1
        if self._values > MAX_YAML_VALUES:
            self._refuse(event, f"holds more than {MAX_YAML_VALUES} values")
        if kind == "ScalarEvent":
            return self._scalar(event)
        if kind == "SequenceStartEvent":
            return [self._value(item, depth + 1) for item in self._until("SequenceEndEvent")]
        return self._mapping(depth)

    def _mapping(self, depth: int) -> dict[str, object]:
        found: dict[str, object] = {}
        for event in self._until("MappingEndEvent"):
            if type(event).__name__ != "ScalarEvent":
                self._refuse(event, "a key must be text")
            key = self._text(event)
            if event.anchor or event.tag:
                self._refuse(event, "anchors and tags are not allowed")
            if key in found:
                self._refuse(event, f"duplicate key {key!r}")
            found[key] = self._value(next(self._events), depth + 1)
        return found

    def _until(self, end: str) -> Iterator[Any]:
        while type(event := next(self._events)).__name__ != end:
            yield event

    def _scalar(self, event: Any) -> object:
        text = self._text(event)
        if not event.implicit[0]:
            return text
        for pattern, build in _CORE_SCALARS:
            if re.fullmatch(pattern, text):
                if len(text) > 400:
                    self._refuse(event, "a number is longer than 400 digits")
                return build(text)
        return text

    def _text(self, event: Any) -> str:
        text = str(event.value)
        _check_text(text, f"{self._where}: line {event.start_mark.line + 1}")
        return text

    def _refuse(self, event: Any, message: str) -> NoReturn:
        raise InvalidFileError(message, where=f"{self._where}: line {event.start_mark.line + 1}")


def read_yaml(path: Path) -> object:
    """Read a YAML file; see parse_yaml."""
    return parse_yaml(read_bytes(path, limit=MAX_AUTHORED_BYTES), where=str(path))


def read_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises InvalidFileError with every fault."""
    from adapterhub.spec.recipe import Recipe

    return Recipe.from_data(read_yaml(path), where=str(path))


def read_manifest(folder: Path) -> Manifest:
    """Read a package folder's manifest.

    Raises:
        UnsatisfiedError: there is none. InvalidFileError: with every fault.
    """
    from adapterhub.spec.manifest import MANIFEST_FILE, Manifest

    path = folder / MANIFEST_FILE
    return Manifest.from_data(read_json(path, limit=MAX_DOCUMENT_BYTES), where=str(path))


def read_adapter_config(folder: Path) -> dict[str, object]:
    """Read a package folder's adapter_config.json as PEFT wrote it."""
    from adapterhub.spec.manifest import CONFIG_FILE

    path = folder / CONFIG_FILE
    value = read_json(path, limit=MAX_DOCUMENT_BYTES)
    if not isinstance(value, dict):
        raise InvalidFileError("expected a JSON object", where=str(path))
    return value


def read_provenance(folder: Path) -> Provenance:
    """Read a package folder's provenance."""
    from adapterhub.spec.provenance import PROVENANCE_FILE, Provenance

    path = folder / PROVENANCE_FILE
    return Provenance.from_data(read_json(path, limit=MAX_DOCUMENT_BYTES), where=str(path))


def read_project(folder: Path) -> Project:
    """Read a folder's adapters.yaml."""
    from adapterhub.spec.project import PROJECT_FILE, Project

    path = folder / PROJECT_FILE
    return Project.from_data(read_yaml(path), where=str(path))


DOCUMENT_SUFFIXES = (".yaml", ".yml", ".json", ".lock")


def read_document(path: Path) -> tuple[str, object, Callable[[object], object]]:
    """Read any file of the format as plain data; return its kind, the data, and what decodes it.

    The kind is told by the key of the format's version (`recipe_version`, `lock_version` …).

    Raises:
        UnsatisfiedError: there is no such file. InvalidFileError: it is no YAML or JSON, or of no kind of ours.
    """
    from adapterhub.spec.index import AdapterIndex
    from adapterhub.spec.lockfile import Lockfile
    from adapterhub.spec.manifest import Manifest
    from adapterhub.spec.project import Project
    from adapterhub.spec.provenance import Provenance
    from adapterhub.spec.recipe import Recipe
    from adapterhub.spec.recipe_lock import RecipeLock

    data = read_yaml(path) if path.suffix in (".yaml", ".yml") else read_json(path)
    kinds: dict[str, tuple[str, Callable[[object], object]]] = {
        "recipe_version": ("recipe", lambda data: Recipe.from_data(data, where=str(path))),
        "project_version": ("project", lambda data: Project.from_data(data, where=str(path))),
        "lock_version": ("lockfile", lambda data: Lockfile.from_data(data, where=str(path))),
        "manifest_version": ("manifest", lambda data: Manifest.from_data(data, where=str(path))),
        "index_version": ("index", lambda data: AdapterIndex.from_data(data, where=str(path))),
        "provenance_version": ("provenance", lambda data: Provenance.from_data(data, where=str(path))),
        "recipe_lock_version": ("recipe-lock", lambda data: RecipeLock.from_data(data, where=str(path))),
    }
    for key, (kind, decode) in kinds.items():
        if isinstance(data, Mapping) and key in data:
            return kind, data, decode
    raise InvalidFileError(
        "says no format version, so there is no telling what it is",
        where=str(path),
        hint=f'begin with one of {", ".join(kinds)}, such as recipe_version: "1.0"',
    )


def read_lockfile(folder: Path) -> Lockfile:
    """Read a folder's adapters.lock; an absent one is empty."""
    from adapterhub.spec.lockfile import LOCK_FILE, Lockfile

    path = folder / LOCK_FILE
    if not path.exists():
        return Lockfile()
    return Lockfile.from_data(read_json(path), where=str(path))


def write_lockfile(folder: Path, lock: Lockfile) -> None:
    """Write a folder's adapters.lock, atomically; unchanged bytes are not written again."""
    from adapterhub.spec.lockfile import LOCK_FILE

    path, data = folder / LOCK_FILE, lock.canonical_bytes()
    if not path.is_file() or path.read_bytes() != data:
        write_atomic(path, data)


def read_recipe_lock(path: Path) -> RecipeLock | None:
    """Read a recipe's lock; None where there is none.

    Raises:
        InvalidFileError: every fault found.
    """
    from adapterhub.spec.recipe_lock import RecipeLock

    if not path.exists():
        return None
    return RecipeLock.from_data(read_json(path, limit=MAX_DOCUMENT_BYTES), where=str(path))


def write_recipe_lock(path: Path, lock: RecipeLock) -> None:
    """Write a recipe's lock, atomically; unchanged bytes are not written again."""
    data = lock.canonical_bytes()
    if not path.is_file() or path.read_bytes() != data:
        write_atomic(path, data)


def write_project(folder: Path, project: Project) -> None:
    """Write a folder's adapters.yaml, keeping the comments and the order of the one that is there."""
    from adapterhub.spec.project import PROJECT_FILE

    _rewrite_yaml(folder / PROJECT_FILE, project.to_data(), version_key="project_version")


def write_recipe_data(path: Path, data: Mapping[str, object]) -> None:
    """Write a recipe's plain data over the file it came from, keeping the comments and the order of a YAML file."""
    if path.suffix == ".json":
        write_atomic(path, canonical_json(data))
    else:
        _rewrite_yaml(path, data, version_key="recipe_version")


def _rewrite_yaml(path: Path, data: Mapping[str, object], *, version_key: str) -> None:
    import io

    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="rt")
    yaml.width = 120
    yaml.preserve_quotes = True
    document = yaml.load(path.read_text("utf-8")) if path.is_file() else {}
    _merge(document if document is not None else {}, data)
    stream = io.BytesIO()
    yaml.dump(_quoted(document or data, version_key), stream)
    write_atomic(path, stream.getvalue())


# What the Hub takes for the header of a card (huggingface_hub.repocard.REGEX_YAML_BLOCK).
_CARD_HEADER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
# Words that YAML 1.1, which many readers of cards speak, does not read as text.
_YAML_WORDS = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null", "~"])


def edit_card(text: str, edit: Callable[[Mapping[str, Any]], Mapping[str, object]], *, where: str) -> str:
    """Return a model card with some keys of its header set; the body, other keys and comments stay as they are.

    edit: is given the header, and returns the keys to set.

    Raises:
        InvalidFileError: the header is no YAML mapping; the message names the line.
    """
    import io

    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    found = _CARD_HEADER.match(text)
    yaml: Any = YAML(typ="rt")
    yaml.width = 1000
    yaml.preserve_quotes = True
    stream = io.BytesIO()
    try:
        header = (_load_header(yaml, found[1].replace("\r\n", "\n")) if found else None) or {}
        if not isinstance(header, Mapping):
            raise InvalidFileError("the header is no YAML mapping", where=where)
        for key, value in edit(header).items():
            header[key] = _plain_for_all(value)  # type: ignore[index]  # ruamel's mapping can be written to
        yaml.dump(header, stream)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f": line {mark.line + 2}" if mark else ""  # the header begins below its fence
        raise InvalidFileError(
            f"the header is no YAML: {error.problem or error.context}", where=where + line
        ) from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise InvalidFileError(f"the header is no YAML: {error}", where=where) from error
    return f"---\n{stream.getvalue().decode()}---\n{text[found.end() :] if found else text}"


def _load_header(yaml: Any, text: str) -> Any:
    """Read a header with its comments; ruamel.yaml's constructors fail in ways of their own on malformed tags."""
    import warnings

    try:
        with warnings.catch_warnings(action="ignore"):
            return yaml.load(text)
    except (TypeError, AttributeError, OverflowError, IndexError, KeyError, AssertionError) as error:
        raise ValueError(f"{type(error).__name__} in a tag, key or escape") from error


def _plain_for_all(value: object) -> object:
    """Quote what YAML 1.1 and 1.2 read differently: `no` is a language, and text."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    if isinstance(value, Mapping):
        return {key: _plain_for_all(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_for_all(inner) for inner in value]
    if isinstance(value, str) and (value.lower() in _YAML_WORDS or not re.fullmatch(r"[A-Za-z][\w./ -]*", value)):
        return DoubleQuotedScalarString(value)
    return value


def _merge(old: Any, new: Mapping[str, Any]) -> None:
    """Bring a round-trip document to say what `new` says, touching only what differs."""
    for key in [key for key in old if key not in new and old[key]]:  # an empty part says nothing: it may stay
        del old[key]
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(old.get(key), Mapping):
            _merge(old[key], value)
        elif key not in old or old[key] != value:
            old[key] = value


def _quoted(document: Any, key: str) -> Any:
    """Quote the format's version, which YAML would otherwise read as a number."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    document[key] = DoubleQuotedScalarString(document[key])
    return document
