"""Tasks, by PEFT's names, and the transformers class that carries each one's head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from adapterhub.errors import UsageError
from adapterhub.spec._decode import suggest


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task.

    auto_class: the transformers class that loads a base for it. pipeline: the Hub's word for it
    (https://huggingface.co/tasks). class_suffix: how such a class's name ends
    (`LlamaForCausalLM`), None for the bare model. head_modules: names a newly made head may have, which an adapter of
    this task has to bring along (none where the base brings its own). labels: whether the head's width is a list of
    labels. measures: what held-out rows are measured by beside the loss, the one to look at first before the others.
    pooling: how a vector is made of the last states of a text's tokens, where vectors are the task: whoever uses an
    adapter of it has to do the same; such a vector is scaled to length 1. generates: whether what it gives is text.
    buildable: whether `adapt build` trains it today.
    """

    name: str
    title: str
    auto_class: str
    pipeline: str
    class_suffix: str | None
    head_modules: tuple[str, ...] = ()
    labels: bool = False
    measures: tuple[str, ...] = ()
    pooling: str | None = None
    generates: bool = False
    buildable: bool = False

    @property
    def bare(self) -> bool:
        """True where the model has no head, so that its modules' names carry no prefix of the architecture."""
        return self.class_suffix is None


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task(
                name="CAUSAL_LM",
                title="text generation",
                auto_class="AutoModelForCausalLM",
                pipeline="text-generation",
                class_suffix="ForCausalLM",
                generates=True,
                buildable=True,
            ),
            # Head names: transformers' modeling files; `score` for decoders, `classifier` for encoders. PEFT adds
            # both to modules_to_save by itself (PeftModelForSequenceClassification, PeftModelForTokenClassification).
            Task(
                name="SEQ_CLS",
                title="sequence classification",
                auto_class="AutoModelForSequenceClassification",
                pipeline="text-classification",
                class_suffix="ForSequenceClassification",
                head_modules=("classifier", "score"),
                labels=True,
                measures=("accuracy", "f1_macro", "f1_micro", "matthews", "f1"),
                buildable=True,
            ),
            Task(
                name="TOKEN_CLS",
                title="token classification",
                auto_class="AutoModelForTokenClassification",
                pipeline="token-classification",
                class_suffix="ForTokenClassification",
                head_modules=("classifier", "score"),
                labels=True,
                measures=("f1", "precision", "recall", "accuracy", "f1_macro"),
                buildable=True,
            ),
            Task(
                name="SEQ_2_SEQ_LM",
                title="sequence to sequence",
                auto_class="AutoModelForSeq2SeqLM",
                pipeline="text2text-generation",
                class_suffix="ForConditionalGeneration",
                measures=("rouge_l", "chrf", "exact_match"),
                generates=True,
                buildable=True,
            ),
            Task(
                name="QUESTION_ANS",
                title="extractive question answering",
                auto_class="AutoModelForQuestionAnswering",
                pipeline="question-answering",
                class_suffix="ForQuestionAnswering",
                head_modules=("qa_outputs",),
                measures=("f1", "exact_match"),
                buildable=True,
            ),
            Task(
                name="FEATURE_EXTRACTION",
                title="embeddings",
                auto_class="AutoModel",
                pipeline="feature-extraction",
                class_suffix=None,
                measures=("mrr", "accuracy_at_1", "spearman"),
                pooling="mean",
                buildable=True,
            ),
        )
    }
)


def task_named(name: str) -> Task:
    """Return the row of a task.

    Raises:
        UsageError: no task has this name; the nearest one is named.
    """
    if name in TASKS:
        return TASKS[name]
    near = suggest(name.upper(), TASKS)
    known = ", ".join(TASKS)
    raise UsageError(f"{name!r} is not a task", hint=f"did you mean {near}?" if near else f"known: {known}")
