"""What can be trained over linear weights that bitsandbytes has packed in 4 or 8 bits.

Each was found by training it over packed weights and over the same weights unpacked: outputs and gradients are the same
(tests/engine/test_quantized.py). What is in no set was not tried, or failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

ON_FOUR_BITS: frozenset[str] = frozenset(
    (
        *("lora", "dora", "adalora", "vera", "pvera", "vblora", "randlora", "gralora", "hira", "miss"),
        *("ia3", "road", "beft", "bitfit", "ln_tuning", "oft", "boft", "fourierft", "waveft", "c3a", "shira"),
        *("trainable_tokens", "prompt_tuning", "prefix_tuning", "p_tuning", "cartridge", "adaption_prompt"),
        *("bottleneck", "shadow"),
    )
)
# LoHa and LoKr take the shape of a packed weight for that of the matrix, which with 8 bits it is. Over 8 bits HRA, DeFT
# and PEANuT take the packed numbers for the weights and train something else, without a word.
ON_EIGHT_BITS: frozenset[str] = ON_FOUR_BITS | {"loha", "lokr"}

# Values of init_lora_weights that need the weights themselves, by how they begin.
_STARTS: Mapping[str, str] = MappingProxyType(
    {
        "pissa": "takes a part of the base's weights away, and what is left would have to be rounded again",
        "olora": "takes a part of the base's weights away, and what is left would have to be rounded again",
        "orthogonal": "begins in the base's dtype, which packed weights do not have",
    }
)


def why_not_over(bits: int, method: str, hyperparameters: Mapping[str, object]) -> tuple[str, str] | None:
    """Return why a method cannot be trained over a base of 4 or 8 bits, and the field; None where it can."""
    if method not in (ON_FOUR_BITS if bits == 4 else ON_EIGHT_BITS):
        return "method", f"{method} cannot be trained over a {bits}-bit base"
    start = hyperparameters.get("init_lora_weights")
    for word, reason in _STARTS.items():
        if isinstance(start, str) and start.startswith(word):
            return "hyperparameters.init_lora_weights", f"{start} {reason}, and this base has {bits} bits"
    return None
