"""Routes about repositories: who, create, delete, move, settings, refs, history."""

from __future__ import annotations

from tests.hub.content import timestamp
from tests.hub.state import MAIN, HubError, Repo
from tests.hub.wire import API, Request, Response, Service, json_response, route

KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}


@route("GET", "/api/whoami-v2")
def whoami(service: Service, request: Request) -> Response:
    """Say whose token it is."""
    user = service.caller(request)
    if user is None:
        raise HubError(401, "Invalid username or password.")
    return json_response(
        {
            "type": "user",
            "name": user.name,
            "fullname": user.name.title(),
            "email": f"{user.name}@example.org",
            "orgs": [{"name": name, "roleInOrg": "write"} for name in user.organizations],
            "auth": {"type": "access_token", "accessToken": {"displayName": "tests", "role": user.role}},
        }
    )


def _named(service: Service, request: Request) -> tuple[str, str]:
    """The kind and full name in the body of a create or delete; the caller must own the namespace."""
    user = service.caller(request)
    if user is None:
        raise HubError(401, "Invalid username or password.")
    body = request.json()
    namespace = body.get("organization") or user.name
    if user.role != "write" or not user.owns(namespace):
        raise HubError(403, f'Forbidden: you don\'t have the rights to do this under the namespace "{namespace}"')
    return KINDS[body.get("type") or "model"], f"{namespace}/{body['name']}"


@route("POST", "/api/repos/create")
def create_repo(service: Service, request: Request) -> Response:
    """Create a repository; 409 names the one that is there."""
    kind, repo_id = _named(service, request)
    body = request.json()
    private = body.get("visibility") == "private" or body.get("private") is True
    with service.store.changing():
        present = service.store.find(kind, repo_id)
        if present is not None:
            raise HubError(
                409, "You already created this model repo", extra={"url": f"{service.endpoint}/{present.page_path}"}
            )
        repo = service.store.create_repo(repo_id, author=repo_id.split("/")[0], kind=kind, private=private)
    return json_response({"url": f"{service.endpoint}/{repo.page_path}", "name": repo.id, "id": repo.id})


@route("DELETE", "/api/repos/delete")
def delete_repo(service: Service, request: Request) -> Response:
    """Delete a repository."""
    key = _named(service, request)
    with service.store.changing():
        if service.store.repos.pop(key, None) is None:
            raise HubError(404, "Repository not found", code="RepoNotFound")
    return json_response({})


@route("POST", "/api/repos/move")
def move_repo(service: Service, request: Request) -> Response:
    """Rename a repository."""
    body = request.json()
    kind = KINDS[body.get("type") or "model"]
    repo, user = service.repo_to_write(request, kind, body["fromRepo"])
    if not user.owns(body["toRepo"].split("/")[0]):
        raise HubError(403, "Forbidden: you don't own the new namespace")
    service.store.move_repo(kind, repo.id, body["toRepo"])
    return json_response({})


@route("PUT", f"{API}/settings")
def settings(service: Service, request: Request, kind: str, repo_id: str) -> Response:
    """Change visibility and gate."""
    repo, _ = service.repo_to_write(request, kind, repo_id)
    body = request.json()
    unknown = sorted(set(body) - {"visibility", "private", "gated"})
    if unknown:
        raise HubError(400, f"This server keeps no setting {', '.join(unknown)}")
    if "visibility" in body or "private" in body:
        repo.private = body.get("visibility") == "private" or body.get("private") is True
    if "gated" in body:
        repo.gated = body["gated"]
    return json_response({"private": repo.private, "gated": repo.gated})


@route("GET", f"{API}/auth-check(?P<write>/write)?")
def auth_check(service: Service, request: Request, kind: str, repo_id: str, write: str = "") -> Response:
    """Say whether the caller may read the contents, or write."""
    if write:
        service.repo_to_write(request, kind, repo_id)
    else:
        service.check_gate(request, service.repo(request, kind, repo_id))
    return json_response({})


@route("GET", f"{API}/refs")
def refs(service: Service, request: Request, kind: str, repo_id: str) -> Response:
    """List branches and tags, on demand pull requests."""
    repo = service.repo(request, kind, repo_id)

    def rows(prefix: str, items: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": prefix + name, "targetCommit": items[name]} for name in sorted(items)]

    with service.store.changing():
        branches, tags = rows("refs/heads/", repo.branches), rows("refs/tags/", repo.tags)
        answer = {"branches": branches, "converts": [], "tags": tags}
        if request.flag("include_prs"):
            answer["pullRequests"] = rows("", repo.pulls)
    return json_response(answer)


@route("POST", f"{API}/tag/(?P<revision>[^/]+)")
def create_tag(service: Service, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    """Tag a revision; a tag never moves."""
    repo, _ = service.repo_to_write(request, kind, repo_id)
    name = request.json()["tag"]
    with service.store.changing():
        commit = repo.commit_at(revision)
        if name in repo.tags:
            raise HubError(409, f"Tag reference exists already: {name}")
        repo.tags[name] = commit.oid
    return json_response({})


@route("DELETE", f"{API}/tag/(?P<name>[^/]+)")
def delete_tag(service: Service, request: Request, kind: str, repo_id: str, name: str) -> Response:
    """Delete a tag."""
    repo, _ = service.repo_to_write(request, kind, repo_id)
    with service.store.changing():
        if repo.tags.pop(name, None) is None:
            raise HubError(404, f"Tag not found: {name}", code="RevisionNotFound")
    return json_response({})


@route("POST", f"{API}/branch/(?P<name>[^/]+)")
def create_branch(service: Service, request: Request, kind: str, repo_id: str, name: str) -> Response:
    """Create a branch at a starting point (main)."""
    repo, _ = service.repo_to_write(request, kind, repo_id)
    start = request.json().get("startingPoint") if request.body else None
    with service.store.changing():
        if name in repo.branches:
            raise HubError(409, f"Reference already exists: {name}")
        repo.branches[name] = repo.commit_at(start or MAIN).oid
    return json_response({})


@route("DELETE", f"{API}/branch/(?P<name>[^/]+)")
def delete_branch(service: Service, request: Request, kind: str, repo_id: str, name: str) -> Response:
    """Delete a branch, never main."""
    repo, _ = service.repo_to_write(request, kind, repo_id)
    if name == MAIN:
        raise HubError(403, "The main branch can't be deleted")
    with service.store.changing():
        if repo.branches.pop(name, None) is None:
            raise HubError(404, f"Branch not found: {name}", code="RevisionNotFound")
    return json_response({})


@route("POST", f"{API}/super-squash/(?P<revision>[^/]+)")
def squash(service: Service, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    """Make a branch one commit."""
    repo, user = service.repo_to_write(request, kind, repo_id)
    service.store.squash(repo, revision, request.json().get("message") or "Super-squash", user.name)
    return json_response({})


@route("GET", f"{API}/commits/(?P<revision>[^/]+)")
def commits(service: Service, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    """List the history, newest first."""
    repo = service.repo(request, kind, repo_id)
    return service.page(request, [commit.row() for commit in repo.history(revision)], 50)


def dates(repo: Repo, tick: int) -> dict[str, str]:
    """When it was created and when the shown commit was made."""
    return {"createdAt": timestamp(repo.created), "lastModified": timestamp(tick)}
