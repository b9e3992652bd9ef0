"""What classifiers have in common: names in their order, texts to tokens, and the measures of right and wrong classes.

The measures are those of scikit-learn with `zero_division=0`
(https://scikit-learn.org/stable/modules/model_evaluation.html#classification-metrics), which the tests count out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.engine.data import IGNORED, Example

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

# As transformers' PreTrainedTokenizerBase.model_max_length where a tokenizer names no limit.
NO_LIMIT = 1 << 24
_WHOLE = re.compile(r"[+-]?[0-9]+")
_OUTSIDE = "O"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassExample(Example):
    """A row whose classes the model tells, one at each labelled token: labels[i] is a class or IGNORED.

    token_type_ids: which of two texts each token is of, where the tokenizer says so.
    """

    token_type_ids: tuple[int, ...] = ()

    @property
    def trained(self) -> int:
        """How many classes are told: no token has to come before the first of them."""
        return sum(label != IGNORED for label in self.labels)

    @property
    def targets(self) -> tuple[int, ...]:
        """The classes, in order."""
        return tuple(label for label in self.labels if label != IGNORED)


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Return each name once: `O` first, whole numbers by their size, the others by their letters."""
    found = set(names)
    if all(_WHOLE.fullmatch(name) for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found, key=lambda name: (name != _OUTSIDE, name)))


def tokenized(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    *,
    max_length: int,
    offsets: bool = False,
) -> tuple[Any, list[bool]]:
    """Tokenize texts, or pairs of them, as the tokenizer begins and ends them; also return which are cut.

    What is too long is cut at its end, of two texts always the longer one's.
    """
    options: dict[str, Any] = {"return_offsets_mapping": offsets, "verbose": False}
    second = {} if pairs is None else {"text_pair": list(pairs)}
    whole = tokenizer(list(texts), **second, **options, truncation=False)
    cut = [len(ids) > max_length for ids in whole["input_ids"]]
    if not any(cut) or max_length > NO_LIMIT:
        return whole, [False] * len(cut)
    rule = "longest_first" if pairs is not None else True
    return tokenizer(list(texts), **second, **options, truncation=rule, max_length=max_length), cut


def pad_classes(examples: Sequence[Example], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Pad on the right: input_ids, attention_mask, labels, and token_type_ids where all have them: (rows, tokens)."""
    import torch

    width = max(len(example.input_ids) for example in examples)

    def padded(values: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
        return torch.tensor([[*row, *[filler] * (width - len(row))] for row in values], dtype=torch.long)

    batch = {
        "input_ids": padded([example.input_ids for example in examples], pad_id),
        "attention_mask": padded([(1,) * len(example.input_ids) for example in examples], 0),
        "labels": padded([example.labels for example in examples], IGNORED),
    }
    types = [example.token_type_ids for example in examples if isinstance(example, ClassExample)]
    if len(types) == len(examples) and all(types):
        batch["token_type_ids"] = padded(types, 0)
    return batch


def inputs_of(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what of a batch a model's forward pass takes."""
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}


def counts_by_class(truth: Sequence[int], told: Sequence[int]) -> dict[int, tuple[int, int, int]]:
    """Return of each class that is or was told: how often rightly told, how often told, how often there."""
    right = Counter(a for a, b in zip(truth, told, strict=True) if a == b)
    there, said = Counter(truth), Counter(told)
    return {name: (right[name], said[name], there[name]) for name in sorted({*there, *said})}


def f1(right: float, said: float, there: float) -> float:
    """Return the harmonic mean of precision and recall, 0 where there is neither."""
    return 2 * right / (said + there) if said + there else 0.0


def f1_macro(truth: Sequence[int], told: Sequence[int]) -> float:
    """Return the mean F1 of the classes that are there or were told."""
    found = [f1(*counts) for counts in counts_by_class(truth, told).values()]
    return sum(found) / len(found) if found else 0.0


def accuracy(truth: Sequence[int], told: Sequence[int]) -> float:
    """Return the share of classes rightly told."""
    return sum(a == b for a, b in zip(truth, told, strict=True)) / len(truth) if truth else 0.0


def matthews(truth: Sequence[int], told: Sequence[int]) -> float:
    """Return the correlation of truth and prediction, 0 where one of them has a single class.

    For any number of classes: Gorodkin, https://doi.org/10.1016/j.compbiolchem.2004.09.006.
    """
    counts = counts_by_class(truth, told).values()
    total, right = len(truth), sum(row[0] for row in counts)
    both = right * total - sum(said * there for _, said, there in counts)
    of_told = total**2 - sum(said**2 for _, said, _ in counts)
    of_truth = total**2 - sum(there**2 for _, _, there in counts)
    return float(both / (of_told * of_truth) ** 0.5) if of_told and of_truth else 0.0


def most_frequent(trained: Iterable[Example]) -> int:
    """Return the class that the training rows have most often, of equally frequent ones the first."""
    found = Counter(target for example in trained if isinstance(example, ClassExample) for target in example.targets)
    return min(found, key=lambda name: (-found[name], name)) if found else 0
