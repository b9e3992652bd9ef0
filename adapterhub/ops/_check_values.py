"""The checks that headers cannot answer, made by reading every weight once: is each a number, does B do anything."""

from __future__ import annotations

import math
from pathlib import Path

from adapterhub.catalog.checks import CHECKS
from adapterhub.ops._checklist import count, some
from adapterhub.spec.manifest import WEIGHTS_FILE
from adapterhub.spec.report import Finding, Report, Severity
from adapterhub.weights import TensorInfo, load_array, read_header

_FINITE, _NOT_ZERO = "ADP401", "ADP402"
_FLOATS = ("F64", "F32", "F16", "BF16")
_B = (".lora_B.weight", ".lora_embedding_B")


def values_open(report: Report) -> bool:
    """Say whether a report left the weights' values out for want of reading; a damaged file has other faults."""
    return any(f.code == _FINITE and f.severity is Severity.NOT_CHECKED for f in report.findings)


def with_values(report: Report, folder: Path) -> Report:
    """Return a report in which what it left out about the weights' values is answered.

    Raises:
        IntegrityError: the file is malformed, or changed while it was read. LocalIOError.
    """
    path = folder / WEIGHTS_FILE
    tensors = [tensor for tensor in read_header(path).tensors.values() if tensor.dtype in _FLOATS]
    largest = {tensor.name: _largest(path, tensor) for tensor in tensors}
    odd = [name for name, value in largest.items() if not math.isfinite(value)]
    b = [name for name in largest if name.endswith(_B)]
    found: list[Finding] = []
    if odd:
        message = f"{count(len(odd), 'tensor')} with NaN or infinite values: {some(odd)}"
        found.append(CHECKS[_FINITE].found(WEIGHTS_FILE, message))
    if b and all(largest[name] == 0 for name in b):
        found.append(CHECKS[_NOT_ZERO].found(WEIGHTS_FILE, "every B is zero, so the adapter changes nothing"))
    # What is asked of LoRA alone was never open for another method.
    asked = {f.code for f in report.findings if f.severity is Severity.NOT_CHECKED} & {_FINITE, _NOT_ZERO}
    kept = [f for f in report.findings if f.code not in asked or f.severity is not Severity.NOT_CHECKED]
    faulty = {finding.code for finding in found}
    return Report(
        subject=report.subject,
        findings=tuple(sorted([*kept, *found], key=lambda finding: finding.code)),
        passed=tuple(sorted({*report.passed, *asked} - faulty)),
    )


def _largest(path: Path, tensor: TensorInfo) -> float:
    """Return the largest absolute value of a tensor; NaN if any value is."""
    if not tensor.elements:
        return 0.0
    array = load_array(path, tensor)
    # A sum would overflow; NaN wins every comparison that numpy makes for a maximum.
    return float(abs(array).max())
