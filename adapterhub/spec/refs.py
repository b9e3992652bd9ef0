"""Names: packages, versions, requirements, aliases. `parse(str(x)) == x` for each."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
NAME_PATTERN = _PART
ALIAS_PATTERN = r"[a-z0-9][a-z0-9_-]{0,63}"
VERSION_PATTERN = r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)((a|b|rc)(0|[1-9][0-9]*))?(\+g[0-9a-f]{12})?"
REVISION_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}"
_MAX_REQUIREMENT = 1024
_SUFFIXES = ("-lora", "-qlora", "-adapter")


def check_part(text: str, what: str) -> str:
    """Return one segment of a Hub repo id, case kept.

    Raises:
        ValueError: the Hub would not take it. (Source: huggingface_hub's validate_repo_id.)
    """
    if not re.fullmatch(_PART, text) or "--" in text or ".." in text or len(text) > 96 or text.endswith(".git"):
        raise ValueError(
            f"{text[:100]!r} is not {what}: letters, digits, '.', '_' and '-', no '--' or '..', at most 96 characters"
        )
    return text


def parse_version(text: str) -> Version:
    """Read a package version: X.Y.Z with an optional aN, bN or rcN (PEP 440), or a derived 0.0.0+g<12 hex>.

    Raises:
        ValueError: it is of another form; the message names the nearest right one where there is one.
    """
    if not re.fullmatch(VERSION_PATTERN, text) or len(text) > 64:
        hint = ""
        try:
            release = (*Version(text).release, 0, 0)[:3]
            hint = f"; did you mean '{release[0]}.{release[1]}.{release[2]}'?"
        except InvalidVersion:
            pass
        raise ValueError(f"{text[:80]!r} is not a version of the form X.Y.Z (aN, bN or rcN may follow){hint}")
    return Version(text)


def check_alias(text: str) -> str:
    """Return an alias: a short lower-case word.

    Raises:
        ValueError: it is of another form.
    """
    if not re.fullmatch(ALIAS_PATTERN, text):
        raise ValueError(
            f"{text[:80]!r} is not an alias: a-z, 0-9, '_' and '-', at most 64 characters, a letter or digit first"
        )
    return text


@dataclass(frozen=True, slots=True, order=True)
class PackageName:
    """A package's full name `org/name`, a Hub repo id; case is kept, names that differ in case alone collide."""

    org: str
    name: str

    @classmethod
    def parse(cls, text: str) -> PackageName:
        """Read `org/name`.

        Raises:
            ValueError: it is of another form.
        """
        org, slash, name = text.partition("/")
        if not slash:
            raise ValueError(f"{text[:100]!r} is not a package name of the form org/name")
        return cls(check_part(org, "an organisation's name"), check_part(name, "a package's name"))

    @property
    def key(self) -> str:
        """The form in which names are compared for collisions."""
        return str(self).casefold()

    @property
    def default_alias(self) -> str:
        """The name in lower case without a trailing -lora, -qlora or -adapter, made to fit an alias."""
        word = re.sub(r"[^a-z0-9_-]", "-", self.name.lower())
        for suffix in _SUFFIXES:
            if word.endswith(suffix) and len(word) > len(suffix):
                word = word.removesuffix(suffix)
                break
        return word[:64].strip("-_") or "adapter"

    def __str__(self) -> str:
        return f"{self.org}/{self.name}"


@dataclass(frozen=True, slots=True)
class PackageRef:
    """A package at an exact version: `org/name@1.2.0`."""

    name: PackageName
    version: Version

    @classmethod
    def parse(cls, text: str) -> PackageRef:
        """Read `org/name@X.Y.Z`.

        Raises:
            ValueError: it is of another form.
        """
        name, at, version = text.partition("@")
        if not at:
            raise ValueError(f"{text[:100]!r} has no version: write org/name@X.Y.Z")
        return cls(PackageName.parse(name), parse_version(version))

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Requirement:
    """What is asked for: a name with a PEP 440 range, an exact version (`@1.2.0`), or a revision (`#main`).

    At most one of `specifier` (not empty) and `revision` is set. An exact version is the specifier `==X.Y.Z`.
    """

    name: PackageName
    specifier: SpecifierSet = field(default_factory=SpecifierSet)
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Read `org/name`, `org/name>=1.2,<2`, `org/name@1.2.0` or `org/name#REV`.

        Raises:
            ValueError: it is of another form.
        """
        if len(text) > _MAX_REQUIREMENT:
            raise ValueError(f"a requirement is longer than {_MAX_REQUIREMENT} characters")
        match = re.fullmatch(r"\s*([^\s<>=!~@#,]+)\s*(.*?)\s*", text, re.DOTALL)
        if not match:
            raise ValueError(f"{text[:100]!r} is not a requirement such as org/name>=1.2,<2")
        name, rest = PackageName.parse(match[1]), match[2]
        if rest.startswith("@"):
            return cls(name, SpecifierSet(f"=={parse_version(rest[1:].strip())}"))
        if rest.startswith("#"):
            if not re.fullmatch(REVISION_PATTERN, rest[1:]) or ".." in rest:
                raise ValueError(f"{rest[1:101]!r} is not a branch, tag or commit")
            return cls(name, revision=rest[1:])
        try:
            return cls(name, SpecifierSet(rest))
        except InvalidSpecifier as error:
            raise ValueError(f"{rest[:80]!r} is not a PEP 440 version range such as >=1.2,<2") from error

    @property
    def exact(self) -> Version | None:
        """The one version that satisfies this, when it is pinned."""
        pins = [s for s in self.specifier if s.operator == "==" and not s.version.endswith(".*")]
        return Version(pins[0].version) if len(pins) == 1 and len(self.specifier) == 1 else None

    def allows(self, version: Version, *, prereleases: bool | None = None) -> bool:
        """Say whether a version satisfies the range; pre-releases only where the range names one, or when told."""
        # packaging takes a lone pre-release when nothing else is on offer; a plain range never asks for one.
        wanted = bool(self.specifier.prereleases) if prereleases is None else prereleases
        return self.specifier.contains(version, prereleases=wanted)

    def __str__(self) -> str:
        if self.revision is not None:
            return f"{self.name}#{self.revision}"
        if (version := self.exact) is not None and re.fullmatch(VERSION_PATTERN, str(version)):
            return f"{self.name}@{version}"
        return f"{self.name}{self.specifier}"
