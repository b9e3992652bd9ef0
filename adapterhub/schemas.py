"""The published JSON Schemas (2020-12): for editors, for other tools, and for `adapt validate FILE`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from adapterhub.errors import ExitCode, UsageError
from adapterhub.spec._decode import suggest
from adapterhub.spec.report import Finding, Severity

SCHEMAS = ("manifest", "provenance", "recipe", "project", "lockfile", "index", "recipe-lock")
CODE = "ADP501"


@cache
def load_schema(name: str) -> Mapping[str, Any]:
    """Return one of SCHEMAS as plain data, from the wheel or from a source checkout.

    Raises:
        UsageError: there is no schema of that name.
    """
    if name not in SCHEMAS:
        near = suggest(name, SCHEMAS)
        raise UsageError(
            f"no schema {name!r}", hint=f"did you mean {near}?" if near else f"known: {', '.join(SCHEMAS)}"
        )
    package = Path(__file__).parent
    for folder in (package / "schema", package.parent / "schema"):
        path = folder / f"{name}.schema.json"
        if path.is_file():
            loaded: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
            return loaded
    raise UsageError(f"the schema {name!r} is not in this installation", hint="install adapterhub again")


def check(name: str, data: object, *, where: str) -> tuple[Finding, ...]:
    """Return every fault that a schema finds in plain data, in the order of the document.

    Args:
        name: one of SCHEMAS. where: the file, to begin each finding's place with.
    """
    errors = sorted(_validator(name).iter_errors(data), key=lambda error: [str(part) for part in error.absolute_path])
    return tuple(
        Finding(
            code=CODE,
            severity=Severity.ERROR,
            where=f"{where}: {_place(error.absolute_path)}" if error.absolute_path else where,
            message=str(error.message)[:300],
            exit_code=ExitCode.USAGE,
        )
        for error in errors
    )


@cache
def _validator(name: str) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(dict(load_schema(name)))


def _place(path: Any) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
