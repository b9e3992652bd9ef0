"""`adapt tree`: which package brought which, from adapters.yaml, adapters.lock and the store; no registry is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adapterhub.environment import Environment
from adapterhub.ops._graph import Asked, asked_by_package, asked_by_project
from adapterhub.spec.lockfile import LockedPackage

# Branch, last branch, the line that goes on beside a branch, and nothing.
DRAWN = ("├── ", "└── ", "│   ", "    ")
ASCII = ("|-- ", "`-- ", "|   ", "    ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One package in the tree.

    installed: its folder is there. repeated: its members stand where it comes first. members: of a stack package.
    """

    asked: Asked
    installed: bool = False
    repeated: bool = False
    members: tuple[Node, ...] = ()

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        asked, entry = self.asked, self.asked.entry
        return {
            "name": str(asked.name),
            "version": None if entry is None else str(entry.version),
            "alias": asked.alias,
            "requirement": None if asked.requirement is None else str(asked.requirement),
            "weight": asked.weight,
            "registry": None if entry is None else entry.registry,
            "revision": None if entry is None else entry.revision,
            "installed": self.installed,
            "base_mismatch": entry is not None and entry.base_mismatch,
            "repeated": self.repeated,
            "members": [node.to_data() for node in self.members],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """An environment's packages below the base model they are for.

    base: its id, None where nothing names one. unasked: locked packages that nothing leads to.
    """

    folder: Path
    base: str | None
    base_revision: str | None = None
    base_source: str | None = None
    nodes: tuple[Node, ...] = ()
    unasked: tuple[LockedPackage, ...] = ()

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "environment": str(self.folder),
            "base_model": None
            if self.base is None
            else {"id": self.base, "revision": self.base_revision, "source": self.base_source},
            "packages": [node.to_data() for node in self.nodes],
            "unasked": [str(entry.ref) for entry in self.unasked],
        }


def read_tree(environment: Environment) -> Tree:
    """Return the tree of one environment.

    Raises:
        InvalidFileError: adapters.yaml or adapters.lock breaks its format.
    """
    seen: dict[str, LockedPackage] = {}
    nodes = tuple(_node(environment, asked, seen) for asked in asked_by_project(environment))
    lock, project = environment.lock, environment.project
    locked = lock.base.base if lock.base is not None else None
    return Tree(
        folder=environment.folder,
        base=locked.id if locked is not None else project.base_model,
        base_revision=locked.revision if locked is not None else project.base_revision,
        base_source=lock.base.source if lock.base is not None else None,
        nodes=nodes,
        unasked=tuple(entry for entry in lock.entries if entry.name.key not in seen),
    )


def _node(environment: Environment, asked: Asked, seen: dict[str, LockedPackage]) -> Node:
    """Return a package with its members, each stack opened once: that also ends a lock that goes round."""
    entry = asked.entry
    if entry is None:
        return Node(asked=asked)
    installed = environment.path_of(entry).is_dir()
    if entry.name.key in seen:
        return Node(asked=asked, installed=installed, repeated=bool(entry.requires))
    seen[entry.name.key] = entry
    members = tuple(_node(environment, inner, seen) for inner in asked_by_package(environment, entry))
    return Node(asked=asked, installed=installed, members=members)


def draw(tree: Tree, *, ascii_only: bool = False) -> list[str]:
    """Return the tree as lines for people, the base model first."""
    if tree.base is None:
        lines = ["no base model is recorded"]
    else:
        revision = f"#{tree.base_revision}" if tree.base_revision else ""
        source = f", {tree.base_source}" if tree.base_source else ""
        lines = [f"{tree.base}{revision} (base model{source})"]
    lines += _branches(tree.nodes, ASCII if ascii_only else DRAWN, "")
    return lines


def _branches(nodes: tuple[Node, ...], signs: tuple[str, ...], before: str) -> Iterator[str]:
    branch, last, beside, nothing = signs
    for node in nodes:
        ends = node is nodes[-1]
        yield f"{before}{last if ends else branch}{_label(node)}"
        yield from _branches(node.members, signs, before + (nothing if ends else beside))


def _label(node: Node) -> str:
    asked, entry = node.asked, node.asked.entry
    told = []
    if asked.weight is not None:
        told.append(f"weight {asked.weight:g}")
    if asked.requirement is None:
        told.append("adapters.yaml no longer asks for it")
    elif str(asked.requirement) != str(asked.name):
        told.append(f"wanted: {asked.requirement}")
    if entry is None:
        told.append("not locked")
    elif not node.installed:
        told.append("not installed")
    if entry is not None and entry.base_mismatch:
        told.append("made for another base")
    if node.repeated:
        told.append("members: see above")
    words = [f"{asked.alias}:"] if asked.alias else []
    words.append(f"{asked.name} {entry.version}" if entry is not None else str(asked.name))
    return " ".join(words) + (f" ({'; '.join(told)})" if told else "")
