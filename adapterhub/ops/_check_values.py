"""The checks that headers cannot answer, made by reading every weight once: is each a number, does any count."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapterhub.catalog.checks import CHECKS
from adapterhub.catalog.neutral_values import NEUTRAL, Neutral
from adapterhub.errors import AdapterHubError
from adapterhub.ops._checklist import count, some
from adapterhub.package import read_config
from adapterhub.spec.manifest import WEIGHTS_FILE
from adapterhub.spec.report import Finding, Report, Severity
from adapterhub.weights import TensorInfo, load_array, read_header

_FINITE, _NEUTRAL = "ADP401", "ADP402"
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class _Range:
    """The least and the largest value of a tensor; NaN if any value is."""

    least: float
    most: float

    def only(self, value: float) -> bool:
        return self.least == value == self.most


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
    ranges = {tensor.name: _range(path, tensor) for tensor in tensors}
    odd = [name for name, item in ranges.items() if not (math.isfinite(item.least) and math.isfinite(item.most))]
    found: list[Finding] = []
    if odd:
        message = f"{count(len(odd), 'tensor')} with NaN or infinite values: {some(odd)}"
        found.append(CHECKS[_FINITE].found(WEIGHTS_FILE, message))
    asked = {f.code for f in report.findings if f.severity is Severity.NOT_CHECKED} & {_FINITE, _NEUTRAL}
    if _NEUTRAL in asked:
        found += _does_nothing(ranges, _peft_type(folder))
    kept = [f for f in report.findings if f.code not in asked or f.severity is not Severity.NOT_CHECKED]
    faulty = {finding.code for finding in found}
    return Report(
        subject=report.subject,
        findings=tuple(sorted([*kept, *found], key=lambda finding: finding.code)),
        passed=tuple(sorted({*report.passed, *asked} - faulty)),
    )


def _peft_type(folder: Path) -> str:
    try:
        return str(read_config(folder).get("peft_type"))
    except AdapterHubError:
        return "of a config that cannot be read"


def _does_nothing(ranges: Mapping[str, _Range], peft_type: str) -> list[Finding]:
    """Return the finding that an adapter changes nothing, or that its weights alone do not tell."""
    check, row = CHECKS[_NEUTRAL], NEUTRAL.get(peft_type)
    if row is None:
        return [check.not_checked(WEIGHTS_FILE, f"whether {peft_type} changes anything, its weights alone do not tell")]
    modules: dict[str, dict[str, _Range]] = {}
    whole = []
    for name, item in ranges.items():
        found = next((word for word in row.names if _is(name, word)), None)
        if found is not None:
            modules.setdefault(name[: name.index(found)], {})[name] = item
        elif peft_type.lower() not in name and not any(word.partition("_")[0] in name for word in row.names):
            whole.append(name)
    if row.always or not modules or not all(_neutral(parts, row) for parts in modules.values()):
        return []
    message = "every B is zero" if peft_type == "LORA" else f"every weight of {peft_type} is where it does nothing"
    if any("lora_magnitude_vector" in name for name in ranges):
        return [check.found(WEIGHTS_FILE, f"{message}, so only DoRA's magnitudes can change anything")]
    if whole:
        return [check.found(WEIGHTS_FILE, f"{message}, so only what was saved whole does anything: {some(whole)}")]
    return [check.found(WEIGHTS_FILE, f"{message}, so the adapter changes nothing")]


def _neutral(parts: Mapping[str, _Range], row: Neutral) -> bool:
    """Say whether a module's change is nothing."""
    held = dict(row.values)
    factors = [item for name, item in parts.items() if any(_is(name, word) for word in row.factors)
               and not any(_is(name, word) for word in held)]  # fmt: skip
    rest = [(item, value) for name, item in parts.items() for word, value in held.items() if _is(name, word)]
    product = not factors or any(item.only(0.0) for item in factors)
    return product and all(item.only(value) for item, value in rest)


def _is(name: str, word: str) -> bool:
    """Say whether a row's word stands in a tensor's name as whole parts; one that ends in a dot, whatever follows."""
    return f".{word}" in f".{name}" if word.endswith(".") else f".{word}." in f".{name}."


def _range(path: Path, tensor: TensorInfo) -> _Range:
    """Return the least and largest value of a tensor; of none, zeros."""
    if not tensor.elements:
        return _Range(0.0, 0.0)
    array = load_array(path, tensor)
    # A sum would overflow; NaN wins every comparison that numpy makes for a minimum or maximum.
    return _Range(float(array.min()), float(array.max()))
