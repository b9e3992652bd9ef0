"""What is exact, as data: method × architecture × way to use an adapter, and why a way is refused where it is.

A cell has one character a way (worlds.PATHS): `=` agrees with plain PEFT's active adapter, a letter is a reason of
REASONS. `-` instead of four: there is no such adapter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapterhub.errors import AdapterHubError, IncompatibleError
from tests.equivalence.worlds import ARCHITECTURES, PATHS, ROWS, NotHere, World, difference, refusal

# Of the largest value: what another order of float32 sums makes.
BOUND = 1e-4
# An adapter that changed less than this would agree whatever was done with it.
EFFECT = 30 * BOUND


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a way is refused: the error's class, what it says, and the same for people."""

    error: type[AdapterHubError]
    says: str
    prose: str


_PROMPTS = "PROMPT_TUNING|PREFIX_TUNING|P_TUNING|CARTRIDGE|ADAPTION_PROMPT|SHADOW|BOTTLENECK|BEFT"
REASONS: Mapping[str, Reason] = {
    "a": Reason(
        IncompatibleError,
        r"cannot be written as a sum of low-rank changes.*peft_type: \w+ is not LoRA",
        "`--as-adapter` writes a LoRA, and this is no sum of low-rank factors as it stands (`adapt convert` makes a "
        "LoRA of AdaLoRA, LoHa and LoKr)",
    ),
    "b": Reason(
        IncompatibleError,
        "(cannot be written as a sum of low-rank changes.*(trains biases too|target_parameters)|fused experts are "
        "changed by a merge alone)",
        "trains something beside its factors, which no LoRA says; fused experts are changed in a checkpoint and "
        "nowhere else",
    ),
    "c": Reason(
        IncompatibleError,
        f"adapters of ({_PROMPTS}) cannot be merged here",
        "no weight of the base says what it says: a prompt, a network beside a layer, a bias on its output",
    ),
    "d": Reason(
        IncompatibleError,
        r"2 of its 4 modules are not in this base model: they would be left out silently.*decoder\.embed_tokens",
        "names an encoder's and a decoder's embeddings too, which a checkpoint stores under one name; `adapt run` "
        "loads it",
    ),
    "e": Reason(
        IncompatibleError,
        "these adapters cannot be summed.*use_dora: DoRA rescales the weight it finds",
        "a DoRA rescales what the others did, which `--as-adapter` could not say in one LoRA",
    ),
}


# bfloat16, over thirty bases and adapters: mean and standard error of the mean error against PEFT's active adapter in
# float32, as a share of that of PEFT's active adapter in bfloat16. weights: merged weights, computed with in float32.
MANY = 30
BFLOAT16: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "lora, two": {"loaded": (1.0057, 0.0024), "peft": (1.0753, 0.0037), "weights": (0.3622, 0.0031)},
    "dora": {"loaded": (1.0477, 0.0025), "peft": (1.0477, 0.0025), "weights": (0.3707, 0.0053)},
}


def classify(outcome: Any, active: Any) -> str:
    """Return the character of one way's outcome; `!` for a disagreement, `?` for an unexpected refusal."""
    if not isinstance(outcome, AdapterHubError):
        return "=" if difference(outcome, active) <= BOUND else "!"
    told = refusal(outcome)
    for letter, reason in REASONS.items():
        if type(outcome) is reason.error and re.search(reason.says, told, re.DOTALL):
            return letter
    return "?"


def cell(world: World, case: str) -> tuple[str, list[str]]:
    """Return a cell as it is now, and what to know of it if it should be another."""
    try:
        world.make(case)
    except NotHere as error:
        return "-", [str(error)]
    active = world.active(case)
    assert difference(active, world.bare) > EFFECT, f"{case}: does next to nothing"
    outcomes = {path: world.outcome(path, case) for path in PATHS}
    notes = [
        f"{path}: {refusal(item)}" if isinstance(item, AdapterHubError) else f"{path}: {difference(item, active):.1e}"
        for path, item in outcomes.items()
    ]
    agreeing = [active, *(item for item in outcomes.values() if not isinstance(item, AdapterHubError))]
    code = "".join(classify(item, active) for item in outcomes.values())
    if "!" not in code and any(difference(one, other) > BOUND for one in agreeing for other in agreeing):
        code += "!"
    return code, notes


def expected() -> dict[str, dict[str, str]]:
    """Return the cells of CELLS: case → architecture → characters."""
    lines = CELLS.strip().splitlines()
    assert lines[0].split() == list(ARCHITECTURES)
    rows = {}
    for line in lines[1:]:
        case, *cells = re.split(r"  +", line.strip())
        rows[case] = dict(zip(ARCHITECTURES, cells, strict=True))
    assert list(rows) == list(ROWS)
    return rows


CELLS = """
                    llama  gpt2   bert   t5     bloom  neox   moe
lora                ====   ====   ====   ====   ====   ====   ====
dora                ====   ====   ====   ====   ====   ====   ====
adalora             =a==   =a==   =a==   =a==   =a==   =a==   =a==
loha                =a==   -      =a==   =a==   =a==   =a==   =a==
lokr                =a==   -      =a==   =a==   =a==   =a==   =a==
oft                 =a==   -      =a==   =a==   =a==   =a==   =a==
boft                =a==   -      =a==   =a==   =a==   =a==   =a==
vera                =a==   =a==   =a==   =a==   =a==   =a==   =a==
ia3                 =a==   =a==   =a==   =a==   =a==   =a==   =a==
ln_tuning           =a==   =a==   =a==   =a==   =a==   =a==   =a==
trainable_tokens    =a==   =a==   =a==   =ad=   =a==   =a==   =a==
prompt_tuning       =ac=   =ac=   =ac=   =ac=   =ac=   =ac=   =ac=
p_tuning            =ac=   =ac=   =ac=   =ac=   =ac=   =ac=   =ac=
prefix_tuning       =ac=   =ac=   =ac=   =ac=   =ac=   =ac=   =ac=
cartridge           =ac=   =ac=   =ac=   =ac=   =ac=   =ac=   =ac=
adaption_prompt     =ac=   =ac=   -      -      -      -      -
pvera               =a==   =a==   =a==   =a==   =a==   =a==   =a==
vblora              =a==   =a==   =a==   =a==   =a==   =a==   =a==
randlora            =a==   =a==   =a==   =a==   =a==   =a==   =a==
gralora             =a==   =a==   =a==   =a==   =a==   =a==   =a==
glora               =a==   -      =a==   =a==   =a==   =a==   =a==
hira                =a==   =a==   =a==   =a==   =a==   =a==   =a==
unilora             =a==   =a==   =a==   =a==   =a==   =a==   =a==
tinylora            =a==   =a==   =a==   =a==   =a==   =a==   =a==
miss                =a==   -      =a==   =a==   =a==   =a==   =a==
delora              =a==   -      =a==   =a==   =a==   =a==   =a==
deft                =a==   =a==   =a==   =a==   =a==   =a==   =a==
peanut              =a==   -      =a==   =a==   =a==   =a==   =a==
supertuning         =a==   -      =a==   =a==   =a==   =a==   =a==
road                =a==   -      =a==   =a==   =a==   =a==   =a==
beft                =ac=   -      =ac=   =ac=   =ac=   =ac=   =ac=
hra                 =a==   -      =a==   =a==   =a==   =a==   =a==
osf                 =a==   -      =a==   =a==   =a==   =a==   =a==
fourierft           =a==   =a==   =a==   =a==   =a==   =a==   =a==
waveft              =a==   =a==   =a==   =a==   =a==   =a==   =a==
c3a                 =a==   -      =a==   =a==   =a==   =a==   =a==
shira               =a==   -      =a==   =a==   =a==   =a==   =a==
shadow              =ac=   =ac=   -      -      =ac=   =ac=   =ac=
lora, two           ====   ====   ====   ====   ====   ====   ====
lora, rsLoRA        ====   ====   ====   ====   ====   ====   ====
lora, all-linear    ====   ====   ====   ====   ====   ====   bb==
lora, biases        =b==   =b==   =b==   =b==   =b==   =b==   =b==
lora, experts       -      -      -      -      -      -      bb==
bottleneck          =ac=   =ac=   =ac=   =ac=   =ac=   =ac=   =ac=
bitfit              -      =a==   =a==   -      =a==   =a==   -
lora, ia3               =a==   =a==   =a==   =a==   =a==   =a==   =a==
ia3, lora               =a==   =a==   =a==   =a==   =a==   =a==   =a==
lora, dora              =e==   =e==   =e==   =e==   =e==   =e==   =e==
lora, biases, loha      =b==   -      =b==   =b==   =b==   =b==   =b==
lora, hra               =a==   -      =a==   =a==   =a==   =a==   =a==
lora, prompt_tuning     =ac=   =ac=   =ac=   =ac=   =ac=   =ac=   =ac=
dora, prefix_tuning     =ac=   =ac=   =ac=   =ac=   =ac=   =ac=   =ac=
lora, bottleneck        =ac=   =ac=   =ac=   =ac=   =ac=   =ac=   =ac=
"""
