"""`adapt publish`: a package, once it is found sound, into a registry under its full name, and read back from there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapterhub.catalog.combinations import COMBINATIONS, rule_of
from adapterhub.documents import MAX_AUTHORED_BYTES, edit_card, read_bytes
from adapterhub.environment import Environment
from adapterhub.errors import (
    SEVERITY_ORDER,
    AdapterHubError,
    IntegrityError,
    InvalidFileError,
    LocalIOError,
    NetworkError,
    UnsatisfiedError,
    UsageError,
)
from adapterhub.ops._check_values import with_values
from adapterhub.ops._licences import base_licence_of, publish_findings, refuse_at_publish
from adapterhub.ops._refuse import refuse_faults
from adapterhub.ops.validate import check_package
from adapterhub.package import Package, open_package
from adapterhub.progress import SILENT, Progress
from adapterhub.registry import HUB, Published, Registry
from adapterhub.settings import Settings
from adapterhub.spec._decode import suggest
from adapterhub.spec.digest import Digest
from adapterhub.spec.manifest import CARD_FILE, MANIFEST_FILE, Manifest
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.refs import PackageName, PackageRef
from adapterhub.spec.report import Report
from adapterhub.spec.stack import DEFAULT_COMBINATION, Parameters
from adapterhub.store import Store

Faults = list[AdapterHubError]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishPlan(Plan):
    """What will be published, as what, and where; `report` is what validation found, without errors."""

    package: Package
    ref: PackageRef
    registry: Registry
    report: Report

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what it is published as."""
        manifest = self.package.manifest
        return (
            ("package", str(self.ref)),
            ("manifest", str(manifest.digest)),
            ("base model", manifest.base_model.id),
            ("license", manifest.license or "none"),
            ("registry", self.registry.location),
        )


def plan_publish(
    folder: Path,
    name: str,
    *,
    environment: Environment,
    registry: str | None = None,
    acknowledge_licence: bool = False,
    cwd: Path | None = None,
) -> PublishPlan:
    """Validate a package and decide what publishing it as `org/name` would do; every fault is reported, not the first.

    acknowledge_licence: the person knows what the licence promises beyond those of base and data.

    Raises:
        UsageError: the name is malformed. UnsatisfiedError: the package brings no manifest, that version is there with
            other bytes, or the licence is not in order. AuthorizationError: the token may not write there.
        NetworkError: the registry does not answer. AdapterHubError: validation found errors; the worst one decides.
    """
    where = cwd if cwd is not None else Path.cwd()
    faults: Faults = []
    warnings: list[str] = []
    target = package = report = opened = None
    state = False
    with _collected(faults):
        target = _parse_name(name)
    with _collected(faults):
        package = _open(where / folder, str(folder))
    if package is not None:
        report = _check(package, target, str(folder), environment.settings, faults)
        warnings += [f"{item.where}: {item.message}" for item in report.warnings] if report else []
        warnings += _check_licence(package, target, environment.settings, acknowledge_licence, faults)
    if target is not None:
        with _collected(faults):
            opened = environment.registry_of(target, given=registry, cwd=where)
            if package is not None:
                if opened.location == HUB:
                    _check_card(package.path / CARD_FILE, faults)
                state = opened.published(PackageRef(target, package.manifest.version), package.manifest)
    _refuse(faults, str(folder))
    assert target is not None and package is not None and opened is not None and report is not None  # else: a fault
    ref = PackageRef(target, package.manifest.version)
    return PublishPlan(
        verb="publish",
        steps=_steps(package, ref, opened, state),
        warnings=tuple(warnings),
        package=package,
        ref=ref,
        registry=opened,
        report=report,
    )


@contextmanager
def _collected(faults: Faults) -> Iterator[None]:
    """Keep what goes wrong inside the block, so that what comes after it is looked at too."""
    try:
        yield
    except AdapterHubError as error:
        faults.append(error)


def _refuse(faults: Faults, subject: str) -> None:
    """Raise the one fault, or an error of the worst one's kind that names them all."""
    if len(faults) == 1:
        raise faults[0]
    if faults:
        worst = min(faults, key=lambda fault: SEVERITY_ORDER.index(fault.exit_code))
        told = [line for fault in faults for line in (_told(fault), *fault.details)]
        raise type(worst)(f"not published: {len(faults)} reasons", where=subject, hint=worst.hint, details=tuple(told))


def _told(fault: AdapterHubError) -> str:
    return f"{fault.where}: {fault.message}" if fault.where else fault.message


def _parse_name(name: str) -> PackageName:
    try:
        return PackageName.parse(name)
    except ValueError as error:
        raise UsageError(str(error), where="--to", hint="adapt publish DIR --to org/name") from error


def _open(path: Path, shown: str) -> Package:
    package = open_package(path)
    if package.derived or package.manifest.derived:
        raise UnsatisfiedError(
            "has no manifest, so it has no version to publish" if package.derived else "has no version to publish",
            where=shown,
            hint=f"write one: adapt pack {shown}",
        )
    return package


def _check(
    package: Package, target: PackageName | None, subject: str, settings: Settings, faults: Faults
) -> Report | None:
    """Validate the package; return the report if there is one."""
    with _collected(faults):
        report = check_package(package.path, settings=settings, subject=subject)
        if package.manifest.kind == "stack":
            _check_stack(package.manifest, target, f"{subject}: {MANIFEST_FILE}", faults)
        elif report.ok:  # only sound files are read
            report = with_values(report, package.path)
        with _collected(faults):
            count = f"{len(report.errors)} faults" if len(report.errors) > 1 else "a fault"
            refuse_faults(report, f"not published: validation found {count}", hint=f"adapt validate {subject}")
        return report
    return None


def _check_stack(manifest: Manifest, target: PackageName | None, where: str, faults: Faults) -> None:
    """Check what only a stack has: how its members are combined, and that each is one."""
    combination = manifest.combination
    if combination is not None and combination not in COMBINATIONS:
        near = suggest(combination, COMBINATIONS)
        faults.append(
            InvalidFileError(
                f"combination: {combination!r} is none that is known",
                where=where,
                hint=f"did you mean {near}?" if near else f"known: {', '.join(COMBINATIONS)}",
            )
        )
    elif combination is not None or manifest.parameters != Parameters():
        try:
            rule_of(combination or DEFAULT_COMBINATION, manifest.parameters)
        except UsageError as error:
            told = "; ".join(error.details) or error.message
            faults.append(InvalidFileError(f"parameters: {told}", where=where, hint="docs/stacking.md has the rules"))
    names = [item.requirement.name.key for item in manifest.requires]
    for key in sorted({key for key in names if names.count(key) > 1}):
        faults.append(InvalidFileError(f"requires: {key} comes twice", where=where, hint="give it one weight"))
    if target is not None and target.key in names:
        faults.append(InvalidFileError("requires: a stack cannot ask for itself", where=where, hint="take it out"))
    for item in manifest.requires:
        if item.requirement.revision is not None:
            faults.append(
                InvalidFileError(
                    f"requires: {item.requirement} names a revision, and a published stack asks for versions",
                    where=where,
                    hint=f"write a range: {item.requirement.name}>=1.0",
                )
            )


def _check_licence(
    package: Package, target: PackageName | None, settings: Settings, acknowledged: bool, faults: Faults
) -> list[str]:
    """Hold the licence against those of base and data; return what is worth a warning."""
    card = package.path / CARD_FILE
    with _collected(faults):
        findings = publish_findings(
            package.manifest,
            base_licence_of(package.manifest.base_model.id, settings),
            name=target.name if target is not None else None,
            card=read_bytes(card, limit=MAX_AUTHORED_BYTES).decode("utf-8", "replace") if card.is_file() else None,
        )
        with _collected(faults):
            refuse_at_publish(findings, acknowledged)
            return [f"{item.where}: {item.message} ({item.code})" for item in findings]
    return []


def _check_card(card: Path, faults: Faults) -> None:
    """Read the header of the card as publishing will, which writes into it."""
    if card.is_file():
        with _collected(faults):
            text = read_bytes(card, limit=MAX_AUTHORED_BYTES).decode("utf-8", "replace")
            edit_card(text, lambda _: {}, where=str(card))


def _steps(package: Package, ref: PackageRef, registry: Registry, is_there: bool) -> tuple[Step, ...]:
    if is_there:
        return (Step(action="keep", subject=str(ref), detail="published already, with the same bytes"),)
    size = sum(entry.size for entry in package.manifest.files)
    return (Step(action="write", subject=str(ref), detail=f"to {registry.location}", size=size),)


def publish(plan: PublishPlan, *, progress: Progress = SILENT) -> Published:
    """Do what the plan says, then install what was published into a scratch store and compare it with the package.

    Raises:
        UnsatisfiedError: somebody published that version with other bytes meanwhile. IntegrityError: the files changed
            since they were validated, or the registry gives back something else. NetworkError: no answer.
            LocalIOError: there is no room for what is read back.
    """
    done = plan.registry.publish(plan.package, plan.ref.name, progress=progress)
    try:
        _read_back(plan, entirely=done.created, progress=progress)
    except (NetworkError, LocalIOError) as error:
        raise type(error)(
            f"{plan.ref} is published, and could not be read back: {error.message}",
            where=error.where,
            hint=f"see that it installs: adapt install {plan.ref}",
        ) from error
    except (IntegrityError, InvalidFileError, UnsatisfiedError) as error:
        raise IntegrityError(
            f"{plan.ref} is published, and the registry gives back something else: {error.message}",
            where=error.where,
            hint=f"yank it (adapt yank {plan.ref}) and publish a higher version",
            details=error.details,
        ) from error
    return done


def _read_back(plan: PublishPlan, *, entirely: bool, progress: Progress) -> None:
    """Ask the registry for what it now has under the ref; `entirely` fetches every byte, into a store of its own.

    Raises:
        IntegrityError: it is not the package.
    """
    manifest = plan.package.manifest
    description = plan.registry.describe(plan.ref)
    found = None if description.manifest_bytes is None else Digest.of(description.manifest_bytes)
    if found != manifest.digest:
        raise IntegrityError(f"the manifest is {found}, not {manifest.digest}", where=str(plan.ref))
    if not entirely:
        return
    with tempfile.TemporaryDirectory(prefix="adapt-publish-") as scratch:
        store = Store(Path(scratch) / "store")
        stored = plan.registry.fetch(description, store, progress=progress)
        if stored.files != manifest.files or store.missing(manifest.files):
            raise IntegrityError("not every file came back", where=str(plan.ref))
