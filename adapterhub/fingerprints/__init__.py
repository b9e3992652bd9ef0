"""What a base model *is*: digests of its weights, config, tokenizer and chat template, and the verdict on two of them.

The encodings. Each digest is a sha256 over a first line that names the encoding and its version, then:

    weights, tensors  the tables of adapterhub/weights/fingerprints.py
    config            the fields of IDENTITY_FIELDS, normalised by `identity_config`, as JSON
    tokenizer         tokenizer.json without its run-time state (truncation, padding), merges as pairs, nulls and a
                      post-processor that adds nothing left out, as JSON; where there is no tokenizer.json, the digests
                      of the vocabulary files by name
    chat_template     the template's text without one last line break; several named templates as JSON

"As JSON" is one way only: sorted keys, no spaces, ASCII escapes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from adapterhub.documents import read_bytes, read_json
from adapterhub.errors import InvalidFileError, UnsatisfiedError
from adapterhub.files import local_io
from adapterhub.fingerprints.config import DEFAULTS, IDENTITY_FIELDS, identity_config, plain
from adapterhub.fingerprints.verdict import Verdict, compare, differing_parts, stands_for
from adapterhub.progress import SILENT, Progress
from adapterhub.spec.base_model import BaseFingerprints
from adapterhub.spec.digest import Digest, digest_file
from adapterhub.weights import Checkpoint, fingerprint, open_checkpoint, tensor_table_digest

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
OLD_TEMPLATE_FILE = "chat_template.json"
NAMED_TEMPLATES_FOLDER = "additional_chat_templates"
VOCABULARY_FILES = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
)
MAX_TEMPLATE_BYTES = 4 << 20
# What transformers 5 writes for a tokenizer without a post-processor when it saves one; it adds nothing.
_IDLE_POST_PROCESSOR = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}

__all__ = [
    "CONFIG_FILE",
    "DEFAULTS",
    "IDENTITY_FIELDS",
    "Verdict",
    "chat_template_digest",
    "compare",
    "config_digest",
    "differing_parts",
    "fingerprint_base",
    "fingerprinted_files",
    "identity_config",
    "quick_fingerprints",
    "read_config",
    "stands_for",
    "tokenizer_digest",
]


def fingerprint_base(folder: Path, *, progress: Progress = SILENT) -> BaseFingerprints:
    """Digest a base model's folder, reading every weight byte once.

    Raises:
        InvalidFileError: no config, no safetensors, or a file breaks its format. IntegrityError: malformed weights.
        LocalIOError: a file cannot be read.
    """
    checkpoint = open_checkpoint(folder)
    quick = quick_fingerprints(folder, checkpoint)
    weights = fingerprint(checkpoint, progress=progress)
    return BaseFingerprints(
        weights=Digest(weights.weights),
        tensors=quick.tensors,
        files=MappingProxyType({name: Digest(value) for name, value in weights.files.items()}),
        config=quick.config,
        tokenizer=quick.tokenizer,
        chat_template=quick.chat_template,
    )


def quick_fingerprints(folder: Path, checkpoint: Checkpoint) -> BaseFingerprints:
    """Digest what needs no weight bytes: the table of tensors, config, tokenizer, chat template.

    Raises:
        InvalidFileError: no config, or a file breaks its format. LocalIOError: a file cannot be read.
    """
    return BaseFingerprints(
        tensors=Digest(tensor_table_digest(checkpoint.tensors)),
        config=config_digest(read_config(folder)),
        tokenizer=tokenizer_digest(folder),
        chat_template=chat_template_digest(folder),
    )


def fingerprinted_files(folder: Path) -> tuple[str, ...]:
    """Return the files of a base's folder that its fingerprints are taken of: relative POSIX paths, sorted.

    Raises:
        LocalIOError: the folder cannot be read.
    """
    names = {CONFIG_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, TEMPLATE_FILE, OLD_TEMPLATE_FILE, *VOCABULARY_FILES}
    with local_io(folder, "read the folder"):
        here = {path.name for path in folder.iterdir() if path.is_file()}
        named = {f"{NAMED_TEMPLATES_FOLDER}/{path.name}" for path in (folder / NAMED_TEMPLATES_FOLDER).glob("*.jinja")}
    weights = {name for name in here if name.endswith((".safetensors", ".safetensors.index.json"))}
    return tuple(sorted((here & names) | named | weights))


def read_config(folder: Path) -> Mapping[str, object]:
    """Read a base model's config.json.

    Raises:
        InvalidFileError: there is none, or it is no JSON object.
    """
    path = folder / CONFIG_FILE
    try:
        value = read_json(path)
    except UnsatisfiedError as error:
        raise InvalidFileError(
            f"has no {CONFIG_FILE}, so it is no base model's folder",
            where=str(folder),
            hint="name the folder that holds config.json and model.safetensors",
        ) from error
    if not isinstance(value, dict):
        raise InvalidFileError("expected a JSON object", where=str(path))
    return value


def config_digest(config: Mapping[str, object]) -> Digest:
    """Return the digest of a config's identity."""
    return _json_digest("config", identity_config(config))


def tokenizer_digest(folder: Path) -> Digest | None:
    """Return the digest of a folder's tokenizer, None where it has none.

    Raises:
        InvalidFileError: tokenizer.json is not JSON.
    """
    path = folder / TOKENIZER_FILE
    if path.is_file():
        return _json_digest("tokenizer", _canonical_tokenizer(read_json(path, halves=True)))
    found: dict[str, object] = {}
    for name in VOCABULARY_FILES:
        if (folder / name).is_file():
            with local_io(folder / name, "read the file"):
                found[name] = digest_file(folder / name)[0].hex
    # added_tokens.json alone makes no tokenizer.
    return _json_digest("tokenizer files", found) if set(found) - {"added_tokens.json"} else None


def _canonical_tokenizer(value: object) -> object:
    if not isinstance(value, dict):
        return value
    kept = {name: item for name, item in value.items() if name not in ("truncation", "padding")}
    model = kept.get("model")
    if isinstance(model, dict) and isinstance(model.get("merges"), list):
        # Old files write "a b", new ones ["a", "b"]: the same pair.
        merges = [item.split(" ", 1) if isinstance(item, str) else item for item in model["merges"]]
        kept["model"] = {**model, "merges": merges}
    if kept.get("post_processor") == _IDLE_POST_PROCESSOR:
        del kept["post_processor"]
    return plain(kept)


def chat_template_digest(folder: Path) -> Digest | None:
    """Return the digest of a folder's chat template, None where it has none.

    Looked for as transformers does: chat_template.jinja with additional_chat_templates/, else chat_template.json, else
    in tokenizer_config.json.

    Raises:
        InvalidFileError: a file of these breaks its format or is larger than any template.
    """
    templates = _template_files(folder) or _written_templates(folder)
    if not templates:
        return None
    if set(templates) == {"default"}:
        return Digest.of(f"adapterhub chat template 1\n{templates['default']}".encode("utf-8", "surrogatepass"))
    return _json_digest("chat templates", templates)


def _template_files(folder: Path) -> dict[str, str]:
    found = {"default": folder / TEMPLATE_FILE}
    found |= {path.stem: path for path in sorted((folder / NAMED_TEMPLATES_FOLDER).glob("*.jinja"))}
    return {name: _template(_read_text(path)) for name, path in found.items() if path.is_file()}


def _written_templates(folder: Path) -> dict[str, str]:
    for name in (OLD_TEMPLATE_FILE, TOKENIZER_CONFIG_FILE):
        path = folder / name
        value = read_json(path, halves=True) if path.is_file() else None
        written = value.get("chat_template") if isinstance(value, dict) else None
        if isinstance(written, str):
            return {"default": _template(written)}
        if isinstance(written, list):
            rows = [row for row in written if isinstance(row, dict)]
            return {str(row.get("name")): _template(str(row.get("template"))) for row in rows}
    return {}


def _read_text(path: Path) -> str:
    try:
        return read_bytes(path, limit=MAX_TEMPLATE_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"is not UTF-8 (byte {error.start})", where=str(path)) from error


def _template(text: str) -> str:
    """Return a template as jinja reads it: without the one line break at its end (keep_trailing_newline is off)."""
    return text.replace("\r\n", "\n").removesuffix("\n")


def _json_digest(kind: str, value: object) -> Digest:
    state = hashlib.sha256(f"adapterhub {kind} 1\n".encode())
    state.update(json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
    return Digest(state.hexdigest())
