"""What an adapter's weights are when it does nothing: one row a method, by PEFT's word for it.

An untrained adapter is there at the start of training, and what was never trained is often saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Neutral:
    """When a module's change is nothing: `factors`, any one of which at zero makes their product zero (none: there is
    no such product), and `values`, parameters that all have to be at a value. always: the method changes something
    whatever its weights are. Names are parts of a tensor's name; one that ends in a dot stands for all it begins.
    """

    factors: tuple[str, ...] = ()
    values: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    always: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that the row speaks of."""
        return (*self.factors, *self.values)


def _product(*names: str, **values: float) -> Neutral:
    return Neutral(factors=names, values=MappingProxyType(values))


def _values(**values: float) -> Neutral:
    return Neutral(values=MappingProxyType(values))


_PROMPT = Neutral(always=True)

# As PEFT's forward methods have it (peft 0.21.2). Left out are those whose start is the base's own numbers, which only
# the base's weights tell (LN_TUNING, TRAINABLE_TOKENS, OSF, DEFT), and HRA's, pairs of reflections that cancel out.
NEUTRAL: Mapping[str, Neutral] = MappingProxyType(
    {
        "LORA": Neutral(
            factors=("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"),
            values=MappingProxyType({"lora_B.bias": 0.0}),
        ),
        "ADALORA": _product("lora_A", "lora_B", "lora_E"),
        "LOHA": _product("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
        "LOKR": _product("lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        "VERA": _product("vera_lambda_b", "vera_lambda_d"),
        "PVERA": _product("pvera_lambda_b", "pvera_lambda_d"),
        "RANDLORA": _product("randlora_lambda", "randlora_gamma"),
        "HIRA": _product("hira_A", "hira_B"),
        "DELORA": _product("delora_A", "delora_B", "delora_lambda"),
        "PEANUT": _product("peanut_B"),
        "ADAPTION_PROMPT": _product("adaption_gate"),
        "GRALORA": _values(gralora_B=0, gralora_B_general=0),
        "GLORA": Neutral(
            values=MappingProxyType(
                {
                    **{f"glora_{part}.{name}": 0.0 for part in "AB" for name in ("X", "Xd", "zeros")},
                    **{f"glora_{part}.": 0.0 for part in "CDE"},
                }
            )
        ),
        "OFT": _values(oft_R=0),
        "BOFT": _values(boft_R=0, boft_s=1),
        "IA3": _values(ia3_l=1),
        "ROAD": _values(road_theta=0, road_alpha=1),
        "MISS": _values(miss_block=0),
        "VBLORA": _values(vblora_vector_bank=0),
        "UNILORA": _values(unilora_theta_d=0),
        "TINYLORA": _values(tinylora_v=0),
        "SUPERTUNING": _values(supertuning_values=0, supertuning_lora_B=0),
        "BEFT": _values(beft_bias=0),
        "FOURIERFT": _values(fourierft_spectrum=0),
        "WAVEFT": _values(waveft_spectrum=0),
        "C3A": _values(c3a_kernel=0),
        "SHIRA": _values(shira_weight=0),
        "SHADOW": _values(shadow_up=0),
        "PROMPT_TUNING": _PROMPT,
        "P_TUNING": _PROMPT,
        "PREFIX_TUNING": _PROMPT,
        "CARTRIDGE": _PROMPT,
        "BOTTLENECK": _values(adapter_up=0),
        "BITFIT": _values(bias_delta=0),
    }
)
