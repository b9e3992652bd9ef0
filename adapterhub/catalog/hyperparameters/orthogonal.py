"""Rotations: OFT, BOFT, HRA; and OSF, which trains what is orthogonal to the base's strongest directions."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from adapterhub.catalog.hyperparameters.row import (
    EXCLUDED,
    LAYERS,
    SAVED,
    START,
    TARGETS,
    WHERE,
    Hyperparameter,
    bias,
    flag,
    number,
    rate,
    whole,
)

OFT: tuple[Hyperparameter, ...] = (
    whole("r", 0, "blocks a module; 0 where oft_block_size is given", minimum=0),
    whole("oft_block_size", 32, "width of a block; 0 where r is given", minimum=0),
    rate("module_dropout", "share of the blocks left out of a step"),
    TARGETS,
    EXCLUDED,
    bias("oft_only"),
    START,
    *LAYERS,
    SAVED,
    flag("coft", False, "keep every rotation within eps of none"),
    Hyperparameter(name="eps", kind="float", default=6e-5, minimum=0.0, help="how far a rotation may go with coft"),
    flag("block_share", False, "one block for all of a module"),
    flag("use_cayley_neumann", True, "invert by a short series instead of exactly"),
    whole("num_cayley_neumann_terms", 5, "terms of that series"),
)

BOFT: tuple[Hyperparameter, ...] = (
    whole("boft_block_size", 4, "width of a block; 0 where boft_block_num is given", minimum=0),
    whole("boft_block_num", 0, "blocks a module; 0 where boft_block_size is given", minimum=0),
    rate("boft_dropout", "share of the blocks left out of a step"),
    TARGETS,
    EXCLUDED,
    bias("boft_only"),
    START,
    *LAYERS,
    SAVED,
)

HRA: tuple[Hyperparameter, ...] = (
    whole("r", 8, "reflections a module; even, or it does not begin with none"),
    flag("apply_GS", False, "make the reflections orthogonal to each other (Gram-Schmidt)"),
    bias("hra_only"),
    START,
    *WHERE,
)

OSF: tuple[Hyperparameter, ...] = (
    number(
        "effective_rank",
        None,
        "strongest directions of a matrix that stay as they are: their number, or as a share below 1; null for half",
        minimum=1e-6,
    ),
    START,
    TARGETS,
    SAVED,
)

TABLES: Mapping[str, tuple[Hyperparameter, ...]] = {"oft": OFT, "boft": BOFT, "hra": HRA, "osf": OSF}
LEFT_OUT: Mapping[str, Mapping[str, str]] = {
    # Without its CUDA extension, which it compiles when it is imported, PEFT takes 1 whatever is asked for.
    "boft": MappingProxyType({"boft_n_butterfly_factor": "needs an extension of PEFT's in CUDA; without it, it is 1"}),
    "osf": MappingProxyType(
        {"rank_pattern": "is not offered here", "target_svd_config": "is not read by PEFT"},
    ),
}
