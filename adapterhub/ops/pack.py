"""Write the manifest of a plain PEFT folder, or write it again after the folder changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from adapterhub.bases import BaseStore
from adapterhub.documents import parse_yaml, read_bytes, read_manifest
from adapterhub.environment import Environment
from adapterhub.errors import AdapterHubError, InvalidFileError, UsageError
from adapterhub.ops._facts import Facts
from adapterhub.ops._manifest_rows import combination_told
from adapterhub.ops._pack_stack import stack_manifest
from adapterhub.package import (
    base_id_of,
    derive_manifest,
    hash_payload,
    payload_names,
    read_config,
    require_folder,
    write_manifest,
)
from adapterhub.settings import Settings, read_settings
from adapterhub.spec.base_model import BaseModelRef, check_base_id, parse_base
from adapterhub.spec.manifest import CARD_FILE, MANIFEST_FILE, WORD_PATTERN, Manifest
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.provenance import PROVENANCE_FILE
from adapterhub.spec.refs import check_part, parse_version

T = TypeVar("T")
_CARD_LIMIT = 1 << 20
# Tags that PEFT, transformers, trl and adapterhub put on every card they write: they say nothing about this adapter.
_EMPTY_TAGS = frozenset(
    {"adapter", "adapterhub", "generated_from_trainer", "lora", "peft", "sft", "transformers", "trl"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackPlan(Plan):
    """The manifest that will stand in the folder."""

    folder: Path
    manifest: Manifest

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what the manifest says first."""
        value = self.manifest
        if value.kind == "stack":
            return (
                ("package", f"{value.name} {value.version}"),
                ("base", value.base_model.id),
                ("stack", ", ".join(f"{item.requirement} × {item.weight:g}" for item in value.requires)),
                ("combination", combination_told(value)),
                ("license", value.license or "none"),
            )
        return (
            ("package", f"{value.name} {value.version}"),
            ("base", value.base_model.id + ("" if value.base_model.fingerprints.empty else " (fingerprints recorded)")),
            ("method", value.method or "none"),
            ("task", value.task or "none"),
            ("license", value.license or "none"),
            ("files", ", ".join(entry.path for entry in value.files)),
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data, with the manifest whole."""
        # super() without arguments does not work in a dataclass with slots.
        return Plan.to_data(self) | {"folder": str(self.folder), "manifest": self.manifest.to_data()}


def plan_pack(
    folder: Path, facts: Facts | None = None, *, force: bool = False, settings: Settings | None = None
) -> PackPlan:
    """Work out a folder's manifest from its files, its card's header and `facts`, each going above the one before.

    A manifest that is there is the starting point, so that what no file says is kept; one that would change is
    replaced only with `force`.

    Raises:
        UnsatisfiedError: no such folder, no config or weights, or no base is named anywhere.
        UsageError: a fact breaks the format's rules, or a manifest is there that says otherwise.
        InvalidFileError: the weights are a pickle, the config names no known method, or the manifest is broken.
    """
    facts = facts if facts is not None else Facts()
    settings = settings if settings is not None else read_settings()
    require_folder(folder)
    before = _present(folder, force=force)
    if before is not None and before.kind != "adapter":
        raise UsageError("is a stack, which has no files to take a manifest from", where=str(folder / MANIFEST_FILE))
    warnings: list[str] = []
    card = _read_card(folder, warnings)
    base = _base(folder, facts, card, before, settings, warnings)
    derived = derive_manifest(folder, base=base)
    start = _refreshed(folder, before, derived) if before is not None else _with_card(derived, card)
    manifest = _said(start, facts, where=str(folder / MANIFEST_FILE))
    if before is not None:
        _compare(folder, before, manifest, force=force, warnings=warnings)
    if manifest.base_model.fingerprints.empty:
        warnings.append(
            f"no fingerprints of {manifest.base_model.id} are recorded, so a wrong base cannot be told: "
            "add them with --base, for a base of `adapt base list`"
        )
    same = before is not None and before.canonical_bytes() == manifest.canonical_bytes()
    step = Step(
        action="keep" if same else "write",
        subject=str(folder / MANIFEST_FILE),
        detail=f"{manifest.name} {manifest.version}",
        size=None if same else len(manifest.canonical_bytes()),
    )
    return PackPlan(verb="pack", steps=(step,), warnings=tuple(warnings), folder=folder, manifest=manifest)


def plan_pack_stack(
    folder: Path, word: str, facts: Facts, *, environment: Environment, force: bool = False
) -> PackPlan:
    """Work out the manifest of a stack package: the stack that adapters.yaml calls `word`; the folder may be absent.

    Raises:
        UsageError: there is no such stack, no version is given, or the folder holds something else.
        UnsatisfiedError: a member is not installed. IncompatibleError: the members have different bases.
    """
    path = folder / MANIFEST_FILE
    manifest = Manifest.from_data(stack_manifest(word, facts, environment=environment).to_data(), where=str(path))
    before = _present(folder, force=force)
    if before is not None and before.kind != "stack":
        raise UsageError("is an adapter's", where=str(path), hint="choose another folder for the stack")
    if before is not None and before != manifest and not force:
        raise UsageError(
            "is there and says otherwise", where=str(path), hint=f"replace it: adapt pack {folder} --force"
        )
    same = before == manifest
    step = Step(action="keep" if same else "write", subject=str(path), detail=f"{manifest.name} {manifest.version}")
    return PackPlan(verb="pack", steps=(step,), folder=folder, manifest=manifest)


def pack(plan: PackPlan) -> Manifest:
    """Write the planned manifest; one that is there and says the same is left alone.

    Raises:
        LocalIOError: the disk said no.
    """
    if plan.changes:
        write_manifest(plan.folder, plan.manifest)
    return plan.manifest


def _present(folder: Path, *, force: bool) -> Manifest | None:
    """Return the manifest that is there; a broken one is as good as none when it may be replaced."""
    if not (folder / MANIFEST_FILE).exists():
        return None
    try:
        return read_manifest(folder)
    except InvalidFileError as error:
        if force:
            return None
        raise InvalidFileError(
            error.message,
            where=error.where,
            details=error.details,
            hint=f"correct it, or write a new one: adapt pack {folder} --force",
        ) from error


def _refreshed(folder: Path, before: Manifest, derived: Manifest) -> Manifest:
    """Return a manifest brought up to date with the folder's files: what they say is theirs, the rest stays."""
    listed = {entry.path for entry in before.files if (folder / entry.path).exists()}
    return replace(
        before,
        version=derived.version if before.derived else before.version,
        base_model=derived.base_model,
        method=derived.method,
        task=derived.task,
        hyperparameters=derived.hyperparameters,
        files=hash_payload(folder, listed | set(payload_names(folder))),
    )


def _compare(folder: Path, before: Manifest, after: Manifest, *, force: bool, warnings: list[str]) -> None:
    """Refuse to replace a manifest unasked; say what replacing it leads to."""
    if before == after:
        return
    changed = [item.name for item in fields(Manifest) if getattr(before, item.name) != getattr(after, item.name)]
    if not force:
        raise UsageError(
            f"is there and says otherwise: {', '.join(changed)}",
            where=str(folder / MANIFEST_FILE),
            hint=f"replace it: adapt pack {folder} --force",
        )
    if before.version == after.version and not before.derived:
        warnings.append(
            f"the version stays {after.version}: registries refuse it with other content, so give --version"
        )
    if (folder / PROVENANCE_FILE).exists():
        warnings.append(f"{PROVENANCE_FILE} is about the manifest that is being replaced: delete it")


def _base(
    folder: Path,
    facts: Facts,
    card: Mapping[str, Any],
    before: Manifest | None,
    settings: Settings,
    warnings: list[str],
) -> BaseModelRef | None:
    """Return the base model that was said, else the recorded one, else the card's; None leaves it to the config.

    The card is asked only where the config names no base, or a local path.
    """
    if facts.base is not None:
        name, revision = _parsed(facts.base, parse_base, "--base")
        record = BaseStore(settings).find(name)
        if record is None:
            return BaseModelRef(id=name, revision=revision)
        if revision is not None and revision != record.ref.revision:
            raise UsageError(
                f"{name} is here at revision {record.ref.revision}, not {revision}",
                where="--base",
                hint=f"write --base {name}",
            )
        # get() looks at the folder, so that fingerprints of a base that changed since are not recorded.
        return BaseStore(settings).get(name).ref
    if before is not None:
        return before.base_model
    raw = read_config(folder).get("base_model_name_or_path")
    if isinstance(raw, str) and raw and base_id_of(raw) == raw:
        return None
    named = card.get("base_model")
    named = named[0] if isinstance(named, list) and len(named) == 1 else named
    if isinstance(named, str):
        try:
            return BaseModelRef(id=check_base_id(named))
        except ValueError:
            warnings.append(f"{CARD_FILE} names the base {named!r}, which is no id")
    return None


def _read_card(folder: Path, warnings: list[str]) -> Mapping[str, Any]:
    """Read the header of a model card (https://huggingface.co/docs/hub/model-cards); an absent one is empty."""
    path = folder / CARD_FILE
    if not path.is_file():
        return {}
    try:
        text = read_bytes(path, limit=_CARD_LIMIT).decode("utf-8", "replace").replace("\r\n", "\n")
        if not text.startswith("---\n") or "\n---" not in text[3:]:
            return {}
        header = parse_yaml(text[4 : text.index("\n---", 3)].encode(), where=str(path))
    except AdapterHubError as error:
        warnings.append(f"the header of {CARD_FILE} is left out: {error.message}")
        return {}
    return header if isinstance(header, Mapping) else {}


def _with_card(manifest: Manifest, card: Mapping[str, Any]) -> Manifest:
    """Return a manifest with what a card's header says of license, languages and keywords."""
    tags = [tag for tag in _texts(card.get("tags")) if re.fullmatch(WORD_PATTERN, tag) and tag not in _EMPTY_TAGS]
    license_ = card.get("license")
    return replace(
        manifest,
        license=license_ if isinstance(license_, str) and license_ not in ("other", "unknown") else None,
        languages=tuple(tag for tag in _texts(card.get("language")) if re.fullmatch(r"[A-Za-z0-9-]{2,35}", tag)),
        keywords=tuple(tags),
    )


def _texts(value: object) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str)]


def _said(manifest: Manifest, facts: Facts, *, where: str) -> Manifest:
    """Return a manifest with what a person said, checked by the format's own rules."""
    changes: dict[str, Any] = {
        name: getattr(facts, name)
        for name in ("summary", "license", "keywords", "domains", "languages", "labels", "quantization")
        if getattr(facts, name)
    }
    if facts.name is not None:
        changes["name"] = _parsed(facts.name, lambda text: check_part(text, "a package's name"), "--name")
    if facts.version is not None:
        changes["version"] = _parsed(facts.version, parse_version, "--version")
    return Manifest.from_data(replace(manifest, **changes).to_data(), where=where)


def _parsed(text: str, parser: Callable[[str], T], option: str) -> T:
    try:
        return parser(text)
    except ValueError as error:
        raise UsageError(str(error), where=option) from error
