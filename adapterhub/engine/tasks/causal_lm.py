"""CAUSAL_LM: the next token, learned where the assistant writes (engine/data.py), measured by its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.engine.data import IGNORED, Example, Examples, encode_rows, pad
from adapterhub.engine.loss import token_losses
from adapterhub.engine.tasks import Judged

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from adapterhub.engine.rows import Row
    from adapterhub.spec.data import DataSpec


class CausalLM:
    """The task's part of a training."""

    own_head = True

    def labels(self, rows: Sequence[Row]) -> tuple[str, ...]:
        """None: the head is the base's vocabulary."""
        return ()

    def encode(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        spec: DataSpec,
        *,
        max_length: int,
        labels: Sequence[str] = (),
    ) -> Examples:
        """As engine/data.py has it."""
        return encode_rows(rows, tokenizer, spec, max_length=max_length)

    def collate(self, examples: Sequence[Example], *, pad_id: int) -> dict[str, torch.Tensor]:
        """Padded on the right: input_ids, attention_mask and labels, each (rows, tokens)."""
        return pad(examples, pad_id=pad_id)

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The cross-entropy of every labelled token."""
        return token_losses(model, batch)

    def judge(self, model: Any, batch: Mapping[str, torch.Tensor]) -> Judged:
        """Losses alone: perplexity is the measure."""
        return Judged(losses=token_losses(model, batch), counts=(batch["labels"][:, 1:] != IGNORED).sum(1))

    def scores(
        self, predictions: Sequence[Any], examples: Sequence[Example], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """None beside the loss."""
        return {}

    def naive_scores(
        self, trained: Sequence[Example], examples: Sequence[Example], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """None: the bare base is what to compare with."""
        return {}


ENGINE = CausalLM()
