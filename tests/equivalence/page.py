"""docs/exactness.md, written from the matrix that the tests hold: `python -m tests.equivalence.page`."""

from __future__ import annotations

from pathlib import Path

from adapterhub.files import write_atomic
from tests.equivalence.matrix import BFLOAT16, BOUND, MANY, REASONS, expected
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
`lora, two` are two LoRAs at the weights {weights}; the last rows are stacks of several
methods, in this order and each at weight 1; everything else is one adapter. Bottleneck adapters and BitFit are not
PEFT's: their reference is the model that was trained. That of a stack of several methods is plain PEFT, each adapter
merged and the next one loaded over the result ([stacking.md](stacking.md)). What is exported of either is opened by
`adapterhub.load`.

**bfloat16.** Nothing is exact there, and being close to PEFT's own rounding would prove nothing. The reference is
PEFT's active adapter in float32 over the same bfloat16 weights; each way's mean error against it is told as a share of
the error of PEFT's active adapter in bfloat16, over {many} bases and adapters (Llama; mean ± standard error):

| | loaded, merged | PEFT's `merge_and_unload` | the merged weights alone |
|---|---|---|---|
{bfloat16}

- What is **concatenated** is as far off as the active adapter: it is computed in the same way.
- What is **loaded or merged** is no further off than PEFT's own merge (held within 1 %), and over a stack less: PEFT
  rounds once for every adapter, here all are summed first.
- Against the **active** adapter a merge pays for its one rounding of W + ΔW, of which the active adapter keeps ΔW in
  float32. How much that is says the last column: merged weights with everything else in float32. Beside the rounding of
  activations, which all have, it adds no more in the mean than independent errors do, √(1 + x²), and the adapter's own
  path and its roundings are saved. No merge into bfloat16 can avoid it; `--dtype float32` does.

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
    rows = (
        f"| {case} | " + " | ".join(f"{mean:.3f} ± {error:.3f}" for mean, error in row.values()) + " |"
        for case, row in BFLOAT16.items()
    )
    words = {"weights": " and ".join(f"{weight:g}" for weight in WEIGHTS), "many": MANY, "bfloat16": "\n".join(rows)}
    lines.append(_TAIL.format(**words))
    return "".join(lines)


if __name__ == "__main__":
    write_atomic(PAGE, text().encode())
