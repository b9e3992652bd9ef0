"""`adapt search`: the registries that this place installs from, asked for what fits a description."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from adapterhub.catalog.methods import method_named
from adapterhub.catalog.tasks import TASKS, task_named
from adapterhub.environment import Environment
from adapterhub.errors import AdapterHubError
from adapterhub.registry import HUB, Found, Query, open_registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One package that was found, and the registry (its location) that has it."""

    found: Found
    registry: str

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {**self.found.to_data(), "registry": self.registry}


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """What a search found, registry by registry; failed are the registries that gave no answer, and why."""

    hits: tuple[Hit, ...]
    registries: tuple[str, ...]
    failed: tuple[tuple[str, AdapterHubError], ...] = ()

    def to_data(self) -> list[object]:
        """Return plain JSON data."""
        return [hit.to_data() for hit in self.hits]


def search_packages(
    query: Query, *, environment: Environment, registry: str | None = None, cwd: Path | None = None
) -> Searched:
    """Search a registry, or else all that a project names, each once.

    A package is shown from the registry that its name would be installed from, and from no other. Where one of several
    registries gives no answer, the others' count.

    Raises:
        UsageError: no such task or method. AdapterHubError: no registry gave an answer.
    """
    query = _in_the_catalog_s_words(query)
    places = _places(environment, registry, cwd if cwd is not None else Path.cwd())
    hits: list[Hit] = []
    failed: list[tuple[str, AdapterHubError]] = []
    for location, folder in places.items():
        try:
            opened = open_registry(location, relative_to=folder, offline=environment.settings.offline)
            found = opened.search(query)
        except AdapterHubError as error:
            failed.append((location, error))
            continue
        for item in found:
            claimed = environment.project.registry_of(item.name) or _fallback(environment)
            if registry is not None or claimed == location:
                hits.append(Hit(found=item, registry=location))
    if len(failed) == len(places):
        raise failed[0][1]
    return Searched(hits=tuple(hits), registries=tuple(places), failed=tuple(failed))


def _in_the_catalog_s_words(query: Query) -> Query:
    task = query.task.upper() if query.task else None
    by_pipeline = next((row.name for row in TASKS.values() if row.pipeline == (query.task or "").lower()), None)
    return replace(
        query,
        task=by_pipeline or (task_named(task).name if task else None),
        method=method_named(query.method.lower()).name if query.method else None,
    )


def _places(environment: Environment, given: str | None, cwd: Path) -> dict[str, Path]:
    """Return the locations to search, each with the folder that it is meant from."""
    if given is not None:
        return {given: cwd}
    project = environment.project
    places = dict.fromkeys(project.registries.values(), environment.folder)
    if "*" not in project.registries:
        places.setdefault(_fallback(environment), cwd)
    return places


def _fallback(environment: Environment) -> str:
    """Return the registry of the names that no pattern of adapters.yaml claims."""
    return environment.settings.registry or HUB
