"""Searching the Hub: by its own tags, our packages before other PEFT adapters.

The Hub searches in repositories' names alone, and by exact tags; so a text is looked for among both, and what it cannot
filter by (a second word) is filtered here, within what the Hub lists first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeAlias

from adapterhub.catalog.methods import METHODS
from adapterhub.catalog.tasks import TASKS
from adapterhub.registry._hub_client import HubClient
from adapterhub.registry.base import Found, Query
from adapterhub.spec.refs import PackageName

Row: TypeAlias = Mapping[str, Any]

OUR_TAG, LIBRARY = "adapterhub", "peft"
_EXPAND = ("cardData", "tags", "downloads", "lastModified", "pipeline_tag")
# How many rows of the Hub are looked at for each that is shown, when it could not filter all by itself.
_LOOKED_AT = 20
_MAX_ROWS = 1000
_MAX_TEXT = 300
_BASE_TAG = re.compile(r"base_model:(?:adapter:)?([^:]+)")


def search(client: HubClient, query: Query) -> tuple[Found, ...]:
    """Return what the Hub lists for a query, our packages first, each kind by downloads; at most `query.limit`.

    Raises:
        NetworkError: no answer, or none that makes sense. AuthorizationError: the token is refused.
    """
    words = sorted((query.text or "").casefold().split(), key=len, reverse=True)
    found: dict[str, Found] = {}
    for kind in (OUR_TAG, LIBRARY):
        for text, tags in _ways(words):
            for row in _rows(client, query, [kind, *tags], text, all_told=len(words) <= 1):
                told = _told(row)
                if told is not None and told.name.key not in found and _holds(words, row):
                    found[told.name.key] = told
                if len(found) >= query.limit:
                    return tuple(found.values())
    return tuple(found.values())


def _ways(words: list[str]) -> Iterator[tuple[str | None, tuple[str, ...]]]:
    """Walk over the ways of looking for a text: in names, then among tags."""
    if not words:
        yield None, ()
        return
    yield words[0], ()
    yield None, (words[0],)


def _rows(client: HubClient, query: Query, tags: list[str], text: str | None, *, all_told: bool) -> Iterator[Row]:
    """Ask the Hub in one way; further pages are asked for as they are read."""
    task = TASKS.get(query.task or "")
    wanted = [*tags, *(tag for tag in (query.domain, query.language, query.method) if tag)]
    wanted += [f"base_model:{query.base}"] if query.base else []
    limit = min(query.limit * (1 if all_told else _LOOKED_AT), _MAX_ROWS)
    parameters = [("filter", tag) for tag in wanted]
    parameters += [("search", text)] if text else []
    parameters += [("pipeline_tag", task.pipeline if task else query.task)] if query.task else []
    parameters += [("sort", "downloads"), ("limit", str(limit)), *(("expand", name) for name in _EXPAND)]
    return islice(client.models(parameters, doing="search the Hub"), limit)


def _holds(words: list[str], row: Row) -> bool:
    """Say whether every word is in the name or the tags."""
    text = " ".join((str(row.get("id")), *_texts(row.get("tags")))).casefold()
    return all(word in text for word in words)


def _told(row: Row) -> Found | None:
    """Return what a row of the Hub says; None for a repository whose name no package can have."""
    try:
        name = PackageName.parse(str(row.get("id")))
    except ValueError:
        return None
    tags, downloads, said = _texts(row.get("tags")), row.get("downloads"), row.get("cardData")
    card: Row = said if isinstance(said, dict) else {}
    return Found(
        name=name,
        base=_only(card.get("base_model")) or _base_of_tags(tags),
        method=next((tag for tag in tags if tag in METHODS), None),
        task=next((task.name for task in TASKS.values() if task.pipeline == row.get("pipeline_tag")), None),
        languages=_texts(card.get("language")),
        license=_license(card),
        updated=_time(row.get("lastModified")),
        downloads=downloads if type(downloads) is int else None,
    )


def _time(value: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return time if time is None or time.tzinfo is not None else time.replace(tzinfo=UTC)


def _license(card: Row) -> str | None:
    said = _only(card.get("license"))
    return _only(card.get("license_name")) or said if said == "other" else said


def _base_of_tags(tags: tuple[str, ...]) -> str | None:
    return next((match[1] for tag in tags if (match := _BASE_TAG.fullmatch(tag))), None)


def _only(value: object) -> str | None:
    """Return a text, or the only one of a list."""
    texts = _texts(value)
    return texts[0] if len(texts) == 1 else None


def _texts(value: object) -> tuple[str, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(item[:_MAX_TEXT] for item in items if isinstance(item, str))
