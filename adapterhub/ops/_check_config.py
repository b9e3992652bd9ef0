"""Checks of a package's files, manifest and config by themselves; the base model is not looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapterhub.catalog.methods import LORA_CONFIG_KEYS, method_of_config
from adapterhub.catalog.tasks import TASKS
from adapterhub.documents import read_json, read_manifest, read_provenance
from adapterhub.errors import AdapterHubError
from adapterhub.ops._checklist import Checklist, some
from adapterhub.package import (
    PAYLOAD_FILES,
    base_id_of,
    check_files,
    is_default,
    payload_names,
    read_config,
    refuse_pickles,
    regular_file,
)
from adapterhub.spec._decode import Frozen
from adapterhub.spec.lora import BASE_CHANGING_INITS, LoraSpec
from adapterhub.spec.manifest import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, Manifest
from adapterhub.spec.provenance import PROVENANCE_FILE
from adapterhub.weights import Header, read_header

# Settings that change what the adapter computes: a manifest that lists hyperparameters may not keep silent about them.
_COMPUTES = ("alpha_pattern", "lora_alpha", "lora_bias", "r", "rank_pattern", "use_dora", "use_rslora")
_CODE_KEYS = ("auto_map", "trust_remote_code")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# Repositories of copies, and what copies call themselves: an adapter's base is found by its original's id.
_MIRRORS = ("unsloth/", "TheBloke/", "mlx-community/", "lmstudio-community/")
_QUANTIZED_NAME = re.compile(r"(?i)(bnb|gptq|awq|gguf|exl2|[-_.](4|8)bit|[-_.]fp8|[-_.]int[48])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What could be read of a package's folder; None is what could not, and a finding says why.

    lora: the config as LoRA's settings, None for another method or a broken config.
    """

    folder: Path
    manifest: Manifest | None = None
    config: Mapping[str, Frozen] | None = None
    lora: LoraSpec | None = None
    header: Header | None = None


def read_contents(folder: Path, log: Checklist) -> Contents:
    """Read everything of a package that can be read, with a finding for what cannot."""
    manifest = _read_manifest(folder, log)
    if manifest is not None and manifest.kind == "stack":
        return Contents(folder=folder, manifest=manifest)
    config: Mapping[str, Frozen] | None = None
    try:
        config = read_config(folder)
        log.look("ADP001")
    except AdapterHubError as error:
        log.error("ADP102" if (folder / CONFIG_FILE).exists() else "ADP001", CONFIG_FILE, error)
    return Contents(
        folder=folder,
        manifest=manifest,
        config=config,
        lora=_read_lora(config, log) if config is not None else None,
        header=_read_header(folder, log),
    )


def _read_manifest(folder: Path, log: Checklist) -> Manifest | None:
    if not (folder / MANIFEST_FILE).exists():
        return None
    try:
        regular_file(folder, MANIFEST_FILE)
        manifest = read_manifest(folder)
    except AdapterHubError as error:
        log.error("ADP101", MANIFEST_FILE, error)
        return None
    log.look("ADP101")
    return manifest


def _read_header(folder: Path, log: Checklist) -> Header | None:
    try:
        refuse_pickles(folder, (WEIGHTS_FILE,))
        log.look("ADP002")
        path = regular_file(folder, WEIGHTS_FILE)
        log.look("ADP001")
    except AdapterHubError as error:
        log.error("ADP001", WEIGHTS_FILE, error)
        return None
    try:
        header = read_header(path)
    except AdapterHubError as error:
        log.error("ADP003", WEIGHTS_FILE, error)
        return None
    log.look("ADP003")
    return header


def _read_lora(config: Mapping[str, Frozen], log: Checklist) -> LoraSpec | None:
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str):
        log.fault("ADP102", f"{CONFIG_FILE}: peft_type", "is missing")
        return None
    if method_of_config(config) is None:
        log.fault("ADP103", f"{CONFIG_FILE}: peft_type", f"{peft_type!r} is not a method that is known here")
        return None
    log.look("ADP103")
    if peft_type != "LORA":
        return None
    try:
        spec = LoraSpec.from_hyperparameters(config, where=CONFIG_FILE)
    except AdapterHubError as error:
        log.error("ADP102", CONFIG_FILE, error)
        return None
    log.look("ADP102")
    return spec


def check_files_of(contents: Contents, log: Checklist) -> None:
    """Check digests, names and listing of the files, and what the provenance is about."""
    folder, manifest = contents.folder, contents.manifest
    if manifest is None:
        reason = f"there is no {MANIFEST_FILE} to record it"
        if not log.found("ADP101"):
            log.skip("ADP005", MANIFEST_FILE, reason, hint=f"write one: adapt pack {folder}")
        _check_links(folder, log)
        return
    log.look("ADP004", "ADP005", "ADP006", "ADP008")
    log.add(check_files(folder, manifest.files))
    listed = {entry.path for entry in manifest.files}
    if manifest.kind == "adapter":
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if name not in listed:
                log.fault("ADP101", f"{MANIFEST_FILE}: files", f"does not list {name}")
    for name in PAYLOAD_FILES:
        if name not in listed and (folder / name).exists():
            log.fault("ADP008", name, "lies in the folder, and the manifest does not list it")
    try:
        refuse_pickles(folder, sorted(listed - {WEIGHTS_FILE}))
    except AdapterHubError as error:
        log.error("ADP002", Path(error.where or MANIFEST_FILE).name, error)
    _check_provenance(folder, manifest, log)


def _check_links(folder: Path, log: Checklist) -> None:
    log.look("ADP006")
    for name in payload_names(folder):
        try:
            regular_file(folder, name)
        except AdapterHubError as error:
            # Config and weights were met before, and said so.
            if name not in (CONFIG_FILE, WEIGHTS_FILE):
                log.error("ADP006", name, error)


def _check_provenance(folder: Path, manifest: Manifest, log: Checklist) -> None:
    if not (folder / PROVENANCE_FILE).exists():
        return
    log.look("ADP007")
    try:
        regular_file(folder, PROVENANCE_FILE)
        subject = read_provenance(folder).manifest
    except AdapterHubError as error:
        log.error("ADP007", PROVENANCE_FILE, error)
        return
    if subject != manifest.digest:
        log.fault(
            "ADP007",
            f"{PROVENANCE_FILE}: subject",
            f"is about the manifest {subject.short}…, this one is {manifest.digest.short}…",
        )


def check_settings(contents: Contents, log: Checklist) -> None:
    """Check the config and the manifest: unknown settings, code, control characters, agreement, the rest of it."""
    config, manifest = contents.config, contents.manifest
    _check_code(contents, log)
    _check_text(contents, log)
    if manifest is not None:
        _check_name(manifest.name, log)
    if config is None:
        return
    if contents.lora is not None:
        _check_unknown(config, log)
        _check_start(contents.lora, log)
    _check_task(config, log)
    _check_base_name(config, manifest, log)
    _check_quantization(manifest, log)
    if manifest is not None:
        _check_agreement(manifest, config, log)


def _check_unknown(config: Mapping[str, Frozen], log: Checklist) -> None:
    log.look("ADP104")
    version = config.get("peft_version")
    wrote = f" (written by peft {version})" if isinstance(version, str) else ""
    for key in sorted(set(config) - LORA_CONFIG_KEYS - set(_CODE_KEYS)):
        if not is_default(key, config[key]):
            log.fault("ADP104", f"{CONFIG_FILE}: {key}", f"is no setting of LoRA that is known here{wrote}")


def _check_start(lora: LoraSpec, log: Checklist) -> None:
    log.look("ADP110")
    init = lora.init_lora_weights
    if isinstance(init, str) and init.startswith(BASE_CHANGING_INITS):
        log.fault("ADP110", f"{CONFIG_FILE}: init_lora_weights", f"{init!r} changes the base's weights at the start")


def _check_task(config: Mapping[str, Frozen], log: Checklist) -> None:
    task = config.get("task_type")
    if task is None:
        log.fault("ADP108", f"{CONFIG_FILE}: task_type", "is not set")
    elif not isinstance(task, str) or task not in TASKS:
        log.fault("ADP102", f"{CONFIG_FILE}: task_type", f"{task!r} is none of {', '.join(TASKS)}")
    else:
        log.look("ADP108")


def _check_name(name: str, log: Checklist) -> None:
    log.look("ADP109")
    if "." in name:
        log.fault("ADP109", f"{MANIFEST_FILE}: name", f"{name!r} holds a dot")
    elif name in "lora_":
        log.fault("ADP109", f"{MANIFEST_FILE}: name", f"{name!r} is a piece of 'lora_'")


def _check_base_name(config: Mapping[str, Frozen], manifest: Manifest | None, log: Checklist) -> None:
    log.look("ADP205")
    raw = config.get("base_model_name_or_path")
    where = f"{CONFIG_FILE}: base_model_name_or_path"
    if not isinstance(raw, str) or not raw:
        log.fault("ADP205", where, "names no base model")
        return
    named = base_id_of(raw)
    if named != raw:
        log.fault("ADP205", where, f"{raw!r} is a local path, which nobody else has")
    elif raw.startswith(_MIRRORS):
        log.fault("ADP205", where, f"{raw!r} is a copy of another repository")
    elif _QUANTIZED_NAME.search(raw):
        log.fault("ADP205", where, f"{raw!r} is a quantized copy by its name")
    if manifest is not None and named is not None and named.casefold() != manifest.base_model.id.casefold():
        log.fault("ADP205", where, f"names {raw!r}, the manifest {manifest.base_model.id!r}")


def _check_quantization(manifest: Manifest | None, log: Checklist) -> None:
    if manifest is None or manifest.derived:
        log.skip("ADP111", CONFIG_FILE, "nothing says what the base was loaded as in training")
        return
    log.look("ADP111")
    if (quantization := manifest.quantization) is not None:
        kind = "8-bit" if quantization.load_in_8bit else f"4-bit ({quantization.bnb_4bit_quant_type})"
        log.fault("ADP111", f"{MANIFEST_FILE}: quantization", f"it was trained on a {kind} base")


def _check_agreement(manifest: Manifest, config: Mapping[str, Frozen], log: Checklist) -> None:
    log.look("ADP105")
    method = method_of_config(config)
    if method is not None and manifest.method != method.name:
        log.fault("ADP105", f"{MANIFEST_FILE}: method", f"says {manifest.method}, the config is {method.name}'s")
    if manifest.task != config.get("task_type"):
        where = f"{MANIFEST_FILE}: task"
        log.fault("ADP105", where, f"says {manifest.task}, the config {config.get('task_type')}")
    lora = config.get("peft_type") == "LORA"
    defaults = _lora_defaults() if lora else {}
    for key in sorted(set(manifest.hyperparameters) | (set(_COMPUTES) & set(config) if lora else set())):
        said = manifest.hyperparameters.get(key, defaults.get(key))
        meant = config.get(key, defaults.get(key))
        if _comparable(said) != _comparable(meant):
            where = f"{MANIFEST_FILE}: hyperparameters.{key}"
            log.fault("ADP105", where, f"says {_shown(said)}, the config {_shown(meant)}")


def _lora_defaults() -> Mapping[str, Frozen]:
    """What PEFT takes for a setting that is not written down."""
    spec = LoraSpec()
    return {name: getattr(spec, name) for name in LoraSpec.__dataclass_fields__ if name != "variants"}


def _comparable(value: Frozen) -> object:
    """Lists of names have no order; empty, null and absent are one."""
    if isinstance(value, tuple):
        return frozenset(value) if all(isinstance(item, str) for item in value) and value else value or None
    if isinstance(value, Mapping):
        return dict(value) or None
    return value


def _shown(value: Frozen) -> str:
    text = repr(dict(value)) if isinstance(value, Mapping) else repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _check_code(contents: Contents, log: Checklist) -> None:
    log.look("ADP106")
    documents: dict[str, object] = {}
    if contents.config is not None:
        documents[CONFIG_FILE] = contents.config
        mapping = contents.config.get("auto_mapping")
        library = mapping.get("parent_library") if isinstance(mapping, Mapping) else None
        if isinstance(library, str) and library.partition(".")[0] == "transformers_modules":
            where = f"{CONFIG_FILE}: auto_mapping.parent_library"
            log.fault("ADP106", where, f"{library!r} is code of the base's repository")
    if contents.manifest is not None:
        documents[MANIFEST_FILE] = contents.manifest.extra
    tokenizer = contents.folder / "tokenizer_config.json"
    if tokenizer.is_file():
        try:
            documents[tokenizer.name] = read_json(regular_file(contents.folder, tokenizer.name))
        except AdapterHubError as error:
            log.error("ADP102", tokenizer.name, error)
    for file, document in documents.items():
        for path, key, value in _walk(document):
            if key in _CODE_KEYS and value:
                log.fault("ADP106", f"{file}: {path}", "asks loaders to run code")


def _check_text(contents: Contents, log: Checklist) -> None:
    log.look("ADP107")
    documents: dict[str, object] = {}
    if contents.config is not None:
        documents[CONFIG_FILE] = contents.config
    if contents.manifest is not None:
        documents[MANIFEST_FILE] = contents.manifest.to_data()
    if contents.header is not None:
        # dict() of names: what a listing of the tensors would print.
        documents[WEIGHTS_FILE] = {**contents.header.metadata, "tensors": list(contents.header.tensors)}
    for file, document in documents.items():
        places = [path for path, key, value in _walk(document) if _has_control(key) or _has_control(value)]
        if places:
            escaped = (place.encode("unicode_escape").decode() for place in places)
            log.fault("ADP107", file, f"control characters in {some(escaped)}")


def _has_control(value: object) -> bool:
    return isinstance(value, str) and _CONTROL.search(value) is not None


def _walk(value: object, path: str = "") -> Iterator[tuple[str, str, object]]:
    """Yield path, key and value of everything below a document; items of a list have an empty key."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            place = f"{path}.{key}" if path else str(key)
            yield place, str(key), item
            yield from _walk(item, place)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield f"{path}[{index}]", "", item
            yield from _walk(item, f"{path}[{index}]")
