"""What a model makes of texts, by task; texts are read as they are in training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.catalog.families import positions_before_text
from adapterhub.engine.data import IGNORED, Example, pad_id
from adapterhub.engine.generate import Prompt, encode_prompt, generate, trained_prompt
from adapterhub.engine.loss import autocast
from adapterhub.engine.row_kinds import LabelledRow, TaggedRow
from adapterhub.engine.tasks import _classes as classes
from adapterhub.engine.tasks import task_engine
from adapterhub.engine.tasks._answers import best_of, best_spans, windows_of
from adapterhub.engine.tasks._spans import is_prefixed, spans
from adapterhub.engine.tasks.feature_extraction import pooled
from adapterhub.engine.tasks.question_ans import logits_of
from adapterhub.errors import BuildError, UsageError
from adapterhub.spec.data import DataSpec
from adapterhub.spec.generation import Generation
from adapterhub.spec.predictions import Answered, Classified, Embedded, Entity, Prediction, Tagged, Written

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 16
# Words as corpora part them: marks stand alone, but for those within a word or a number (e-mail, O'Brien, 20.5).
_WORD = re.compile(r"\w+(?:['’.,/-]\w+)*|[^\w\s]")
_NO_ROWS = DataSpec(train="-")


class Predictor:
    """A model that is asked. labels: what its head tells apart, in order. notes: what a person should know of it."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, task: str, labels: Sequence[str] = ()
    ) -> None:
        self.model, self.tokenizer, self.task, self.labels = model, tokenizer, task, tuple(labels)
        self.engine = task_engine(task)
        self.room = text_room(model, tokenizer)
        self.notes: list[str] = []

    def predict(
        self,
        texts: Sequence[str],
        *,
        context: str | None = None,
        options: Generation | None = None,
        system: str | None = None,
        raw: bool = False,
    ) -> tuple[Prediction, ...]:
        """Return what the model makes of each text. context: what a question is about, or a pair's second text.

        options: how text is drawn, where the task is to write it; system, raw: as `encode_prompt` has them.

        Raises:
            UsageError: a text has no token, or is too long for what cannot be cut.
        """
        import torch

        asked = {
            "SEQ_CLS": lambda: self._classify(texts, context),
            "TOKEN_CLS": lambda: tuple(map(self._tag, texts)),
            "QUESTION_ANS": lambda: tuple(self._answer(text, context or "") for text in texts),
            "FEATURE_EXTRACTION": lambda: self._embed(texts),
        }
        if self.task not in asked:
            raw = raw or self.task == "SEQ_2_SEQ_LM"
            prompts = [encode_prompt(self.tokenizer, text, system=system, raw=raw) for text in texts]
            return tuple(self._write(*pair, options or Generation()) for pair in zip(texts, prompts, strict=True))
        with torch.inference_mode(), autocast(self.model.device, self.model.dtype):
            return asked[self.task]()

    def _classify(self, texts: Sequence[str], pair: str | None) -> tuple[Classified, ...]:
        rows = [
            LabelledRow(place=str(index), text=text, pair=pair, label=self.labels[0])
            for index, text in enumerate(texts)
        ]
        found = self.engine.encode(rows, self.tokenizer, _NO_ROWS, max_length=self.room, labels=self.labels)
        self._tell_cut(found.truncated)
        told: dict[int, Classified] = {}
        for indices, batch in self._batches(found.items):
            judged = self.engine.judge(self.model, batch)
            for index, probabilities in zip(indices, judged.predictions, strict=True):
                ordered = sorted(zip(self.labels, probabilities, strict=True), key=lambda item: -item[1])
                told[index] = Classified(text=texts[index], labels=tuple(ordered))
        return tuple(told[index] for index in range(len(texts)))

    def _tag(self, text: str) -> Tagged:
        """Tag a text's words, as many at a time as fit in the context."""
        matches = list(_WORD.finditer(text))
        tags: list[tuple[str, float]] = []
        while len(tags) < len(matches):
            tags += self._tags([match.group() for match in matches[len(tags) :]])
        names = [name for name, _ in tags]
        entities = []
        for label, first, end in spans(names, prefixed=is_prefixed(self.labels)):
            start, stop = matches[first].start(), matches[end - 1].end()
            mean = sum(share for _, share in tags[first:end]) / (end - first)
            entities.append(Entity(label=label, text=text[start:stop], start=start, end=stop, probability=mean))
        return Tagged(text=text, entities=tuple(entities))

    def _tags(self, words: Sequence[str]) -> list[tuple[str, float]]:
        """Return the tags of the first words, all that fit, with probabilities; a word without a token has `O`."""
        # Each word has a label of its own here, so that the encoding tells which token is whose.
        numbers = tuple(map(str, range(len(words))))
        row = TaggedRow(place="-", text=" ".join(words), tokens=tuple(words), tags=numbers)
        try:
            found = self.engine.encode([row], self.tokenizer, _NO_ROWS, max_length=self.room, labels=numbers)
        except BuildError:
            return [("O", 1.0)] * len(words)
        (example,) = found.items
        ((_, batch),) = self._batches(found.items)
        logits = self.model(**classes.inputs_of(batch)).logits
        shares = logits[0, logits.shape[1] - len(example.input_ids) :].float().softmax(-1)
        tokens = {word: token for token, word in enumerate(example.labels) if word != IGNORED}
        count = max(tokens) + 1 if found.truncated else len(words)
        tags = [("O", 1.0)] * count
        for word, token in tokens.items():
            best = int(shares[token].argmax())
            tags[word] = self.labels[best], float(shares[token, best])
        return tags

    def _answer(self, question: str, context: str) -> Answered:
        try:
            windows = windows_of(self.tokenizer, [question], [context], max_length=self.room)
        except BuildError as error:
            raise UsageError(error.message, hint="shorten the question") from error
        found = []
        for start in range(0, len(windows), BATCH):
            chunk = windows[start : start + BATCH]
            examples = [
                classes.ClassExample(
                    place="-",
                    question="",
                    input_ids=window.input_ids,
                    labels=(IGNORED,) * len(window.input_ids),
                )
                for window in chunk
            ]
            batch = self._on_device(classes.pad_classes(examples, pad_id=pad_id(self.tokenizer)))
            found += best_spans(*logits_of(self.model, batch), chunk)
        best = best_of(found)
        if best is None:
            least = min(found, key=lambda span: span.null_score)
            return Answered(question=question, answer=None, start=None, end=None, probability=least.null_probability)
        return Answered(
            question=question,
            answer=context[best.start : best.end],
            start=best.start,
            end=best.end,
            probability=best.probability,
        )

    def _embed(self, texts: Sequence[str]) -> tuple[Embedded, ...]:
        encoding, cut = classes.tokenized(self.tokenizer, texts, None, max_length=self.room)
        self._tell_cut([str(index) for index, is_cut in enumerate(cut) if is_cut])
        examples = [
            Example(place=str(index), question="", input_ids=tuple(ids), labels=(IGNORED,) * len(ids))
            for index, ids in enumerate(encoding["input_ids"])
        ]
        if empty := next((example for example in examples if not example.input_ids), None):
            raise UsageError(f"text {int(empty.place) + 1} has no token")
        told: dict[int, Embedded] = {}
        for indices, batch in self._batches(examples, padded=True):
            for index, vector in zip(indices, pooled(self.model, batch).tolist(), strict=True):
                told[index] = Embedded(text=texts[index], vector=tuple(vector))
        return tuple(told[index] for index in range(len(texts)))

    def _write(self, text: str, prompt: Prompt, options: Generation) -> Written:
        made = generate(self.model, self.tokenizer, prompt, options)
        return Written(text=text, written=made.text, finish_reason=made.finish_reason)

    def _batches(
        self, examples: Sequence[Example], *, padded: bool = False
    ) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """Yield batches of rows of like length, with their indices; padded: without what only training needs."""
        filler = pad_id(self.tokenizer)
        order = sorted(range(len(examples)), key=lambda index: len(examples[index].input_ids))
        for start in range(0, len(order), BATCH):
            indices = order[start : start + BATCH]
            rows = [examples[index] for index in indices]
            made = classes.pad_classes(rows, pad_id=filler) if padded else self.engine.collate(rows, pad_id=filler)
            yield indices, self._on_device(made)

    def _on_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value.to(self.model.device) for name, value in batch.items()}

    def _tell_cut(self, places: Sequence[str]) -> None:
        if places:
            numbers = ", ".join(str(int(place) + 1) for place in places[:5]) + (" …" if len(places) > 5 else "")
            self.notes.append(f"cut at {self.room} tokens, which is the model's context: text {numbers}")


def text_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens of a text a model reads at most, beside a trained prompt; very many if it says none."""
    config = model.config.get_text_config()
    limits = [classes.NO_LIMIT, int(min(tokenizer.model_max_length, classes.NO_LIMIT))]
    if (positions := getattr(config, "max_position_embeddings", None)) is not None:
        before = positions_before_text(config.model_type, getattr(config, "pad_token_id", None))
        limits.append(positions - before - trained_prompt(model))
    return min(limits)
