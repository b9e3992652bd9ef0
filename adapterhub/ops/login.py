"""`adapt login`: a token for the Hub, checked there and kept where huggingface_hub keeps its own."""

from __future__ import annotations

import re
from pathlib import Path

from adapterhub.errors import AuthorizationError, UsageError
from adapterhub.files import local_io
from adapterhub.ops.whoami import Account, account_of
from adapterhub.settings import Settings

# Visible ASCII: anything else cannot stand in a request's header.
_TOKEN = re.compile(r"[!-~]{1,2000}")


def token_page(endpoint: str) -> str:
    """Return the page on which the Hub makes tokens."""
    return f"{endpoint}/settings/tokens"


def login(token: str, settings: Settings) -> Account:
    """Check a token with the Hub and store it, by huggingface_hub, so that every tool that uses it is logged in.

    Nothing is stored when the Hub refuses the token or gives no answer.

    Raises:
        UsageError: that is no token. AuthorizationError: it is refused. NetworkError: no answer. LocalIOError.
    """
    token = token.strip()
    if not _TOKEN.fullmatch(token):
        raise UsageError("that is no token", where="adapt login", hint="paste the token alone, one line")
    from huggingface_hub import constants
    from huggingface_hub import login as store_token

    from adapterhub.registry._hub_client import HubClient

    client = HubClient(offline=settings.offline)
    hint = f"make a token at {token_page(client.endpoint)}"
    try:
        with client.guarded("log in", client.endpoint):
            account = account_of(client.api.whoami(token=token), client, variable=None)
            with local_io(Path(constants.HF_TOKEN_PATH), "store the token"):
                store_token(token=token, add_to_git_credential=False)
    except AuthorizationError as error:
        raise AuthorizationError(error.message, where=error.where, hint=hint) from None
    except ValueError as error:  # an organisation's token, which huggingface_hub refuses
        raise AuthorizationError(str(error), where=client.endpoint, hint=hint) from None
    return account
