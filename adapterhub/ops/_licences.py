"""What licences say at install and at publish: where each one is written down, and what is made of the findings.

The adapter's licence is its manifest's. The base's is what its model card's header says (`license`, or `license_name`
where that is `other`), else the heading of a LICENSE file beside it; without either nothing is known of it. The data's
are what the recipe put into `extra.data_licenses`: a licence by name of a set of rows, or a list of licences.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from adapterhub.bases import BaseStore
from adapterhub.catalog.licence_checks import Subject, compare_licences
from adapterhub.catalog.licences import Commerce, licence_named, licence_of_text
from adapterhub.errors import AdapterHubError, UnsatisfiedError
from adapterhub.settings import Settings
from adapterhub.spec.manifest import CARD_FILE, Manifest
from adapterhub.spec.report import Finding, Severity

DATA_LICENCES = "data_licenses"
# A header is short; what follows it may be anything.
_CARD_BYTES = 1 << 18
_TEXT_BYTES = 1 << 12
_TEXT_NAMES = re.compile(r"(licen[sc]e|copying|terms_of_use)([._-].*)?", re.IGNORECASE)
# The one line of a header that matters here, and the list that may follow it. Cards in the wild break YAML's rules in
# other lines (duplicate keys, tabs), which is no reason to overlook their licence.
_FIELD = r"^{}:[ \t]*([^\n]*)\n((?:[ \t]*-[ \t]+[^\n]*\n)*)"
_INSTALL_SILENT = ("ADP606",)


def licence_of_card(text: str) -> str | None:
    """Return what the header of a model card says of its licence, in lower case; None where it says none or several."""
    text = text.replace("\r\n", "\n")
    header = text[4 : text.index("\n---", 3) + 1] if text.startswith("---\n") and "\n---" in text[3:] else ""
    said = _field(header, "license")
    return _field(header, "license_name") or said if said in ("other", "unknown") else said


def _field(header: str, name: str) -> str | None:
    match = re.search(_FIELD.format(name), header, re.MULTILINE)
    if match is None:
        return None
    inline = re.sub(r"\s+#.*$", "", match[1]).strip()
    if inline.startswith("[") and inline.endswith("]"):
        values = inline[1:-1].split(",")
    else:
        values = [inline] if inline else [line.strip()[1:] for line in match[2].splitlines()]
    plain = [value.strip().strip("\"'").strip().casefold() for value in values]
    return plain[0][:100] if len(plain) == 1 and plain[0] else None


def licence_of_folder(folder: Path) -> str | None:
    """Return the licence of a model's folder by its card, else by the heading of its LICENSE file."""
    card = _start(folder / CARD_FILE, _CARD_BYTES)
    said = None if card is None else licence_of_card(card)
    if said is not None and licence_named(said) is not None:
        return said
    try:
        names = sorted(path.name for path in folder.iterdir() if _TEXT_NAMES.fullmatch(path.name))
    except OSError:
        names = []
    for name in names:
        text = _start(folder / name, _TEXT_BYTES)
        row = None if text is None else licence_of_text(text)
        if row is not None:
            return row.id
    return said


def _start(path: Path, limit: int) -> str | None:
    """Read the beginning of a text file; what cannot be read says nothing."""
    try:
        with path.open("rb") as stream:
            return stream.read(limit).decode("utf-8", "replace")
    except OSError:
        return None


def base_licence_of(id: str, settings: Settings) -> str | None:
    """Return the licence of a base model of this machine, or of what it was converted from; None where nothing says.

    The network is not asked: a base that is not here has no card to read.
    """
    store = BaseStore(settings)
    seen: set[str] = set()
    while id not in seen:
        seen.add(id)
        try:
            record = store.find(id)
        except AdapterHubError:
            return None
        if record is None:
            return None
        said, origin = licence_of_folder(record.path), record.ref.derived_from
        if said is not None or origin is None or origin.id is None:
            return said
        id = origin.id
    return None


def data_licences_of(manifest: Manifest) -> Mapping[str, str | None]:
    """Return the licences of the data by name, as `extra.data_licenses` of the recipe and manifest has them."""
    said = manifest.extra.get(DATA_LICENCES)
    if isinstance(said, str):
        said = (said,)
    if isinstance(said, Mapping):
        return {name: value if isinstance(value, str) else None for name, value in said.items()}
    if isinstance(said, tuple):
        return {value: value for value in said if isinstance(value, str)}
    return {}


def publish_findings(
    manifest: Manifest,
    base_licence: str | None,
    data_licences: Mapping[str, str | None] | None = None,
    *,
    name: str | None = None,
    card: str | None = None,
) -> tuple[Finding, ...]:
    """Return what the licence of a package promises beyond its base's and its data's.

    data_licences: those that the manifest records when None. name: what it is published as. card: its model card.
    """
    return compare_licences(
        Subject(
            name=name or manifest.name,
            licence=manifest.license,
            base=manifest.base_model.id,
            # A stack holds no weights, so nothing in it is derived from a base.
            base_licence=base_licence if manifest.kind == "adapter" else None,
            data=data_licences_of(manifest) if data_licences is None else data_licences,
            card=card,
        )
    )


def install_warnings(manifest: Manifest, base_licence: str | None) -> tuple[str, ...]:
    """Return what a person who installs a package should know of its licence, a line each."""
    findings = publish_findings(manifest, base_licence)
    lines = [f"{item.message} ({item.code})" for item in findings if item.code not in _INSTALL_SILENT]
    if manifest.derived and manifest.license is None:
        # A manifest that is made up from the files names none, whatever the card says, which is not fetched.
        lines = ["it brings no manifest, so its licence was not looked at: its model card tells"]
    for whose, text in (("it", manifest.license), (f"its base {manifest.base_model.id}", base_licence)):
        row = licence_named(text)
        if row is not None and row.commerce is Commerce.NO:
            lines.append(f"{whose} is under {row.id}, which allows no commercial use ({row.url})")
    return tuple(f"{manifest.name}: {line}" for line in dict.fromkeys(lines))


def refuse_at_publish(findings: Sequence[Finding], acknowledged: bool) -> None:
    """Refuse to publish under a licence that promises too much, unless the person says that they know.

    Raises:
        UnsatisfiedError: there is an error among the findings, and it was not acknowledged.
    """
    errors = [item for item in findings if item.severity is Severity.ERROR]
    if not errors or acknowledged:
        return
    raise UnsatisfiedError(
        f"not published: {errors[0].message}",
        where=errors[0].where,
        code=errors[0].code,
        details=tuple(f"{item.code} {item.where}: {item.message}" for item in errors[1:]),
        hint=f"{errors[0].hint}; if you know that it is in order (a table says this, no lawyer): --acknowledge-licence",
    )
