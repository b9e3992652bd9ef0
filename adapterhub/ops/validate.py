"""Check that a package is sound and fits its base model, from headers, config and manifest; no weight is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.bases import BaseStore
from adapterhub.errors import AdapterHubError, IntegrityError, UnsatisfiedError, UsageError
from adapterhub.ops._check_base import Missing, check_base
from adapterhub.ops._check_config import Contents, check_files_of, check_settings, read_contents
from adapterhub.ops._check_document import check_document, is_document
from adapterhub.ops._check_values import values_open, with_values
from adapterhub.ops._check_weights import check_weights
from adapterhub.ops._checklist import Checklist
from adapterhub.package import base_of_config, require_folder
from adapterhub.settings import Settings, read_settings
from adapterhub.spec.report import Report

if TYPE_CHECKING:
    from adapterhub.bases import BaseRecord


def validate(
    package: str | Path,
    *,
    base: str | None = None,
    deep: bool = False,
    meta: bool = False,
    settings: Settings | None = None,
    cwd: Path | None = None,
) -> Report:
    """Check a package by its folder, or by the alias or name it is installed under; report every fault.

    A single document (a recipe, adapters.yaml, adapters.lock, a manifest) is checked against its format.

    base: the id of a base in the base store; by default the one that the package names, where it is there. deep: read
    every weight too, for what headers cannot tell. meta: build the base without its weights and put the adapter on it
    as PEFT would (imports torch), for what only a built model can tell. What could not be answered is reported as not
    checked.

    Raises:
        UnsatisfiedError: there is no such package, or no such base in the store. UsageError: the word names nothing.
    """
    settings = settings if settings is not None else read_settings()
    document = (cwd if cwd is not None else Path.cwd()) / Path(package).expanduser()
    if is_document(document):
        return check_document(document, subject=str(package))
    folder = find_folder(package, settings=settings, cwd=cwd)
    record = BaseStore(settings).get(base) if base is not None else None
    report = check_package(folder, base=record, meta=meta, settings=settings, subject=str(package))
    return with_values(report, folder) if deep and values_open(report) else report


def check_package(
    folder: Path,
    *,
    base: BaseRecord | None = None,
    meta: bool = False,
    settings: Settings | None = None,
    subject: str | None = None,
) -> Report:
    """Check a package folder against a base; without one, against the base it names, where that is in the store.

    meta: on a model of shapes too, which imports torch.

    Raises:
        UnsatisfiedError: the folder is no package.
    """
    require_folder(folder)
    log = Checklist()
    contents = read_contents(folder, log)
    check_files_of(contents, log)
    check_settings(contents, log)
    weights = check_weights(contents, log)
    if contents.manifest is None or contents.manifest.kind == "adapter":
        known = base if base is not None else _own_base(contents, settings)
        check_base(contents, weights, known, log)
        if meta:
            from adapterhub.ops._check_meta import check_meta

            check_meta(contents, known, log)
    return log.report(subject if subject is not None else str(folder))


def _own_base(contents: Contents, settings: Settings | None) -> BaseRecord | Missing:
    """Return the base that the package names, where it is in the store."""
    try:
        named = contents.manifest.base_model if contents.manifest else base_of_config(contents.config or {})[0]
    except AdapterHubError:
        return Missing(reason="the package names no base model", hint="name it: adapt validate PACKAGE --base NAME")
    try:
        return BaseStore(settings if settings is not None else read_settings()).get(named.id)
    except IntegrityError as error:
        return Missing(reason=error.message, hint=error.hint)
    except UnsatisfiedError:
        return Missing(
            reason=f"the base {named.id} is not here",
            hint=f"adapt base add {named.id} --from FOLDER, or name one that is here with --base",
        )


def find_folder(package: str | Path, *, settings: Settings, cwd: Path | None = None) -> Path:
    """Return the folder of a package: a path as it stands, else the installed package of that alias or name.

    Raises:
        UsageError: the word names nothing, or a folder here and an installed package both.
        UnsatisfiedError: there is no such folder.
    """
    here = cwd if cwd is not None else Path.cwd()
    word = str(package)
    place = here / Path(word).expanduser()
    if isinstance(package, Path) or Path(word).is_absolute() or word.startswith((".", "~")):
        return place
    # Registries and all that an environment knows of are not needed for a plain path.
    from adapterhub.environment import find_environment

    environment = find_environment(here, settings)
    if not place.is_dir():
        if os.sep in word and word.count("/") != 1:
            raise UnsatisfiedError("no such folder", where=word, hint="adapt list shows what is installed")
        return environment.find(word, cwd=here).folder
    if word in environment.words():
        raise UsageError(
            f"{word!r} is a folder here and an installed adapter",
            hint=f"for the folder write ./{word}; for the adapter {environment.adapter_path(word)}",
        )
    return place
