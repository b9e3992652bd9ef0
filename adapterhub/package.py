"""A package as a folder: its manifest read, or derived from a plain PEFT folder that brings none; its payload hashed.

What counts as payload of a plain folder is a fixed list of names (PAYLOAD_FILES): config, weights, tokenizer. A
manifest lists its own.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from packaging.version import Version

from adapterhub.catalog.checks import CHECKS
from adapterhub.catalog.methods import method_of_config
from adapterhub.documents import read_adapter_config, read_manifest
from adapterhub.errors import IntegrityError, InvalidFileError, UnsatisfiedError
from adapterhub.files import local_io, write_atomic
from adapterhub.spec._decode import Frozen, freeze
from adapterhub.spec.base_model import BaseModelRef, check_base_id
from adapterhub.spec.digest import Digest, FileEntry, canonical_json, check_relative_path, digest_file
from adapterhub.spec.manifest import (
    CONFIG_FILE,
    DERIVED_VERSION,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    Manifest,
    Origin,
)
from adapterhub.spec.refs import REVISION_PATTERN, check_part
from adapterhub.spec.report import Finding
from adapterhub.weights import Header, read_header, sniff

PAYLOAD_FILES = (
    CONFIG_FILE,
    WEIGHTS_FILE,
    # What tokenizers of transformers save; PEFT's users put them beside the adapter.
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
# Unpickled by whoever loads them, which runs the code they carry; never part of a payload.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
PICKLED_WEIGHTS = "adapter_model.bin"
# Keys of adapter_config.json that say what it is about, not how the method is set.
BOOKKEEPING = frozenset(
    (
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "peft_type",
        "peft_version",
        "revision",
        "task_type",
    )
)

_EMPTY: Mapping[str, Frozen] = MappingProxyType({})
_HUB_CACHE = re.compile(r"models--(.+?)(?:[/\\]|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package that lies in a folder.

    manifest: what it says, or what was derived (`derived`) because there is none. config: adapter_config.json as PEFT
    wrote it, empty for a stack. notes: what a person may want to know about how it was read.
    """

    path: Path
    manifest: Manifest
    derived: bool = False
    config: Mapping[str, Frozen] = field(default_factory=lambda: _EMPTY)
    notes: tuple[str, ...] = ()

    @property
    def weights(self) -> Path:
        """The file of weights."""
        return self.path / WEIGHTS_FILE


def open_package(path: Path) -> Package:
    """Open a package folder; a plain PEFT folder without a manifest gets a derived one (`0.0.0+g<12 hex>`).

    Nothing is verified against the manifest's digests here (`check_payload`), and no tensor is read.

    Raises:
        UnsatisfiedError: there is no such folder, or neither a manifest nor an adapter in it.
        InvalidFileError: the manifest or config breaks its format, the weights are a pickle, a file is no regular one.
    """
    require_folder(path)
    if (path / MANIFEST_FILE).exists():
        manifest = read_manifest(path)
        refuse_pickles(path, (entry.path for entry in manifest.files))
        config = read_config(path) if manifest.kind == "adapter" else _EMPTY
        return Package(path=path, manifest=manifest, config=config)
    config = read_config(path)
    manifest, notes = _derive(path, config)
    return Package(path=path, manifest=manifest, derived=True, config=config, notes=notes)


def require_folder(path: Path) -> None:
    """Check that a path is a folder that could be a package.

    Raises:
        UnsatisfiedError: it is not; the hint says what to name instead.
    """
    if path.is_dir():
        if (path / MANIFEST_FILE).exists() or (path / CONFIG_FILE).exists():
            return
        inner = sorted(item.name for item in path.iterdir() if (item / CONFIG_FILE).is_file())
        hint = f"name the adapter's own folder: {path / inner[0]}" if inner else CHECKS["ADP001"].hint
        raise UnsatisfiedError(f"holds neither {MANIFEST_FILE} nor {CONFIG_FILE}", where=str(path), hint=hint)
    if path.exists():
        raise UnsatisfiedError("is a file, not a folder", where=str(path), hint=f"name its folder: {path.parent}")
    raise UnsatisfiedError("no such folder", where=str(path), hint=CHECKS["ADP001"].hint)


def read_config(folder: Path) -> Mapping[str, Frozen]:
    """Read adapter_config.json as it stands, frozen.

    Raises:
        UnsatisfiedError: there is none. InvalidFileError: it is not a JSON object.
    """
    regular_file(folder, CONFIG_FILE)
    frozen = freeze(read_adapter_config(folder))
    assert isinstance(frozen, Mapping)
    return frozen


def read_tensors(package: Package) -> Header:
    """Read the checked header of the package's weights: names, shapes, dtypes.

    Raises:
        UnsatisfiedError: there are none. InvalidFileError: they are a pickle. IntegrityError: the header is malformed.
    """
    refuse_pickles(package.path, (WEIGHTS_FILE,))
    return read_header(regular_file(package.path, WEIGHTS_FILE))


def refuse_pickles(folder: Path, names: Iterable[str]) -> None:
    """Refuse weights that are a pickle, by name or, whatever the name, by their first bytes.

    Raises:
        InvalidFileError: one is.
    """
    check = CHECKS["ADP002"]
    for name in names:
        path = folder / name
        refuse_pickle_name(name, where=str(path))
        if name.endswith(".safetensors") and path.is_file() and (kind := sniff(path)) in ("pickle", "zip"):
            text = "a pickle" if kind == "pickle" else "a zip of pickles, as torch.save writes"
            raise InvalidFileError(f"is {text}, named .safetensors", where=str(path), hint=check.hint, code=check.code)
    if not (folder / WEIGHTS_FILE).exists() and (folder / PICKLED_WEIGHTS).exists():
        raise InvalidFileError(
            f"has no {WEIGHTS_FILE}, only a pickle",
            where=str(folder / PICKLED_WEIGHTS),
            hint=check.hint,
            code=check.code,
        )


def refuse_pickle_name(name: str, *, where: str) -> None:
    """Refuse a file whose name says that it is a pickle.

    Raises:
        InvalidFileError: it does.
    """
    if name.endswith(PICKLE_SUFFIXES):
        check = CHECKS["ADP002"]
        raise InvalidFileError("is a pickle by its name", where=where, hint=check.hint, code=check.code)


def regular_file(folder: Path, name: str) -> Path:
    """Return the path of a file of a package, which has to be a regular one inside the folder.

    A link is followed within the folder, and from a snapshot of the Hub's cache to its blobs; no other.

    Raises:
        UnsatisfiedError: there is no such file. InvalidFileError: it is something else, or leads out of the folder.
    """
    path = folder / name
    with local_io(path, "read the file"):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            raise UnsatisfiedError("no such file", where=str(path), hint=CHECKS["ADP004"].hint) from None
    if not stat.S_ISREG(mode):
        raise _unsafe(path, "is not a regular file")
    real, root = path.resolve(), folder.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
    if not real.is_relative_to(root) and (blobs is None or real.parent != blobs):
        raise _unsafe(path, "is a link that leads out of the package")
    return path


def _unsafe(path: Path, message: str) -> InvalidFileError:
    check = CHECKS["ADP006"]
    return InvalidFileError(message, where=str(path), hint=check.hint, code=check.code)


def payload_names(folder: Path) -> tuple[str, ...]:
    """Return the names of a plain folder's payload, sorted: those of PAYLOAD_FILES that are there."""
    return tuple(sorted(name for name in PAYLOAD_FILES if (folder / name).exists()))


def hash_payload(folder: Path, names: Iterable[str]) -> tuple[FileEntry, ...]:
    """Hash files of a folder; return their entries, sorted by path.

    Raises:
        UnsatisfiedError: one is not there. InvalidFileError: one is no regular file, or its name is unsafe.
        LocalIOError: one cannot be read.
    """
    entries = []
    for name in names:
        try:
            check_relative_path(name)
        except ValueError as error:
            raise InvalidFileError(str(error), where=str(folder), code="ADP006") from error
        path = regular_file(folder, name)
        with local_io(path, "read the file"):
            digest, size = digest_file(path)
        entries.append(FileEntry(path=name, size=size, digest=digest))
    return tuple(sorted(entries))


def payload_digest(files: Iterable[FileEntry]) -> Digest:
    """Return one digest of a payload: that of the canonical JSON of its sorted entries."""
    return Digest.of(canonical_json([entry.to_data() for entry in sorted(files)]))


def check_payload(package: Package) -> tuple[Finding, ...]:
    """Compare every file that the manifest lists with its recorded size and digest; return all that differ.

    A derived manifest was made from the files themselves, so there is nothing to compare them with: nothing is found.
    """
    return () if package.derived else check_files(package.path, package.manifest.files)


def check_files(folder: Path, files: Iterable[FileEntry]) -> tuple[Finding, ...]:
    """Compare files of a folder with their recorded sizes and digests; return all that differ."""
    findings = []
    for entry in files:
        try:
            path = regular_file(folder, entry.path)
            size = path.stat().st_size
            if size != entry.size:
                findings.append(CHECKS["ADP005"].found(entry.path, f"has {size:,} bytes, {entry.size:,} were recorded"))
                continue
            with local_io(path, "read the file"):
                digest, _ = digest_file(path)
        except UnsatisfiedError:
            findings.append(CHECKS["ADP004"].found(entry.path, "is listed in the manifest and not there"))
            continue
        except InvalidFileError as error:
            findings.append(CHECKS["ADP006"].found(entry.path, error.message))
            continue
        if digest != entry.digest:
            message = f"has the digest {digest.short}…, {entry.digest.short}… was recorded"
            findings.append(CHECKS["ADP005"].found(entry.path, message))
    return tuple(findings)


def require_intact(package: Package) -> None:
    """Refuse a package whose files are not those of its manifest.

    Raises:
        IntegrityError: every file that differs.
    """
    findings = check_payload(package)
    if findings:
        raise IntegrityError(
            f"{len(findings)} of {len(package.manifest.files)} files are not what the manifest says",
            where=str(package.path),
            hint=findings[0].hint,
            code=findings[0].code,
            details=tuple(f"{finding.where}: {finding.message}" for finding in findings),
        )


def derive_manifest(folder: Path, *, base: BaseModelRef | None = None) -> Manifest:
    """Make a manifest from a plain PEFT folder: what its config says, its files hashed, version `0.0.0+g<12 hex>`.

    `base` replaces what the config says about the base model.

    Raises:
        UnsatisfiedError: there is no config or no weights, or the config names no base model and none was given.
        InvalidFileError: the config names no method that PEFT has, or the weights are a pickle.
    """
    return _derive(folder, read_config(folder), base=base)[0]


def _derive(
    folder: Path, config: Mapping[str, Frozen], *, base: BaseModelRef | None = None
) -> tuple[Manifest, tuple[str, ...]]:
    refuse_pickles(folder, (WEIGHTS_FILE,))
    regular_file(folder, WEIGHTS_FILE)
    method_name_of(config, where=str(folder / CONFIG_FILE))
    files = hash_payload(folder, payload_names(folder))
    version = Version(f"{DERIVED_VERSION}+g{payload_digest(files).short}")
    where = str(folder / CONFIG_FILE)
    return derive_from(config, files, name=name_of_folder(folder), version=version, base=base, where=where)


def derive_from(
    config: Mapping[str, Frozen],
    files: tuple[FileEntry, ...],
    *,
    name: str,
    version: Version,
    where: str,
    base: BaseModelRef | None = None,
) -> tuple[Manifest, tuple[str, ...]]:
    """Make a manifest out of an adapter_config.json and the entries of the payload; return it with notes.

    `base` replaces what the config says about the base model. `where` is the config's place, for errors.

    Raises:
        UnsatisfiedError: the config names no base model and none was given.
        InvalidFileError: the config names no method that PEFT has, or breaks the format's own rules.
    """
    method = method_name_of(config, where=where)
    notes = [f"no {MANIFEST_FILE}: derived from {CONFIG_FILE}"]
    if base is None:
        base, note = base_of_config(config, where=where)
        notes += [note] if note else []
    task, peft = config.get("task_type"), config.get("peft_version")
    manifest = Manifest(
        name=name,
        version=version,
        base_model=base,
        method=method,
        task=task if isinstance(task, str) else None,
        hyperparameters=hyperparameters_of(config),
        files=files,
        built_from=Origin(tools=MappingProxyType({"peft": peft} if isinstance(peft, str) else {})),
    )
    # What came from a stranger's config has to pass the format's own rules before anyone relies on it.
    return Manifest.from_data(manifest.to_data(), where=where), tuple(notes)


def method_name_of(config: Mapping[str, Frozen], *, where: str) -> str:
    """Return the catalog's name of the method that a config names.

    Raises:
        InvalidFileError: it names none that PEFT has.
    """
    method = method_of_config(config)
    if method is None:
        check = CHECKS["ADP103" if config.get("peft_type") else "ADP102"]
        raise InvalidFileError(
            f"peft_type {config.get('peft_type')!r} is not known", where=where, hint=check.hint, code=check.code
        )
    return method.name


def hyperparameters_of(config: Mapping[str, Frozen]) -> Mapping[str, Frozen]:
    """Return what a config says about how its method is set, lists of module names sorted.

    For LoRA: the hyperparameters of the method's row, and whatever else is set to something (not null, false or empty).
    """
    method = method_of_config(config)
    # Settings of a start are there where it is asked for; a saved adapter has none, and null says nothing.
    named = {row.name for row in method.hyperparameters if row.kind != "settings"} if method else set()
    found: dict[str, Frozen] = {}
    for key in sorted(config):
        value = config[key]
        if key in BOOKKEEPING or (named and key not in named and is_default(key, value)):
            continue
        if isinstance(value, tuple) and key.endswith("modules") and all(isinstance(item, str) for item in value):
            value = tuple(sorted(value, key=str))
        found[key] = value
    return MappingProxyType(found)


def is_default(key: str, value: Frozen) -> bool:
    """Say whether a config's value changes nothing: null, false, empty, or one of PEFT's two odd defaults."""
    if key in _ODD_DEFAULTS and value == _ODD_DEFAULTS[key]:
        return True
    return value is None or value is False or (isinstance(value, str | tuple | Mapping) and not value)


# LoraConfig's defaults that are neither null, false nor empty, of the keys that are no row of catalog/methods.
_ODD_DEFAULTS: Mapping[str, Frozen] = MappingProxyType({"megatron_core": "megatron.core", "qalora_group_size": 16})


def base_of_config(config: Mapping[str, Frozen], *, where: str = CONFIG_FILE) -> tuple[BaseModelRef, str | None]:
    """Return the base model that an adapter_config.json names, and a note where it had to be made out of a path.

    Raises:
        UnsatisfiedError: it names none, or nothing that a base model could be called.
    """
    raw, revision, mapping = (config.get(key) for key in ("base_model_name_or_path", "revision", "auto_mapping"))
    architecture = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    text = raw if isinstance(raw, str) else ""
    name = base_id_of(text)
    if name is None:
        raise UnsatisfiedError(
            f"names no base model ({text!r})" if text else "names no base model",
            where=f"{where}: base_model_name_or_path",
            hint="name it: adapt pack DIR --base NAME",
        )
    ref = BaseModelRef(
        id=name,
        revision=revision if isinstance(revision, str) and re.fullmatch(REVISION_PATTERN, revision) else None,
        architecture=architecture if isinstance(architecture, str) else None,
    )
    return ref, None if name == text else f"the base is named by a local path; taken for {name}"


def base_id_of(text: str) -> str | None:
    """Return a base model's id out of what a config calls it: an id as it stands, or the end of a path."""
    cached = _HUB_CACHE.search(text)
    parts = [part for part in re.split(r"[/\\]", text) if part not in ("", ".", "..", "~")]
    for candidate in (text, cached[1].replace("--", "/", 1) if cached else "", parts[-1] if parts else ""):
        try:
            return check_base_id(candidate)
        except ValueError:
            continue
    return None


def name_of_folder(folder: Path) -> str:
    """Return a package's name made from its folder's; a snapshot of the Hub's cache is named by its repository."""
    real = folder.resolve()
    cached = _HUB_CACHE.search(str(real))
    word = cached[1].rpartition("--")[2] if cached else real.name
    word = re.sub(r"[^A-Za-z0-9._-]+|--+|\.\.+", "-", word)[:96].strip("._-")
    try:
        return check_part(word, "a package's name")
    except ValueError:
        return "adapter"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a folder's adapter_manifest.json in its canonical bytes, atomically.

    Raises:
        LocalIOError: the disk said no; the old manifest, if any, is whole.
    """
    write_atomic(folder / MANIFEST_FILE, manifest.canonical_bytes())
