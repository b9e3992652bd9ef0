"""adapters.yaml: what a project wants. Written by a person, and by `adapt install`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from adapterhub.spec._decode import Faults, Frozen, Reader, thaw
from adapterhub.spec.base_model import parse_base
from adapterhub.spec.refs import PackageName, Requirement, check_alias
from adapterhub.spec.stack import DEFAULT_COMBINATION, Stack, StackLayer, read_stack

PROJECT_FILE = "adapters.yaml"
PROJECT_VERSION = "1.0"
DEFAULT_STACK = "default"
_PATTERN = r"\*|[A-Za-z0-9._-]+/\*|[A-Za-z0-9._-]+/[A-Za-z0-9._-]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What a project wants (docs/format.md, "The project file").

    adapters: alias → requirement. stacks: name → stack over aliases; `default` is what run and merge take.
    registries: name pattern (`acme/*`, `*`) → location, a folder (relative to the file, or absolute) or `hub`;
    the most specific pattern wins and a name has exactly one registry.
    """

    base_model: str | None = None
    base_revision: str | None = None
    adapters: Mapping[str, Requirement] = field(default_factory=lambda: MappingProxyType({}))
    stacks: Mapping[str, Stack] = field(default_factory=lambda: MappingProxyType({}))
    registries: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    extra: Mapping[str, Frozen] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def from_data(cls, data: object, *, where: str = PROJECT_FILE) -> Project:
        """Build a project from plain data.

        Raises:
            InvalidFileError: every fault found, each with the path of its field.
        """
        faults = Faults(where=where)
        value = cls._read(Reader(data, faults))
        faults.raise_if_any()
        return value

    @classmethod
    def _read(cls, r: Reader) -> Project:
        r.authored_version("project_version", supported=PROJECT_VERSION)
        base = r.optional_parse("base_model", parse_base)
        base_id, base_revision = base if isinstance(base, tuple) else (None, None)
        value = cls(
            base_model=base_id,
            base_revision=base_revision,
            adapters=MappingProxyType(_adapters(r)),
            stacks=MappingProxyType(_stacks(r)),
            registries=MappingProxyType(_registries(r)),
            extra=r.free("extra"),
        )
        r.finish()
        if r.clean:
            value._cross_check(r)
        return value

    def _cross_check(self, r: Reader) -> None:
        known = ", ".join(sorted(self.adapters)) or "none yet"
        for name, stack in self.stacks.items():
            if name in self.adapters:
                r.fault(f"stacks.{name}", "is an adapter's alias too; a word means one thing")
            for layer in stack.layers:
                if "/" not in layer.word and layer.word not in self.adapters and layer.word not in self.stacks:
                    r.fault(f"stacks.{name}", f"{layer.word!r} is no adapter of this project (known: {known})")

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data; empty parts are left out, since a person reads this file."""
        data: dict[str, object] = {"project_version": PROJECT_VERSION}
        if self.base_model is not None:
            data["base_model"] = self.base_model + (f"#{self.base_revision}" if self.base_revision else "")
        if self.adapters:
            data["adapters"] = {alias: str(requirement) for alias, requirement in self.adapters.items()}
        if self.stacks:
            data["stacks"] = {name: _stack_data(stack) for name, stack in self.stacks.items()}
        if self.registries:
            data["registries"] = dict(self.registries)
        if self.extra:
            data["extra"] = thaw(self.extra)
        return data

    def with_adapter(self, alias: str, requirement: Requirement) -> Project:
        """Return the project with one more (or a changed) requirement."""
        return replace(self, adapters=MappingProxyType({**self.adapters, alias: requirement}))

    def without_adapter(self, alias: str) -> Project:
        """Return the project without one requirement."""
        return replace(self, adapters=MappingProxyType({a: q for a, q in self.adapters.items() if a != alias}))

    def registry_of(self, name: PackageName) -> str | None:
        """Return the location that the most specific pattern gives a name, or None."""
        for pattern in (str(name), f"{name.org}/*", "*"):
            for known, location in self.registries.items():
                if known.casefold() == pattern.casefold():
                    return location
        return None


def _adapters(r: Reader) -> dict[str, Requirement]:
    found: dict[str, Requirement] = {}
    for alias, value in r.items("adapters"):
        path = f"adapters.{alias}"
        try:
            check_alias(alias)
            if not isinstance(value, str):
                raise ValueError("expected a requirement such as org/name>=1.2,<2")
            found[alias] = Requirement.parse(value)
        except ValueError as error:
            r.fault(path, str(error))
    return found


def _stacks(r: Reader) -> dict[str, Stack]:
    found: dict[str, Stack] = {}
    for name, value in r.items("stacks"):
        try:
            check_alias(name)
        except ValueError as error:
            r.fault(f"stacks.{name}", str(error))
            continue
        found[name] = read_stack(value, r, f"stacks.{name}")
    return found


def _registries(r: Reader) -> dict[str, str]:
    found: dict[str, str] = {}
    for pattern, value in r.items("registries"):
        if not re.fullmatch(_PATTERN, pattern):
            r.fault(f"registries.{pattern}", "is not a name pattern; write '*', 'org/*' or 'org/name'")
        elif not isinstance(value, str) or not value.strip():
            r.fault(f"registries.{pattern}", "expected a folder or 'hub'")
        else:
            found[pattern] = value
    return found


def _stack_data(stack: Stack) -> object:
    if stack.combination == DEFAULT_COMBINATION and not stack.parameters.to_data():
        return str(stack)
    layers = [_layer_data(layer) for layer in stack.layers]
    return {"layers": layers, "combination": stack.combination} | stack.parameters.to_data()


def _layer_data(layer: StackLayer) -> dict[str, object]:
    return {"adapter": layer.word, "weight": layer.weight}
