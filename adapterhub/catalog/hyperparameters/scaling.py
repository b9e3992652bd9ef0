"""Methods that scale or shift what modules give: IA3, norms, RoAd, BEFT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from adapterhub.catalog.hyperparameters.row import (
    EXCLUDED,
    SAVED,
    START,
    TARGETS,
    Hyperparameter,
    flag,
    whole,
    word,
)

IA3: tuple[Hyperparameter, ...] = (
    replace(TARGETS, help="modules whose output is scaled, and those of feedforward_modules; null for the family's"),
    Hyperparameter(
        name="feedforward_modules",
        kind="names",
        default=None,
        help="those of target_modules whose input is scaled instead; null for the family's, [] for none",
    ),
    EXCLUDED,
    SAVED,
    flag("init_ia3_weights", True, "begin with vectors of ones, which change nothing; false draws them at random"),
)

LN_TUNING: tuple[Hyperparameter, ...] = (
    replace(TARGETS, help="norms to train; null for the family's"),
    EXCLUDED,
    SAVED,
)

ROAD: tuple[Hyperparameter, ...] = (
    word(
        "variant",
        "road_1",
        ("road_1", "road_2", "road_4"),
        "numbers for a pair of outputs: 2, 4 or 8 (an angle and a length; one for each output; a whole matrix)",
    ),
    whole("group_size", 64, "outputs that are paired among themselves; even, and a divisor of every output", minimum=2),
    TARGETS,
    START,
    SAVED,
)

BEFT: tuple[Hyperparameter, ...] = (
    replace(TARGETS, help="modules whose output is shifted; null for the family's value projections"),
    START,
    SAVED,
)

TABLES: Mapping[str, tuple[Hyperparameter, ...]] = {"ia3": IA3, "ln_tuning": LN_TUNING, "road": ROAD, "beft": BEFT}
LEFT_OUT: Mapping[str, Mapping[str, str]] = {}
