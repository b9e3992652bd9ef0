"""`adapt publish`: a package, once it is found sound, into a registry under its full name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapterhub.environment import Environment
from adapterhub.errors import UnsatisfiedError, UsageError
from adapterhub.ops._check_values import with_values
from adapterhub.ops._refuse import refuse_faults
from adapterhub.ops.validate import check_package
from adapterhub.package import Package, open_package
from adapterhub.progress import SILENT, Progress
from adapterhub.registry import Published, Registry
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.refs import PackageName, PackageRef
from adapterhub.spec.report import Report


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
            ("registry", self.registry.location),
        )


def plan_publish(
    folder: Path, name: str, *, environment: Environment, registry: str | None = None, cwd: Path | None = None
) -> PublishPlan:
    """Validate a package and decide what publishing it as `org/name` would do.

    Raises:
        UsageError: the name is malformed, or no registry is known. UnsatisfiedError: the package brings no manifest, or
            that version is there with other bytes. AdapterHubError: validation found errors; the worst one decides.
    """
    where = cwd if cwd is not None else Path.cwd()
    try:
        target = PackageName.parse(name)
    except ValueError as error:
        raise UsageError(str(error), where="--to", hint="adapt publish DIR --to org/name") from error
    package = open_package(where / folder)
    if package.derived:
        raise UnsatisfiedError(
            "has no manifest, so it has no version to publish",
            where=str(folder),
            hint=f"write one: adapt pack {folder}",
        )
    report = check_package(package.path, settings=environment.settings, subject=str(folder))
    if report.ok:  # only sound files are read
        report = with_values(report, package.path)
    faults = f"{len(report.errors)} faults" if len(report.errors) > 1 else "a fault"
    refuse_faults(report, f"not published: validation found {faults}", hint=f"adapt validate {folder}")
    opened = environment.registry_of(target, given=registry, cwd=where)
    ref = PackageRef(target, package.manifest.version)
    return PublishPlan(
        verb="publish",
        steps=_steps(package, ref, opened),
        warnings=tuple(f"{item.where}: {item.message}" for item in report.warnings),
        package=package,
        ref=ref,
        registry=opened,
        report=report,
    )


def _steps(package: Package, ref: PackageRef, registry: Registry) -> tuple[Step, ...]:
    state = registry.published(ref, package.manifest)
    if state:
        return (Step(action="keep", subject=str(ref), detail="published already, with the same bytes"),)
    size = sum(entry.size for entry in package.manifest.files)
    return (Step(action="write", subject=str(ref), detail=f"to {registry.location}", size=size),)


def publish(plan: PublishPlan, *, progress: Progress = SILENT) -> Published:
    """Do what the plan says, then read back what was written and compare it with the manifest.

    Raises:
        UnsatisfiedError: somebody published that version with other bytes meanwhile. IntegrityError: the files changed
            since they were validated, or what was written is not what was read.
    """
    return plan.registry.publish(plan.package, plan.ref.name, progress=progress)
