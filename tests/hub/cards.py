"""Routes that read what a repository says about itself: info, lists, search, the card's front matter."""

from __future__ import annotations

import functools
import json
from typing import Any

from tests.hub.content import Commit
from tests.hub.repositories import dates
from tests.hub.state import MAIN, HubError, Repo, may_read
from tests.hub.wire import API, KIND, Request, Response, Service, json_response, route

FENCE = "---\n"
LIST_OPTIONS = {
    "search", "author", "filter", "sort", "limit", "full", "cardData", "config", "expand", "pipeline_tag", "gated",
    "cursor",
}  # fmt: skip
# Of the Hub's official list of pipelines, what the tests use.
PIPELINES = {
    "text-generation", "text-classification", "token-classification", "text2text-generation", "question-answering",
    "feature-extraction",
}  # fmt: skip
SORTS = {"lastModified", "createdAt", "downloads", "likes"}


def front_matter(text: str) -> dict[str, Any] | None:
    """Read a card's YAML block; None where there is none.

    Raises:
        HubError: 400 when it is not a YAML mapping.
    """
    from ruamel.yaml import YAML, YAMLError

    text = text.replace("\r\n", "\n")
    if not text.startswith(FENCE) or "\n---" not in text[3:]:
        return None
    try:
        value = YAML(typ="safe", pure=True).load(text[len(FENCE) : text.index("\n---", 3) + 1])
    except YAMLError as error:
        raise HubError(400, f"Invalid YAML: {error}".replace("\n", " ")) from error
    if value is not None and not isinstance(value, dict):
        raise HubError(400, "The front matter must be a mapping")
    # Dates become text, as in the JSON the Hub answers with.
    card: dict[str, Any] = json.loads(json.dumps(value or {}, default=str))
    return card


@route("POST", "/api/validate-yaml")
def validate_yaml(service: Service, request: Request) -> Response:
    """Say what the Hub would refuse in a card; only syntax is judged here."""
    try:
        card = front_matter(request.json()["content"])
    except HubError as error:
        return json_response({"errors": [{"message": error.message}], "warnings": []}, 400)
    warnings = [] if card is not None else [{"message": "empty or missing yaml metadata in repo card"}]
    if card and card.get("pipeline_tag") not in {None, *PIPELINES}:
        warnings.append({"message": f'"pipeline_tag" "{card["pipeline_tag"]}" is not in the official list'})
    return json_response({"errors": [], "warnings": warnings})


def _words(value: object) -> list[str]:
    return [str(item) for item in (value if isinstance(value, list) else [] if value is None else [value])]


@functools.lru_cache(maxsize=20_000)
def _card(content: bytes) -> dict[str, Any]:
    # Parsing YAML is what a search over thousands of repositories would spend its time on.
    try:
        return front_matter(content.decode("utf-8", "replace")) or {}
    except HubError:
        return {}


def card_of(commit: Commit) -> dict[str, Any]:
    """The front matter of a commit's README, empty where there is none or it can't be read."""
    readme = commit.files.get("README.md")
    return _card(readme.content) if readme else {}


def tags_of(commit: Commit, card: dict[str, Any]) -> list[str]:
    """The searchable tags the Hub derives from card and files."""
    tags = _words(card.get("library_name"))
    if any(path.endswith(".safetensors") for path in commit.files):
        tags.append("safetensors")
    tags += _words(card.get("tags")) + _words(card.get("pipeline_tag")) + _words(card.get("language"))
    relation = card.get("base_model_relation")
    for base in _words(card.get("base_model")):
        tags.append(f"base_model:{base}")
        tags += [f"base_model:{relation}:{base}"] if relation else []
    tags += [f"license:{word}" for word in _words(card.get("license"))]
    tags += [f"dataset:{word}" for word in _words(card.get("datasets"))]
    return list(dict.fromkeys(tags))


def _json_file(commit: Commit, path: str) -> dict[str, Any]:
    blob = commit.files.get(path)
    try:
        value = json.loads(blob.content) if blob else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def config_of(commit: Commit) -> dict[str, Any]:
    """What the Hub keeps of config.json and adapter_config.json."""
    model, adapter = _json_file(commit, "config.json"), _json_file(commit, "adapter_config.json")
    config = {key: model[key] for key in ("architectures", "model_type") if key in model}
    kept = {key: adapter[key] for key in ("base_model_name_or_path", "task_type") if key in adapter}
    return config | ({"peft": kept} if kept else {})


def everything(repo: Repo, commit: Commit) -> dict[str, Any]:
    """All properties this server knows of a repository, siblings without sizes."""
    card = card_of(commit)
    return {
        "id": repo.id,
        "modelId": repo.id,
        "sha": commit.oid,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": repo.disabled,
        "author": repo.namespace,
        **dates(repo, commit.tick),
        "downloads": repo.downloads,
        "likes": repo.likes,
        "tags": tags_of(commit, card),
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": card.get("library_name"),
        "cardData": card,
        "model-index": card.get("model-index"),
        "config": config_of(commit),
        "usedStorage": sum(blob.size for blob in commit.files.values()),
        "siblings": [{"rfilename": path} for path in commit.files],
    }


def _expanded(info: dict[str, Any], names: list[str]) -> dict[str, Any]:
    unknown = sorted(set(names) - set(info))
    if unknown:
        raise HubError(400, f"This server can't expand {', '.join(unknown)}")
    return {"id": info["id"]} | {name: info[name] for name in names}


@route("GET", f"{API}(?:/revision/(?P<revision>[^/]+))?")
def info(service: Service, request: Request, kind: str, repo_id: str, revision: str = MAIN) -> Response:
    """Describe a repository at a revision; with blobs, the sizes and digests of its files."""
    repo = service.repo(request, kind, repo_id)
    if request.flag("securityStatus"):
        raise HubError(400, "This server scans nothing: no securityStatus")
    commit = repo.commit_at(revision)
    answer = everything(repo, commit)
    if request.flag("blobs"):
        siblings = []
        for path, blob in commit.files.items():
            row: dict[str, object] = {"rfilename": path, "size": blob.size, "blobId": blob.oid}
            if blob.lfs:
                row["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
            siblings.append(row)
        answer["siblings"] = siblings
    names = list(request.query.get("expand", ()))
    return json_response(_expanded(answer, names) if names else answer)


@route("GET", f"/api/{KIND}")
def list_repos(service: Service, request: Request, kind: str) -> Response:
    """List and search what the caller may see, a page at a time."""
    unknown = sorted(set(request.query) - LIST_OPTIONS)
    sort = request.first("sort", "downloads")
    if unknown or sort not in SORTS:
        raise HubError(400, f"This server can't list by {', '.join(unknown) or sort}")
    user = service.caller(request)
    wanted = set(request.query.get("filter", ()))
    text, author, task = request.first("search").lower(), request.first("author"), request.first("pipeline_tag")
    found = []
    with service.store.changing():
        visible = [repo for (of, _), repo in service.store.repos.items() if of == kind and may_read(repo, user)]
        for repo in visible:
            # The name is cheap to test and the card is not: with thousands of repositories the order matters.
            if text not in repo.id.lower() or (author and author != repo.namespace):
                continue
            if "gated" in request.query and bool(repo.gated) != request.flag("gated"):
                continue
            row = everything(repo, repo.head)
            if wanted <= set(row["tags"]) and (not task or row["pipeline_tag"] == task):
                found.append(row)
    found.sort(key=lambda row: row["id"])
    found.sort(key=lambda row: row[sort], reverse=True)
    full, names = request.flag("full"), list(request.query.get("expand", ()))
    hidden = set() if full else {"siblings", "author", "sha", "lastModified", "gated", "disabled"}
    hidden |= set() if request.flag("cardData") else {"cardData"}
    hidden |= set() if request.flag("config") else {"config"}
    hidden |= {"usedStorage", "model-index"}
    limit = int(request.first("limit", "1000"))
    shown = [
        _expanded(row, names) if names else {key: value for key, value in row.items() if key not in hidden}
        for row in found
    ]
    return service.page(request, shown, min(limit, 1000))
