"""SEQ_2_SEQ_LM: a source that an encoder reads and a target that the decoder learns, measured by what it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adapterhub.engine.data import IGNORED, Example, Examples
from adapterhub.engine.tasks import Judged, RowParts
from adapterhub.engine.tasks import _classes as classes
from adapterhub.engine.tasks import _text_measures as measures
from adapterhub.errors import BuildError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from adapterhub.engine.rows import Row
    from adapterhub.spec.data import DataSpec

WRITTEN_ROWS = 200
"""Of held-out rows so many, spread evenly, have their text written: it takes a pass of the decoder a token."""
_CHUNK_ROWS = 1000
_SHORTEST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPair(Example):
    """A source (`input_ids`) and its target. written: whether the target is also written by the model and compared.

    decode: tokens back to text, by the tokenizer that made them.
    """

    target: tuple[int, ...]
    reference: str
    written: bool
    decode: Callable[[Sequence[int]], str] = field(compare=False, repr=False)

    @property
    def trained(self) -> int:
        """The target's tokens: the first is predicted from the decoder's start token."""
        return len(self.target)


class SequenceToSequence:
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
        """Sources and targets as the tokenizer begins and ends each, both cut at `max_length`; targets keep their end.

        Raises:
            BuildError: a source has no token.
        """

        def decode(ids: Sequence[int]) -> str:
            return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

        items, truncated = list[TextPair](), []
        shown = set(_spread(len(rows), WRITTEN_ROWS))
        for start in range(0, len(rows), _CHUNK_ROWS):
            chunk = rows[start : start + _CHUNK_ROWS]
            sources, cut = classes.tokenized(tokenizer, [row.prompt for row in chunk], None, max_length=max_length)
            targets = tokenizer(text_target=[row.text for row in chunk], verbose=False)["input_ids"]
            for row, ids, target, is_cut in zip(chunk, sources["input_ids"], targets, cut, strict=True):
                if not ids:
                    raise BuildError("the prompt has no token", where=row.place, hint="give the row a prompt")
                ended = _ended(target, tokenizer.eos_token_id, max_length)
                truncated += [row.place] if is_cut or len(ended) < len(target) else []
                items.append(
                    TextPair(
                        place=row.place,
                        question=row.question,
                        input_ids=tuple(ids),
                        # Of a row's own tokens none is learned; what counts rows and batches looks for one.
                        labels=(IGNORED,) * (len(ids) - 1) + (ids[-1],),
                        target=ended,
                        reference=row.text,
                        written=len(items) in shown,
                        decode=decode,
                    )
                )
        return Examples(items=tuple(items), truncated=tuple(truncated))

    def collate(self, examples: Sequence[Example], *, pad_id: int) -> dict[str, torch.Tensor]:
        """Padded on the right: input_ids, attention_mask (rows, source), labels (rows, target); written: (rows,)."""
        import torch

        pairs = [example for example in examples if isinstance(example, TextPair)]
        width = max(len(pair.target) for pair in pairs)
        targets = [[*pair.target, *[IGNORED] * (width - len(pair.target))] for pair in pairs]
        batch = classes.pad_classes(examples, pad_id=pad_id)
        batch["labels"] = torch.tensor(targets, dtype=torch.long)
        batch["written"] = torch.tensor([pair.written for pair in pairs])
        return batch

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The cross-entropy of every token of the targets: (tokens,)."""
        import torch

        targets = batch["labels"]
        wanted = targets != IGNORED
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        inputs = {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            # Padding behind a target changes nothing before it: the decoder looks back only.
            "decoder_input_ids": decoder_inputs(base, targets),
            "use_cache": False,
        }
        logits = model(**inputs).logits[wanted]
        return torch.nn.functional.cross_entropy(logits.float(), targets[wanted], reduction="none")

    def judge(self, model: Any, batch: Mapping[str, torch.Tensor]) -> Judged:
        """Losses, and of the `written` rows the tokens that the model writes, the likeliest one at a time."""
        losses = self.losses(model, batch)
        lengths = (batch["labels"] != IGNORED).sum(1)
        predictions: list[Any] = [()] * len(lengths)
        rows = batch["written"].nonzero().flatten()
        if len(rows):
            # An answer that goes on for twice the longest target is wrong wherever it would end.
            limit = max(_SHORTEST, 2 * int(lengths[rows].max()))
            ids, mask = batch["input_ids"][rows], batch["attention_mask"][rows]
            made = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=limit, num_beams=1, do_sample=False
            )
            for row, written in zip(rows.tolist(), made.tolist(), strict=True):
                predictions[row] = (tuple(written),)
        return Judged(losses=losses, counts=lengths, predictions=tuple(predictions))

    def scores(
        self, predictions: Sequence[Any], examples: Sequence[Example], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """ROUGE-L, chrF and exact match of the rows whose text was written."""
        pairs = [pair for pair in self._texts(predictions, examples) if pair is not None]
        if not pairs:
            return {}
        told, truth = zip(*pairs, strict=True)
        return {
            "rouge_l": sum(map(measures.rouge_l, told, truth)) / len(pairs),
            "chrf": measures.chrf(told, truth),
            "exact_match": sum(map(measures.exact, told, truth)) / len(pairs),
        }

    def naive_scores(
        self, trained: Sequence[Example], examples: Sequence[Example], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """None: the bare base is what to compare with."""
        return {}

    def main_measure(self, predictions: Sequence[Any], examples: Sequence[Example], labels: Sequence[str]) -> RowParts:
        """ROUGE-L."""
        pairs = self._texts(predictions, examples)
        return RowParts(
            name="rouge_l", parts=tuple((0.0, 0.0) if p is None else (measures.rouge_l(*p), 1.0) for p in pairs)
        )

    def pieces(
        self, example: Example, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]
    ) -> tuple[tuple[str, bool], ...]:
        """The source as the model sees it, and the target with the token that ends it."""
        assert isinstance(example, TextPair)
        return (
            (tokenizer.decode(list(example.input_ids)) + " → ", False),
            (tokenizer.decode(list(example.target)), True),
        )

    def _texts(self, predictions: Sequence[Any], examples: Sequence[Example]) -> list[tuple[str, str] | None]:
        """Return of each row what was written and what should have been; None where nothing was."""
        return [
            (example.decode(row[0]), example.reference) if row and isinstance(example, TextPair) else None
            for row, example in zip(predictions, examples, strict=True)
        ]


def decoder_inputs(base: Any, targets: torch.Tensor) -> torch.Tensor:
    """Return what the decoder reads to predict targets, both (rows, tokens): its start token, and all but the last.

    As transformers' shift_tokens_right has it for M2M100 and Blenderbot, whose classes have no method for it.
    """
    if hasattr(base, "prepare_decoder_input_ids_from_labels"):
        return base.prepare_decoder_input_ids_from_labels(labels=targets)  # type: ignore[no-any-return]
    found = targets.roll(1, dims=1)
    found[:, 0] = base.config.decoder_start_token_id
    return found.masked_fill(found == IGNORED, base.config.pad_token_id)


def _ended(target: Sequence[int], end: int | None, max_length: int) -> tuple[int, ...]:
    """Return a target that ends as one does that is to be written, cut in its middle where it is too long."""
    if end is None:
        return tuple(target[:max_length])
    if end not in target:
        target = [*target, end]
    return tuple(target) if len(target) <= max_length else (*target[: max_length - 1], end)


def _spread(count: int, wanted: int) -> range | tuple[int, ...]:
    return range(count) if count <= wanted else tuple(i * count // wanted for i in range(wanted))


ENGINE = SequenceToSequence()
