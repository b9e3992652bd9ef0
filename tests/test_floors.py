"""Imports only go down: the floors as data, read from the source of every module, lazy imports included."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "adapterhub"

# Lowest first. A line's modules may import those of lower lines and, but for the floor that is ordered within, each
# other; a name stands for the module or for everything below the package.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "progress", "files", "processes"),
    ("spec",),
    ("settings", "documents", "schemas", "catalog"),
    ("weights",),
    ("package",),
    ("fingerprints",),
    ("bases",),
    ("algebra", "store"),
    ("registry",),
    ("resolve",),
    ("environment",),
    ("engine",),
    ("ops",),
    ("api",),
    ("cli",),
    ("__main__",),
)

# The package itself hands out every floor's public names lazily, so it stands above them all; what anybody may take
# from it is the version, which it holds itself.
TOP = "adapterhub"

HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "gguf", "tokenizers"}
NUMPY_FLOORS = {"weights", "algebra", "engine"}
STANDARD_LIBRARY_ONLY = {"errors", "progress", "files", "processes", "spec"}


def modules() -> list[str]:
    """Return every module's dotted name below adapterhub; a package stands under its own name."""
    names = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def source_of(module: str) -> tuple[Path, bool]:
    """Return a module's file, and whether it is a package."""
    base = ROOT.joinpath(*module.split(".")) if module else ROOT
    package = base / "__init__.py"
    return (package, True) if package.exists() else (base.with_suffix(".py"), False)


def imports_of(text: str, module: str, is_package: bool, *, at_run_time: bool = False) -> Iterator[str]:
    """Yield the dotted name of everything a module's source imports, wherever the statement stands.

    `from a import b` yields `a.b`, since b may be a module. What only type checkers import (`if TYPE_CHECKING:`) counts
    as well, unless `at_run_time`.
    """
    tree = ast.parse(text)
    if at_run_time:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and getattr(node.test, "id", getattr(node.test, "attr", "")) == "TYPE_CHECKING":
                node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["adapterhub", *[part for part in module.split(".") if part]]
                kept = here[: len(here) - node.level + is_package]
                base = ".".join([*kept, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            yield from _called_import(node)


def _called_import(node: ast.Call) -> Iterator[str]:
    """Yield the name in `import_module("…")` and `__import__("…")`."""
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if name in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
        yield str(node.args[0].value)


def own(imported: str, known: set[str]) -> str | None:
    """Return which of our modules an import names: `adapterhub.spec.refs.parse` is `spec.refs`."""
    head, _, rest = imported.partition(".")
    if head != "adapterhub":
        return None
    parts = rest.split(".") if rest else []
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts)


def floor_of(module: str) -> int:
    """Return a module's floor; the package itself stands on top."""
    if not module:
        return len(FLOORS)
    part = module.split(".")[0]
    for index, floor in enumerate(FLOORS):
        if part in floor:
            return index
    raise AssertionError(f"adapterhub/{part} stands on no floor: give it one in FLOORS")


@cache
def edges() -> dict[str, set[str]]:
    """Return, by module, which of ours it imports; what takes only the version from the package is left out."""
    known = set(modules())
    found: dict[str, set[str]] = {}
    for module in known:
        path, is_package = source_of(module)
        targets = found.setdefault(module, set())
        for imported in imports_of(path.read_text(encoding="utf-8"), module, is_package):
            target = own(imported, known)
            if target is not None and target != module and imported != "adapterhub.__version__":
                targets.add(target)
    return found


def upward(table: dict[str, set[str]]) -> list[str]:
    """Return every import of a table that does not go down, as `a -> b`."""
    return sorted(
        f"{module} -> {target or TOP}"
        for module, targets in table.items()
        for target in targets
        if floor_of(target) > floor_of(module)
        # Within a floor one part does not know another, but for those named on the same line.
        or (not target and module)
    )


def test_every_module_stands_on_a_floor() -> None:
    assert len(modules()) > 30
    for module in modules():
        floor_of(module)


def test_imports_only_go_down() -> None:
    assert upward(edges()) == []


def test_imports_do_not_go_round() -> None:
    # A package's __init__ hands out its modules' names: that it imports them is no cycle unless one imports it back.
    try:
        tuple(TopologicalSorter(edges()).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_the_engine_imports_torch_and_its_kin() -> None:
    assert [line for line in third_party() if line.split(": ")[1] in HEAVY and not line.startswith("engine")] == []


def test_numpy_stays_where_arrays_are() -> None:
    offenders = [
        line
        for line in third_party()
        if line.endswith(": numpy") and line.split(":")[0].split(".")[0] not in NUMPY_FLOORS
    ]
    assert offenders == []


def test_values_need_the_standard_library_packaging_and_regex_alone() -> None:
    offenders = [
        line
        for line in third_party()
        if line.split(":")[0].split(".")[0] in STANDARD_LIBRARY_ONLY and not line.endswith((": packaging", ": regex"))
    ]
    assert offenders == []


def test_click_and_rich_stay_in_the_command_line() -> None:
    offenders = [
        line for line in third_party() if line.split(": ")[1] in ("click", "rich") and not line.startswith("cli")
    ]
    assert offenders == []


@cache
def third_party() -> list[str]:
    """Return `module: distribution` for every import that is neither ours nor the standard library's.

    Annotations may name a foreign type, as the API's do: only what runs counts.
    """
    found = set()
    for module in modules():
        path, is_package = source_of(module)
        for imported in imports_of(path.read_text(encoding="utf-8"), module, is_package, at_run_time=True):
            head = imported.split(".")[0]
            if head != "adapterhub" and head not in sys.stdlib_module_names and head != "__future__":
                found.add(f"{module}: {head}")
    return sorted(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import torch", ["torch"]),
        ("def f():\n    from torch.nn import functional", ["torch.nn.functional"]),
        ("if TYPE_CHECKING:\n    import peft.tuners", ["peft.tuners"]),
        ("from ..cli import console", ["adapterhub.cli.console"]),
        ("from . import refs", ["adapterhub.spec.refs"]),
        ("from .refs import PackageRef", ["adapterhub.spec.refs.PackageRef"]),
        ("importlib.import_module('torch')", ["torch"]),
        ("__import__('numpy')", ["numpy"]),
        ("class A:\n    def f(self):\n        import adapterhub.ops.build as b", ["adapterhub.ops.build"]),
    ],
)
def test_the_reader_sees_every_form_of_import(text: str, expected: list[str]) -> None:
    assert list(imports_of(text, "spec.manifest", False)) == expected


def test_what_only_type_checkers_import_can_be_left_out() -> None:
    text = "if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy\nif typing.TYPE_CHECKING:\n    import peft"
    assert list(imports_of(text, "ops.x", False, at_run_time=True)) == ["numpy"]
    assert list(imports_of(text, "ops.x", False)) == ["torch", "numpy", "peft"]


def test_a_relative_import_in_a_package_counts_from_the_package() -> None:
    assert list(imports_of("from .header import Header", "weights", True)) == ["adapterhub.weights.header.Header"]
    assert list(imports_of("from ..cli import console", "weights", True)) == ["adapterhub.cli.console"]


def test_an_upward_import_is_found() -> None:
    assert upward({"spec.refs": {"settings"}, "settings": {"spec.refs", "errors"}}) == ["spec.refs -> settings"]
    assert upward({"fingerprints": {"bases"}, "bases": {"fingerprints"}}) == ["fingerprints -> bases"]
    assert upward({"cli.run": {""}}) == ["cli.run -> adapterhub"]
    known = {"spec", "spec.refs", "cli.main"}
    assert own("adapterhub.spec.refs.PackageRef.parse", known) == "spec.refs"
    assert own("adapterhub", known) == ""
    assert own("adapterhub_extra.x", known) is None
    with pytest.raises(AssertionError, match="stands on no floor"):
        floor_of("helpers.misc")
