"""docs/exactness.md, written from the matrix that the tests hold: `python -m tests.equivalence.page`."""

from __future__ import annotations

from pathlib import Path

from adapterhub.files import write_atomic
from tests.equivalence.matrix import BOUND, REASONS, expected
from tests.equivalence.worlds import ARCHITECTURES, WEIGHTS

PAGE = Path(__file__).parents[2] / "docs" / "exactness.md"
_TITLES = {"neox": "GPT-NeoX", "moe": "Mixtral", "gpt2": "GPT-2", "bert": "BERT", "t5": "T5", "bloom": "BLOOM"}

_HEAD = """# What is exact

One adapter can be used in five ways, and they have to be one adapter:

- **active**: plain PEFT over plain transformers. This is the reference.
- **loaded**: `adapt run` and `adapterhub.load`, which fold it into the base's weights in memory, or, where no weight
  can say it, put it before or beside them.
- **concatenated**: `adapt merge --as-adapter`, opened by plain PEFT.
- **merged**: `adapt merge` into a checkpoint, opened by plain transformers.
- **exported**: published to a registry, installed, and opened by plain PEFT from `.adapters/`.

A test makes an adapter of every method over a tiny base of every architecture, by PEFT, with every trained value drawn
at random, and compares the logits of all ways (of BERT the last hidden states) pairwise, on two rows of twelve tokens.
In float32 no two may differ by more than {bound:g} of the largest. The table is written from what that test holds
(`python -m tests.equivalence.page`): a cell that changes fails it. Each cell says **loaded, concatenated, merged,
exported**, in this order:

- ✓ agrees with the active adapter.
{reasons}
- – there is no such adapter: PEFT does not put the method on this architecture, or it has nothing there to train.

"""
_TAIL = """
`lora, two` are two LoRAs at the weights {weights}; everything else is one adapter. Bottleneck adapters and BitFit are
not PEFT's: their reference is the model that was trained, and what is exported is opened by `adapterhub.load`.

**bfloat16.** Nothing is exact there, and being close to PEFT's own rounding would prove nothing. The reference is
PEFT's active adapter in float32 over the same weights; the mean error of the loaded, merged and concatenated adapter
against it must not be larger than that of PEFT's active adapter in bfloat16, with 5 % for noise (held for a stack of
LoRAs and for DoRA, on Llama).

**A real model.** On SmolLM2-135M-Instruct a stack of two LoRAs, a DoRA and an (IA)³ are loaded, merged and (where it is
LoRA) concatenated, held to the same bound in float32.
"""


def text() -> str:
    """Return the page."""
    reasons = "\n".join(f"- **{letter}** refused: {reason.prose}." for letter, reason in REASONS.items())
    lines = [_HEAD.format(bound=BOUND, reasons=reasons)]
    titles = [_TITLES.get(word, word.capitalize()) for word in ARCHITECTURES]
    lines.append(f"| method | {' | '.join(titles)} |\n|---|{'---|' * len(titles)}\n")
    for case, cells in expected().items():
        shown = ["–" if code == "-" else " ".join(code.replace("=", "✓")) for code in cells.values()]
        lines.append(f"| {case.replace('_', '-')} | {' | '.join(shown)} |\n")
    lines.append(_TAIL.format(weights=" and ".join(f"{weight:g}" for weight in WEIGHTS)))
    return "".join(lines)


if __name__ == "__main__":
    write_atomic(PAGE, text().encode())
