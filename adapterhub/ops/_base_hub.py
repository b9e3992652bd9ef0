"""A base model on the Hugging Face Hub: which files of a commit make it up, and which of them the Hub's cache holds.

The cache is huggingface_hub's own (HF_HUB_CACHE, HF_HOME), in its documented layout:

    models--org--name/refs/<branch or tag>          the commit it pointed to when it was last looked up
    models--org--name/snapshots/<commit>/<path>     links to
    models--org--name/blobs/<sha256 or git's id>    the contents, by what the Hub says they are
    models--org--name/trees/<commit>.json           the files of a commit, where a whole snapshot was downloaded

https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from adapterhub.bases import BaseRecord
from adapterhub.documents import parse_json, read_json
from adapterhub.errors import (
    AdapterHubError,
    IncompatibleError,
    IntegrityError,
    InvalidFileError,
    NetworkError,
    UsageError,
)
from adapterhub.fingerprints import CONFIG_FILE, NAMED_TEMPLATES_FOLDER, TOKENIZER_CONFIG_FILE, tokenizer_digest
from adapterhub.registry._hub_client import HubClient, RemoteFile
from adapterhub.spec.base_model import COMMIT_PATTERN, parse_base
from adapterhub.spec.digest import Digest
from adapterhub.spec.manifest import CONFIG_FILE as ADAPTER_CONFIG_FILE
from adapterhub.spec.refs import REVISION_PATTERN, PackageName
from adapterhub.weights import open_checkpoint
from adapterhub.weights.checkpoint import INDEX_FILE, MAX_INDEX_BYTES, SINGLE_FILE

MAIN = "main"
MAX_CONFIG_BYTES = 16 << 20
# Beside the weights: the config, the tokenizer in any form that transformers reads, chat templates, and the two
# papers that say the licence. Code, pickles, other frameworks' weights and other precisions stay where they are.
_NAMES = frozenset(
    (
        CONFIG_FILE,
        "generation_config.json",
        "tokenizer.json",
        TOKENIZER_CONFIG_FILE,
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tekken.json",
        "chat_template.json",
        "chat_template.jinja",
    )
)
_TOKENIZERS = frozenset(("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json"))
_VOCABULARY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.(model|spm|tiktoken)")
_TEMPLATE = re.compile(rf"{NAMED_TEMPLATES_FOLDER}/[A-Za-z0-9][A-Za-z0-9._-]*\.jinja")
_PAPERS = re.compile(r"(?i)(readme\.md|(licen[cs]e|copying|notice)(\.md|\.txt)?)")
# Weights by these names are the same model in another library's layout, or no model of its own.
_OTHER_WEIGHTS = re.compile(r"(consolidated|adapter_model|optimizer|scheduler)[.-].*")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TREE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A commit of a model's repository.

    revision: the branch or tag that was asked for, None where it was the commit. files: what a base is made of, by
    path. papers: the card and the licence, which are fetched along and never missed. missing: those whose content the
    Hub's cache lacks. held: those whose content it has from another commit, to be linked. config: its config.json.
    """

    id: str
    revision: str | None
    commit: str
    files: tuple[RemoteFile, ...]
    papers: tuple[RemoteFile, ...] = ()
    missing: tuple[RemoteFile, ...] = ()
    held: tuple[RemoteFile, ...] = ()
    config: Mapping[str, object]

    @property
    def repository(self) -> Path:
        """The repository's folder in the Hub's cache."""
        return repository_folder(self.id)

    @property
    def snapshot(self) -> Path:
        """The folder of the commit in the Hub's cache, a base model's folder once nothing is missing."""
        return self.repository / "snapshots" / self.commit

    @property
    def whole(self) -> bool:
        """True when the snapshot has every file."""
        return not self.missing and not self.held

    @property
    def has_tokenizer(self) -> bool:
        """True when it has one that transformers reads."""
        return any(file.path in _TOKENIZERS or _VOCABULARY.fullmatch(file.path) is not None for file in self.files)

    @property
    def download_size(self) -> int:
        """Bytes that have to be fetched."""
        return sum(file.size for file in self.missing)


def parse_hub_base(text: str, *, where: str) -> tuple[str, str | None]:
    """Read `org/model` or `org/model#REV`.

    Raises:
        UsageError: it is of another form.
    """
    try:
        id, revision = parse_base(text)
        PackageName.parse(id)
    except ValueError as error:
        raise UsageError(str(error), where=where, hint="name it as the Hub does: org/model or org/model#REV") from error
    if revision is not None and (".." in revision or not re.fullmatch(REVISION_PATTERN, revision)):
        raise UsageError(f"{revision!r} is not a branch, tag or commit", where=where)
    return id, revision


def repository_folder(id: str) -> Path:
    """Return where the Hub's cache keeps a model."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().absolute() / f"models--{id.replace('/', '--')}"


def look_up(id: str, revision: str | None, *, offline: bool) -> HubModel:
    """Find a base model on the Hub: its commit, its files, its config; no weight is fetched and nothing is written.

    Without a connection, what the Hub's cache holds whole is found all the same.

    Raises:
        NetworkError: offline and not in the cache, or no answer. UnsatisfiedError: no such repository or revision.
        AuthorizationError: it is gated. InvalidFileError: it is no base model, or has no safetensors.
        IntegrityError: a config came with other bytes than it has.
        IncompatibleError: it needs code from its repository.
    """
    client = HubClient(offline=offline)
    if client.offline:
        found = find_in_cache(id, revision)
        if found is None:
            raise NetworkError(
                f"offline, and {revision or MAIN} of this model is not, or not whole, in the Hub's cache",
                where=id,
                hint=f"unset HF_HUB_OFFLINE, then: adapt base add {id}",
            )
        return found
    asked = revision or MAIN
    pinned = re.fullmatch(COMMIT_PATTERN, asked) is not None
    commit = asked if pinned else client.commit_of(id, asked)
    tree = client.tree(id, commit)
    top = {file.path: file for file in tree if "/" not in file.path}
    _require_config(top, id)
    read = [top[name] for name in (CONFIG_FILE, TOKENIZER_CONFIG_FILE) if name in top]
    configs = {file.path: _read(client, id, commit, file) for file in read}
    for name, value in configs.items():
        refuse_code(value, where=f"{id}: {name}")
    files = _made_of(tree, _weights(client, id, commit, top))
    model = HubModel(
        id=id,
        revision=None if pinned else asked,
        commit=commit,
        files=files,
        papers=tuple(file for name, file in sorted(top.items()) if _PAPERS.fullmatch(name)),
        config=_mapping(configs[CONFIG_FILE], f"{id}: {CONFIG_FILE}"),
    )
    return _with_missing(model)


def refuse_code(config: object, *, where: str) -> None:
    """Refuse a config that names code of its own repository.

    Raises:
        IncompatibleError: it does.
    """
    if isinstance(config, Mapping) and config.get("auto_map"):
        raise IncompatibleError(
            "needs code from its own repository (auto_map), which adapterhub never runs",
            where=where,
            hint="use a base model that transformers knows by itself",
        )


def find_in_cache(id: str, revision: str | None) -> HubModel | None:
    """Find a base model that lies whole in the Hub's cache, None where it does not; no connection is opened.

    Where the cache knows a commit's list of files, all that make up a base must be there; else its config, every
    shard of its weights, and a tokenizer.
    """
    repository, asked = repository_folder(id), revision or MAIN
    pinned = re.fullmatch(COMMIT_PATTERN, asked) is not None
    commit = asked if pinned else commit_in_cache(repository, asked)
    if commit is None:
        return None
    snapshot = repository / "snapshots" / commit
    try:
        config = _mapping(read_json(snapshot / CONFIG_FILE), str(snapshot))
        weights = _local_weights(snapshot)
        tree = _cached_tree(repository, commit)
        if tree is None:
            tree = _described(snapshot)
            if tokenizer_digest(snapshot) is None:
                return None
    except AdapterHubError:
        return None
    files = _made_of(tree, weights)
    model = _with_missing(
        HubModel(id=id, revision=None if pinned else asked, commit=commit, files=files, config=config)
    )
    return model if model.whole else None


def is_at_revision(record: BaseRecord, revision: str) -> bool:
    """Say whether a base is at a commit, or at a branch or tag that was at its commit when the Hub's cache saw it."""
    if record.ref.revision == revision:
        return True
    if record.source != "hub-cache" or record.ref.revision is None or ".." in revision:
        return False
    return commit_in_cache(record.path.parent.parent, revision) == record.ref.revision


def commit_in_cache(repository: Path, revision: str) -> str | None:
    """Return the commit that a branch or tag was at when the Hub's cache last saw it."""
    path = repository / "refs" / revision
    try:
        commit = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return commit if re.fullmatch(COMMIT_PATTERN, commit) else None


def promised(snapshot: Path) -> tuple[RemoteFile, ...]:
    """Return the files of a base in a snapshot's folder, with the digests that the cache's own names promise.

    Raises:
        InvalidFileError, IntegrityError: as `open_checkpoint`.
    """
    return _made_of(_described(snapshot), _local_weights(snapshot))


def _described(snapshot: Path) -> tuple[RemoteFile, ...]:
    """Return a snapshot's files with the digests that the cache's own names promise; other layouts promise none."""
    found = []
    for folder in (snapshot, snapshot / NAMED_TEMPLATES_FOLDER):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_file():
                name = path.readlink().name if path.is_symlink() else ""
                sha256 = Digest(name) if re.fullmatch("[0-9a-f]{64}", name) else None
                relative = path.relative_to(snapshot).as_posix()
                found.append(RemoteFile(path=relative, size=path.stat().st_size, sha256=sha256, blob_id=""))
    return tuple(found)


def _cached_tree(repository: Path, commit: str) -> tuple[RemoteFile, ...] | None:
    """Return the list of a commit's files that a download of the whole snapshot left, None where there is none."""
    path = repository / "trees" / f"{commit}.json"
    if not path.is_file():
        return None
    try:
        data = _mapping(read_json(path), str(path))
        if data.get("format_version") != _TREE_VERSION:
            return None
        return tuple(_tree_row(name, row) for name, row in _mapping(data.get("files"), str(path)).items())
    except (AdapterHubError, KeyError, TypeError, ValueError):
        return None


def _tree_row(path: str, row: object) -> RemoteFile:
    fields = _mapping(row, path)
    sha256 = fields.get("lfs_sha256")
    size = fields["lfs_size"] if sha256 is not None else fields["size"]
    if type(size) is not int:
        raise ValueError(size)
    return RemoteFile(
        path=path,
        size=size,
        sha256=None if sha256 is None else Digest.parse(f"sha256:{sha256}"),
        blob_id=str(fields["blob_id"]),
    )


def _with_missing(model: HubModel) -> HubModel:
    absent = [file for file in model.files if not _has_size(model.snapshot / file.path, file.size)]
    if absent:
        absent += [file for file in model.papers if not _has_size(model.snapshot / file.path, file.size)]
    held = tuple(file for file in absent if _has_size(blob_of(model, file), file.size))
    return replace(model, held=held, missing=tuple(file for file in absent if file not in held))


def blob_of(model: HubModel, file: RemoteFile) -> Path:
    """Return where the Hub's cache keeps a file's content, whatever commits have it."""
    return model.repository / "blobs" / (file.sha256.hex if file.sha256 else file.blob_id)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.is_file() and path.stat().st_size == size
    except OSError:
        return False


def _read(client: HubClient, id: str, commit: str, file: RemoteFile, limit: int = MAX_CONFIG_BYTES) -> object:
    """Read a small JSON file of a commit, and hold its bytes against what the list of files says.

    Raises:
        IntegrityError: they differ. InvalidFileError: no JSON.
    """
    data = client.read(id, commit, file.path, limit) or b""
    if not is_content(file, Digest.of(data), git_blob_id([data], len(data))):
        raise IntegrityError(
            "is not what the Hub says it is", where=f"{id}: {file.path}", hint="run the same command again"
        )
    return parse_json(data, where=f"{id}: {file.path}")


def is_content(file: RemoteFile, sha256: Digest, blob_id: str) -> bool:
    """Say whether digests are a file's: its sha256 where the Hub tells it (LFS), else git's id; True where neither."""
    if file.sha256 is not None:
        return sha256 == file.sha256
    return file.blob_id == blob_id if re.fullmatch("[0-9a-f]{40}", file.blob_id) else True


def git_blob_id(chunks: Iterable[bytes], size: int) -> str:
    """Return the id that git gives to a file's content (`git hash-object`)."""
    state = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    for chunk in chunks:
        state.update(chunk)
    return state.hexdigest()


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise InvalidFileError("expected a JSON object", where=where)
    return value


def _require_config(top: Mapping[str, RemoteFile], id: str) -> None:
    if CONFIG_FILE in top:
        return
    if ADAPTER_CONFIG_FILE in top:
        raise InvalidFileError("holds an adapter, not a base model", where=id, hint=f"adapt install {id}")
    raise InvalidFileError(
        f"has no {CONFIG_FILE}, so it is no base model that transformers loads", where=id, hint=_gguf_hint(top, id)
    )


def _made_of(tree: Iterable[RemoteFile], weights: Iterable[str]) -> tuple[RemoteFile, ...]:
    wanted = frozenset(weights)
    return tuple(
        sorted((file for file in tree if file.path in wanted or _is_beside(file.path)), key=lambda file: file.path)
    )


def _is_beside(path: str) -> bool:
    return path in _NAMES or bool(_VOCABULARY.fullmatch(path) or _TEMPLATE.fullmatch(path))


def _weights(client: HubClient, id: str, commit: str, top: Mapping[str, RemoteFile]) -> tuple[str, ...]:
    """Return the weight files, looked for in transformers' order; the index is read for its shards' names."""
    if SINGLE_FILE in top:
        return (SINGLE_FILE,)
    if INDEX_FILE in top:
        index = _mapping(_read(client, id, commit, top[INDEX_FILE], MAX_INDEX_BYTES), f"{id}: {INDEX_FILE}")
        shards = sorted({str(name) for name in _mapping(index.get("weight_map"), f"{id}: {INDEX_FILE}").values()})
        absent = [name for name in shards if name not in top]
        if absent or not shards:
            raise InvalidFileError(
                "names weight files that the repository does not have" if absent else "names no weight file",
                where=f"{id}: {INDEX_FILE}",
                details=tuple(absent[:20]),
                hint="the repository is not complete: choose another revision with #REV",
            )
        return (INDEX_FILE, *shards)
    found = sorted(name for name in top if name.endswith(".safetensors") and not _OTHER_WEIGHTS.fullmatch(name))
    if len(found) == 1:
        return (found[0],)
    if found:
        raise InvalidFileError(
            f"has {len(found)} safetensors files and no {INDEX_FILE} that says how they belong together",
            where=id,
            details=tuple(found[:20]),
            hint=f"download the one you mean into a folder, then: adapt base add {id} --from FOLDER",
        )
    pickles = sorted(name for name in top if name.endswith(_PICKLES))
    if pickles:
        raise InvalidFileError(
            f"has no safetensors, only {', '.join(pickles[:3])}: pickles can run code and are never opened",
            where=id,
            hint="look for a revision with safetensors (a pull request often has them: #refs/pr/N), or ask its authors",
        )
    raise InvalidFileError("has no safetensors", where=id, hint=_gguf_hint(top, id))


def _gguf_hint(top: Mapping[str, RemoteFile], id: str) -> str | None:
    gguf = next((name for name in sorted(top) if name.endswith(".gguf")), None)
    name = id.rpartition("/")[2].lower()
    return f"`hf download {id} {gguf}`, then: adapt base add {name} --from FILE" if gguf else None


def _local_weights(snapshot: Path) -> tuple[str, ...]:
    checkpoint = open_checkpoint(snapshot)
    return (*((checkpoint.index_name,) if checkpoint.index_name else ()), *checkpoint.files)
