"""What is refused as a token before anybody is asked; the rest is in tests/cli/test_login.py, by real processes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapterhub.errors import UsageError
from adapterhub.ops.login import login
from adapterhub.settings import Settings
from tests.hub import fixtures
from tests.hub.server import Hub


@pytest.mark.parametrize("token", ["", " \n", "two words", "hf_ñ", "hf_alice\nhf_alice\n", "hf_\x00", "x" * 2001])
def test_what_is_no_token_reaches_nobody(
    token: str, hub: Hub, hub_client: fixtures.HubClient, settings: Settings
) -> None:
    with pytest.raises(UsageError) as caught:
        login(token, replace(settings, offline=False))
    assert token.strip() not in str(caught.value) or not token.strip()
    assert hub.requests == []
