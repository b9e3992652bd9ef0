"""How the deltas of a stack become one: one row a rule, with its paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from adapterhub.errors import UsageError
from adapterhub.spec._decode import suggest


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """One rule. needs_seed: it draws random numbers. available: this adapterhub computes it."""

    name: str
    title: str
    paper: str
    available: bool = False
    needs_seed: bool = False


COMBINATIONS: Mapping[str, Combination] = MappingProxyType(
    {
        row.name: row
        for row in (
            Combination(
                name="sum",
                title="the weighted sum of the deltas, exact",
                paper="https://arxiv.org/abs/2212.04089",
                available=True,
            ),
            Combination(
                name="linear",
                title="the weighted sum, weights divided by their total",
                paper="https://arxiv.org/abs/2203.05482",
            ),
            Combination(
                name="svd",
                title="the weighted sum cut to a lower rank",
                paper="https://arxiv.org/abs/2410.19735",
            ),
            Combination(
                name="ties",
                title="trim, elect a sign, merge what agrees",
                paper="https://arxiv.org/abs/2306.01708",
            ),
            Combination(
                name="dare_linear",
                title="drop at random and rescale, then the sum",
                paper="https://arxiv.org/abs/2311.03099",
                needs_seed=True,
            ),
            Combination(
                name="dare_ties",
                title="drop at random and rescale, then ties",
                paper="https://arxiv.org/abs/2311.03099",
                needs_seed=True,
            ),
            Combination(
                name="magnitude_prune",
                title="keep the largest entries of each delta, then the sum",
                paper="https://arxiv.org/abs/2306.01708",
            ),
        )
    }
)


def combination_named(name: str) -> Combination:
    """Return the row of a combination that can be computed.

    Raises:
        UsageError: no combination has this name, or it is not available yet.
    """
    row = COMBINATIONS.get(name)
    available = ", ".join(key for key, value in COMBINATIONS.items() if value.available)
    if row is None:
        near = suggest(name, COMBINATIONS)
        raise UsageError(
            f"{name!r} is not a combination", hint=f"did you mean {near}?" if near else f"available: {available}"
        )
    if not row.available:
        raise UsageError(f"the combination {name} cannot be computed yet", hint=f"available: {available}")
    return row
