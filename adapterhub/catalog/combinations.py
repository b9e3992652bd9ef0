"""How the deltas of a stack become one: one row a rule, with its paper, what it takes and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from adapterhub.errors import UsageError
from adapterhub.spec._decode import suggest
from adapterhub.spec.stack import Parameters

DEFAULT_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """One rule.

    exact: the result is Σ wᵢ·ΔWᵢ itself as long as no rank is given. needs_seed: it draws random numbers. normalizes:
    the weights are always divided by the sum of their magnitudes. density: the share of entries that is kept, where
    none is given; None: it takes none. takes_lambda: its paper scales the result by λ, 1 by default. adds_ranks: where
    no rank is given, a result may have the sum of the members' ranks, else the largest of them. paper: where the rule
    is from. available: this adapterhub computes it.
    """

    name: str
    title: str
    formula: str
    paper: str
    available: bool = True
    exact: bool = False
    needs_seed: bool = False
    normalizes: bool = False
    density: float | None = None
    takes_lambda: bool = False
    adds_ranks: bool = False


COMBINATIONS: Mapping[str, Combination] = MappingProxyType(
    {
        row.name: row
        for row in (
            Combination(
                name="sum",
                title="the weighted sum of the deltas, exact",
                formula="Σ wᵢ·ΔWᵢ",
                paper="https://arxiv.org/abs/2212.04089",
                exact=True,
                adds_ranks=True,
            ),
            Combination(
                name="cat",
                title="the same as sum, by PEFT's word for it",
                formula="Σ wᵢ·ΔWᵢ",
                paper="https://arxiv.org/abs/2410.13025",
                exact=True,
                adds_ranks=True,
            ),
            Combination(
                name="linear",
                title="the weighted sum, weights divided by the sum of their magnitudes",
                formula="Σ wᵢ·ΔWᵢ / Σ|wᵢ|",
                paper="https://arxiv.org/abs/2203.05482",
                exact=True,
                normalizes=True,
                adds_ranks=True,
            ),
            Combination(
                name="svd",
                title="the weighted sum cut to a lower rank",
                formula="the nearest matrix of rank k to Σ wᵢ·ΔWᵢ",
                paper="https://doi.org/10.1007/BF02288367",
            ),
            Combination(
                name="ties",
                title="trim, elect a sign, merge what agrees",
                formula="λ · mean of the trimmed wᵢ·ΔWᵢ that have the sign of their sum",
                paper="https://arxiv.org/abs/2306.01708",
                density=0.2,
                takes_lambda=True,
            ),
            # The paper drops 90 % of a full fine-tune; of a delta of low rank so much is not told from noise again.
            Combination(
                name="dare_linear",
                title="drop at random and rescale, then the sum",
                formula="Σ wᵢ·mᵢ⊙ΔWᵢ / density,  mᵢ ~ Bernoulli(density)",
                paper="https://arxiv.org/abs/2311.03099",
                needs_seed=True,
                density=0.5,
            ),
            Combination(
                name="dare_ties",
                title="drop at random and rescale, then ties without its trim",
                formula="λ · mean of the wᵢ·mᵢ⊙ΔWᵢ / density that have the sign of their sum",
                paper="https://arxiv.org/abs/2311.03099",
                needs_seed=True,
                density=0.5,
                takes_lambda=True,
            ),
            Combination(
                name="magnitude_prune",
                title="keep the largest entries of each delta, then the sum",
                formula="Σ wᵢ·top(ΔWᵢ)",
                paper="https://arxiv.org/abs/2306.01708",
                density=0.2,
            ),
            Combination(
                name="knots",
                title="ties among the right singular vectors of all deltas side by side",
                formula="U·S·ties(V₁, …, Vₙ)ᵀ  with  [w₁ΔW₁, …, wₙΔWₙ] = U·S·[V₁; …; Vₙ]ᵀ",
                paper="https://arxiv.org/abs/2410.19735",
                density=0.2,
                takes_lambda=True,
                adds_ranks=True,
            ),
        )
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A combination with every parameter decided: what is computed, and what a manifest records.

    rank: the most that a module's result may have; None: what the row says. density, seed, scale (λ): None where the
    combination takes none.
    """

    row: Combination
    rank: int | None = None
    density: float | None = None
    seed: int | None = None
    scale: float | None = None
    normalize: bool = False

    @property
    def name(self) -> str:
        """The combination's name."""
        return self.row.name

    @property
    def exact(self) -> bool:
        """True when the result is the weighted sum itself."""
        return self.row.exact and self.rank is None

    def parameters(self) -> dict[str, float | int | bool]:
        """Return the parameters that it takes, by the names that files and options have."""
        told = {
            "density": self.density,
            "lambda": self.scale,
            "seed": self.seed,
            "rank": self.rank,
            "normalize": self.normalize or None,
        }
        return {key: value for key, value in told.items() if value is not None}

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {"combination": self.name, "parameters": self.parameters()}

    def __str__(self) -> str:
        said = self.parameters()
        words = [f"{key} {value:g}" for key, value in said.items() if key != "normalize"]
        words += ["normalized"] if "normalize" in said else []
        return f"{self.name} ({', '.join(words)})" if words else self.name


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


def rule_of(name: str, parameters: Parameters | None = None) -> Rule:
    """Return a combination with the parameters given, and its own for the others.

    Raises:
        UsageError: there is no such combination, a parameter is out of its range, or one that this combination does
            not take was given; `details` has every fault.
    """
    row, given = combination_named(name), parameters or Parameters()
    faults = list(given.faults())
    takers = {
        "density": (given.density, row.density is not None, [r.name for r in COMBINATIONS.values() if r.density]),
        "seed": (given.seed, row.needs_seed, [r.name for r in COMBINATIONS.values() if r.needs_seed]),
        "lambda": (given.scale, row.takes_lambda, [r.name for r in COMBINATIONS.values() if r.takes_lambda]),
    }
    for key, (value, taken, names) in takers.items():
        if value is not None and not taken:
            faults.append(f"{key}: {name} takes none ({', '.join(names)} do)")
    if faults:
        raise UsageError(f"the combination {name} cannot be made so", details=tuple(faults))
    return Rule(
        row=row,
        rank=given.rank,
        density=given.density if given.density is not None else row.density,
        seed=(given.seed if given.seed is not None else DEFAULT_SEED) if row.needs_seed else None,
        scale=(given.scale if given.scale is not None else 1.0) if row.takes_lambda else None,
        normalize=bool(given.normalize) or row.normalizes,
    )
