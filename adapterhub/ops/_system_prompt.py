"""A system prompt needs a chat template to stand in."""

from __future__ import annotations

from adapterhub.errors import UsageError


def require_place(system: str | None, *, raw: bool, hint: str) -> None:
    """Refuse a system prompt where the chat template is left out.

    Raises:
        UsageError: both are asked for.
    """
    if raw and system is not None:
        raise UsageError("a system prompt has no place: --raw leaves the chat template out", hint=hint)
