"""The model card of a built package: README.md with the Hub's header."""

from __future__ import annotations

from collections.abc import Mapping

from adapterhub.registry._hub_card import card_body, with_header
from adapterhub.spec.manifest import CARD_FILE, Manifest


def model_card(manifest: Manifest, training: Mapping[str, object], *, plot: bool = False) -> str:
    """Write the card: what the adapter is, how to load it, how it was trained, what was measured.

    training: the recipe's settings by name. plot: whether a plot of the loss lies beside it.
    """
    return with_header(card_body(manifest, training=training, plot=plot), manifest, where=CARD_FILE)
