"""An adapter made out of another one: its package, with what the other's manifest and card say that still holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from packaging.version import Version

from adapterhub.errors import LocalIOError, UnsatisfiedError, UsageError
from adapterhub.files import local_io, write_atomic
from adapterhub.package import (
    Package,
    derive_manifest,
    hash_payload,
    regular_file,
    write_manifest,
)
from adapterhub.spec._decode import Frozen, freeze
from adapterhub.spec.manifest import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, Manifest
from adapterhub.spec.refs import parse_version

_CARD_LIMIT = 1 << 20


def require_free(out: Path) -> None:
    """Refuse a place for a new folder where something is.

    Raises:
        LocalIOError: it exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LocalIOError(
            "already exists and is not empty", where=str(out), hint="choose another folder, or remove it"
        )


def read_version(text: str) -> Version:
    """Return a version as a person wrote it after --version.

    Raises:
        UsageError: it is none.
    """
    try:
        return parse_version(text)
    except ValueError as error:
        raise UsageError(str(error), where="--version") from error


def complete_package(
    folder: Path, source: Package, *, version: Version | None, how: Mapping[str, object], section: str
) -> Manifest:
    """Complete a folder of a new config and new weights: files beside them, manifest, card; return the manifest.

    version: None derives one from the files. how: what was done, kept in the manifest below `extra.made_from` with the
    other's name, version and digest. section: what was done in Markdown, for the end of the card. Metrics are left out:
    they were measured on other weights.

    Raises:
        LocalIOError: the disk said no. InvalidFileError: a file of the source is no regular one.
    """
    before = source.manifest
    beside = [entry.path for entry in before.files if entry.path not in (CONFIG_FILE, WEIGHTS_FILE)]
    for name in beside:
        _copy(regular_file(source.path, name), folder / name)
    derived = derive_manifest(folder, base=before.base_model)
    origin = {"name": before.name, "version": str(before.version), **how}
    if not source.derived:
        origin["manifest"] = str(before.digest)
    extra = freeze({**before.extra, "made_from": origin})
    assert isinstance(extra, Mapping)
    manifest = replace(
        before,
        version=version if version is not None else derived.version,
        method=derived.method,
        hyperparameters=derived.hyperparameters,
        files=hash_payload(folder, (CONFIG_FILE, WEIGHTS_FILE, *beside)),
        metrics=MappingProxyType[str, float]({}),
        extra=MappingProxyType[str, Frozen](dict(extra)),
    )
    # What we write has to be what we read: the format's own rules are held against it before it counts.
    manifest = Manifest.from_data(manifest.to_data())
    write_manifest(folder, manifest)
    write_atomic(folder / CARD_FILE, _card(source, manifest, section).encode())
    return manifest


def front_matter(manifest: Manifest) -> str:
    """Return the head of a model card (https://huggingface.co/docs/hub/model-cards)."""
    front: dict[str, object] = {
        "base_model": manifest.base_model.id,
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": manifest.license,
        "language": list(manifest.languages),
        "tags": ["adapterhub", *([manifest.method] if manifest.method else [])],
    }
    # JSON is YAML, and quotes whatever needs it.
    told = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items() if value]
    return "\n".join(["---", *told, "---", "", f"# {manifest.name}", "", manifest.summary]).rstrip() + "\n"


def _card(source: Package, manifest: Manifest, section: str) -> str:
    """Return the other's card with a section more, or a new one where it has none that can be read."""
    try:
        path = regular_file(source.path, CARD_FILE)
        with local_io(path, "read the file"):
            text = path.read_bytes()[:_CARD_LIMIT].decode("utf-8", "replace")
    except UnsatisfiedError:
        text = front_matter(manifest)
    return f"{text.rstrip()}\n\n{section.strip()}\n"


def _copy(source: Path, target: Path) -> None:
    with local_io(target, "copy the file"):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
