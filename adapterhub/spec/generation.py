"""How text is drawn from a model: transformers' generation options, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adapterhub.errors import UsageError

DEFAULT_MAX_NEW_TOKENS = 256
_SAMPLING = ("temperature", "top_p", "top_k")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Options by transformers' names (GenerationConfig); None leaves the base model's own default.

    max_new_tokens: at most so many tokens are generated; None is DEFAULT_MAX_NEW_TOKENS, or what the context has left.
    do_sample: False takes the likeliest token every time. seed: where sampling begins; None draws one.
    """

    max_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None

    @classmethod
    def checked(
        cls,
        *,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> Generation:
        """Return the options as one value; naming an option of sampling, or a seed, asks for sampling.

        Raises:
            UsageError: a value is out of range, or sampling is both refused and asked for; `details` has every fault.
        """
        given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
        asked = [name for name, value in given.items() if value is not None]
        faults = [
            *_not_above(0, "max_new_tokens", max_new_tokens),
            *_not_above(0, "temperature", temperature),
            *_not_above(0, "repetition_penalty", repetition_penalty),
        ]
        if top_p is not None and not 0 < top_p <= 1:
            faults.append(f"top_p: {top_p:g} is not above 0 and at most 1")
        if top_k is not None and top_k < 0:
            faults.append(f"top_k: {top_k} is below 0 (0 is no limit)")
        if seed is not None and not 0 <= seed < 2**63:
            faults.append(f"seed: {seed} is not from 0 to 2^63-1")
        if do_sample is False and asked:
            faults.append(f"{', '.join(asked)}: greedy decoding draws nothing at random, so this would do nothing")
        if faults:
            hint = "leave temperature out to decode greedily" if temperature == 0 else None
            raise UsageError("these options cannot be used", where="generation", hint=hint, details=tuple(faults))
        return cls(
            max_new_tokens=max_new_tokens,
            do_sample=bool(asked) if do_sample is None else do_sample,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.do_sample,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
            "seed": self.seed,
        }

    def __str__(self) -> str:
        names = (*(_SAMPLING if self.do_sample else ()), "repetition_penalty", "seed")
        values = [f"{name}={getattr(self, name)}" for name in names if getattr(self, name) is not None]
        mode = "sampling" if self.do_sample else "greedy"
        return ", ".join([mode, f"max_new_tokens={self.max_new_tokens or DEFAULT_MAX_NEW_TOKENS}", *values])


def _not_above(limit: float, name: str, value: float | None) -> list[str]:
    if value is None or (math.isfinite(value) and value > limit):
        return []
    return [f"{name}: {value:g} is not above {limit:g}"]
