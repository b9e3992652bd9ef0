"""The check of a single document: a recipe, a project file, a lockfile, a manifest or a provenance statement."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adapterhub import schemas
from adapterhub.catalog.checks import CHECKS
from adapterhub.catalog.combinations import rule_of
from adapterhub.documents import DOCUMENT_SUFFIXES, read_document
from adapterhub.errors import InvalidFileError, UsageError
from adapterhub.spec.project import Project
from adapterhub.spec.report import Finding, Report

CODE = "ADP501"


def is_document(path: Path) -> bool:
    """Say whether a path is a file that `check_document` reads, by its ending."""
    return path.suffix in DOCUMENT_SUFFIXES and path.is_file()


def check_document(path: Path, *, subject: str) -> Report:
    """Check one document against its format, by our own decoder and by the published schema.

    Raises:
        InvalidFileError: it is no YAML or JSON, or its format version key says none of our kinds.
    """
    kind, data, decode = read_document(path)
    check = CHECKS[CODE]
    findings: tuple[Finding, ...] = ()
    try:
        value = decode(data)
    except InvalidFileError as error:
        # One fault stands in `where`, several in the details; either way the path of the field comes first.
        faults = error.details or (f"{(error.where or '').removeprefix(f'{path}: ')}: {error.message}",)
        findings = tuple(check.found(subject, fault) for fault in faults)
    else:
        # The schema says what other tools will say; where our decoder finds nothing it should find nothing either.
        findings = tuple(check.found(fault.where, fault.message) for fault in schemas.check(kind, data, where=subject))
        if isinstance(value, Project):
            findings += tuple(check.found(f"{subject}: {where}", fault) for where, fault in _rules(value))
    return Report(subject=subject, findings=findings, passed=() if findings else (CODE,))


def _rules(project: Project) -> Iterator[tuple[str, str]]:
    """Yield where a named stack is combined by what there is not, or with parameters that its rule does not take."""
    for name, stack in project.stacks.items():
        try:
            rule_of(stack.combination, stack.parameters)
        except UsageError as error:
            for fault in error.details or (error.message,):
                yield f"stacks.{name}", fault if error.hint is None else f"{fault} ({error.hint})"
