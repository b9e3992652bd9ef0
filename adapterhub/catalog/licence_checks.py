"""An adapter's licence held against those of its base model and its data, as far as manifest and cards say.

A finding is about words on a manifest and a card, read by the table of catalog/licences.py; it is no legal advice, and
no finding is none either. What the table does not know is a warning, never an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from adapterhub.catalog.checks import Check
from adapterhub.catalog.licences import UNTOLD, Commerce, Licence, licence_named
from adapterhub.errors import ExitCode
from adapterhub.spec.report import Finding, Severity


def _check(code: str, severity: Severity, title: str, why: str, hint: str) -> Check:
    exit_code = ExitCode.UNSATISFIED if severity is Severity.ERROR else ExitCode.OK
    return Check(code=code, title=title, severity=severity, exit_code=exit_code, hint=hint, why=why)


_SAY = "name a licence that its base's allows, in the recipe or by `adapt pack --license`"
_READ = "read the licence yourself; this is what a table says, no legal advice"

LICENCE_CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        check.code: check
        for check in (
            _check(
                "ADP601",
                Severity.ERROR,
                "the adapter's licence allows no commerce that its base's or its data's does not",
                "A licence cannot give away what the base's licence keeps back.",
                _SAY,
            ),
            _check(
                "ADP602",
                Severity.ERROR,
                "the base's licence lets changed versions be shared",
                "An adapter is published to be used with its base, as a changed version of it.",
                "train it on a base whose licence allows it, or ask the base's author",
            ),
            _check(
                "ADP603",
                Severity.ERROR,
                "an adapter of a share-alike base is shared alike",
                "A share-alike licence asks that what is derived carries it too.",
                _SAY,
            ),
            _check(
                "ADP604",
                Severity.ERROR,
                "the base's terms of use are passed on",
                "Community licences ask that whoever passes a derived model on passes their terms on.",
                _SAY,
            ),
            _check(
                "ADP605",
                Severity.WARNING,
                "the data's licence is met",
                "Whether what is learnt from data is derived from them is not settled everywhere.",
                _READ,
            ),
            _check(
                "ADP606",
                Severity.WARNING,
                "names and notices are as the base's licence asks",
                "Some licences ask for a beginning of the name, or for a line on the card.",
                "choose such a name with `adapt publish --to`, and write the line on the model card",
            ),
            _check(
                "ADP607",
                Severity.WARNING,
                "the adapter names a licence",
                "Without a licence nobody knows what they may do with it.",
                "ask the author; in your own recipe or `adapt pack`, set `license`",
            ),
            _check(
                "ADP608",
                Severity.WARNING,
                "the licences are known",
                "Only licences of the table can be held against one another.",
                _READ,
            ),
        )
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is held against what: the adapter's name and licence, its base's, and those of its data by name.

    base_licence: None where neither the base's card nor its folder says. card: the adapter's model card, where known.
    """

    name: str
    licence: str | None
    base: str
    base_licence: str | None = None
    data: Mapping[str, str | None] = field(default_factory=lambda: MappingProxyType({}))
    card: str | None = None


def compare_licences(subject: Subject) -> tuple[Finding, ...]:
    """Return what an adapter's licence promises beyond its base's and its data's, as far as the table knows them.

    An unknown or missing licence is a warning, never an error; nothing is read and nothing is asked.
    """
    findings: list[Finding] = []
    own = licence_named(subject.licence)
    if own is None:
        findings.append(_untold(subject.licence))
    base = licence_named(subject.base_licence)
    if base is not None:
        findings += _against_base(subject, own, base)
    elif subject.base_licence is not None:
        told = f"the licence {subject.base_licence!r} of the base {subject.base} is not in the table: not compared"
        findings.append(LICENCE_CHECKS["ADP608"].found("base_model", told))
    for name, text in sorted(subject.data.items()):
        findings += _against_data(name, text, own)
    return tuple(findings)


def _untold(text: str | None) -> Finding:
    if text is None or text.strip().casefold() in UNTOLD:
        return LICENCE_CHECKS["ADP607"].found("license", "the manifest names no licence")
    return LICENCE_CHECKS["ADP608"].found("license", f"the licence {text!r} is not in the table: not compared")


def _against_base(subject: Subject, own: Licence | None, base: Licence) -> list[Finding]:
    whose = f"{base.id}, the licence of its base {subject.base} as its card or LICENSE says,"
    found = []
    if not base.derivatives:
        text = f"{whose} does not let changed versions be shared"
        found.append(LICENCE_CHECKS["ADP602"].found("base_model", text, hint=f"read {base.url}"))
    if own is not None:
        found += _promised(own, base, whose)
    return [*found, *_shown(subject, base, whose)]


def _promised(own: Licence, base: Licence, whose: str) -> list[Finding]:
    """Return what the adapter's licence gives beyond the base's, the gravest alone."""

    def fault(code: str, text: str) -> list[Finding]:
        return [LICENCE_CHECKS[code].found("license", text, hint=f"{LICENCE_CHECKS[code].hint}; read {base.url}")]

    if base.commerce is Commerce.NO and own.commerce is not Commerce.NO:
        return fault("ADP601", f"{own.id} is more permissive than its base allows: {whose} allows no commercial use")
    if base.share_alike and not base.takes(own):
        others = "".join(f" or {item}" for item in base.passes_to)
        return fault("ADP603", f"the adapter says {own.id}, but {whose} asks for {base.id}{others}")
    if base.terms and not base.takes(own):
        return fault("ADP604", f"the adapter says {own.id}, but {whose} asks that its own terms are passed on")
    if base.terms and own.id != base.id:
        text = (
            f"the adapter says {own.id}, its base {base.id}: whether the one's terms hold the other's is for you to say"
        )
        return [LICENCE_CHECKS["ADP608"].found("license", text)]
    return []


def _shown(subject: Subject, base: Licence, whose: str) -> list[Finding]:
    """Return what the name and the card lack of what the base's licence asks to be shown."""
    found = []
    wanted = base.name_begins
    last = subject.name.rpartition("/")[2]
    if wanted is not None and not _plain(last).startswith(_plain(wanted)):
        text = f"{whose} asks that names of models made with it begin with {wanted!r}; this one is called {last!r}"
        found.append(LICENCE_CHECKS["ADP606"].found("name", text))
    if base.notice is not None and subject.card is not None and _plain(base.notice) not in _plain(subject.card):
        found.append(LICENCE_CHECKS["ADP606"].found("README.md", f"{whose} asks for the words {base.notice!r}"))
    return found


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", text.casefold())


def _against_data(name: str, text: str | None, own: Licence | None) -> list[Finding]:
    where = f"extra.data_licenses.{name}"
    data = licence_named(text)
    if data is None:
        told = "is not known" if text is None else f"{text!r} is not in the table"
        return [LICENCE_CHECKS["ADP608"].found(where, f"the licence of the data {name!r} {told}: not compared")]
    if own is not None and data.commerce is Commerce.NO and own.commerce is not Commerce.NO:
        told = f"{own.id} is more permissive than its data allow: {data.id} of {name!r} allows no commercial use"
        return [LICENCE_CHECKS["ADP601"].found("license", told, hint=f"read {data.url}")]
    if not data.derivatives:
        told = f"{data.id} of the data {name!r} does not let changed versions be shared"
        return [LICENCE_CHECKS["ADP605"].found(where, told, hint=f"read {data.url}")]
    if own is not None and (data.share_alike or data.terms) and not data.takes(own):
        told = (
            f"{data.id} of the data {name!r} asks that what is derived from them carries it; the adapter says {own.id}"
        )
        return [LICENCE_CHECKS["ADP605"].found(where, told, hint=f"read {data.url}")]
    return []
