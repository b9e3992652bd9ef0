"""The check of a single document: a recipe, a project file, a lockfile, a manifest or a provenance statement."""

from __future__ import annotations

from pathlib import Path

from adapterhub import schemas
from adapterhub.catalog.checks import CHECKS
from adapterhub.documents import DOCUMENT_SUFFIXES, read_document
from adapterhub.errors import InvalidFileError
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
        decode(data)
    except InvalidFileError as error:
        # One fault stands in `where`, several in the details; either way the path of the field comes first.
        faults = error.details or (f"{(error.where or '').removeprefix(f'{path}: ')}: {error.message}",)
        findings = tuple(check.found(subject, fault) for fault in faults)
    else:
        # The schema says what other tools will say; where our decoder finds nothing it should find nothing either.
        findings = tuple(check.found(fault.where, fault.message) for fault in schemas.check(kind, data, where=subject))
    return Report(subject=subject, findings=findings, passed=() if findings else (CODE,))
