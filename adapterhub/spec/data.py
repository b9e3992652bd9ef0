"""The `data` part of a recipe: which files or data sets hold the rows, what a row looks like, what is learned."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import TypedDict

from adapterhub.spec._dataset import DATASET_KEYS, DEFAULT_SPLIT, FILE_KEYS, read_dataset_keys
from adapterhub.spec._decode import Reader, kind_of, repeated, suggest
from adapterhub.spec.digest import check_relative_path

FILE_TYPES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "jsonl": (".jsonl", ".ndjson"),
        "json": (".json",),
        "csv": (".csv",),
        "tsv": (".tsv", ".tab"),
        "parquet": (".parquet",),
        "text": (".txt", ".text", ".md"),
    }
)
SAMPLE_BY = ("paragraph", "line", "document")
# What a row looks like, by the columns it must have (those of TRL's dataset formats, of ShareGPT and of Alpaca; for
# classes, tags, spans and pairs those of the data sets library's GLUE, CoNLL-2003, SQuAD and sentence-transformers').
SHAPES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "messages": ("messages",),
        "sharegpt": ("conversations",),
        "prompt_completion": ("prompt", "completion"),
        "alpaca": ("instruction", "output"),
        "text": ("text",),
        "classification": ("text", "label"),
        "token_tags": ("tokens", "tags"),
        "squad": ("question", "context", "answers"),
        "pairs": ("anchor", "positive"),
    }
)
OPTIONAL_COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sharegpt": ("system",),
        "alpaca": ("input", "system"),
        "classification": ("text_pair",),
        "pairs": ("negative", "score"),
    }
)
# The shapes of each task's rows: `format: auto` looks for these alone, so that no classes are taken for plain text.
TASK_SHAPES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "CAUSAL_LM": ("messages", "sharegpt", "prompt_completion", "alpaca", "text"),
        "SEQ_CLS": ("classification",),
        "TOKEN_CLS": ("token_tags",),
        "SEQ_2_SEQ_LM": ("prompt_completion",),
        "QUESTION_ANS": ("squad",),
        "FEATURE_EXTRACTION": ("pairs",),
    }
)
# Names that well-known data sets have for our columns; they count where our own name is not there.
OTHER_NAMES: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "SEQ_CLS": {"text": ("sentence", "sentence1", "premise"), "text_pair": ("sentence2", "hypothesis")},
        "TOKEN_CLS": {"tokens": ("words",), "tags": ("ner_tags", "pos_tags")},
        "SEQ_2_SEQ_LM": {"prompt": ("source",), "completion": ("target",)},
        "FEATURE_EXTRACTION": {"anchor": ("query", "sentence1"), "positive": ("sentence2",)},
    }
)
LABELLED_TASKS = ("SEQ_CLS", "TOKEN_CLS")
DATA_FORMATS = ("auto", *SHAPES)
TRAIN_ON = ("assistant", "all")
# What a template of several texts may be made of; the last one is what is learned.
TEMPLATE_PARTS: tuple[tuple[str, ...], ...] = (("prompt", "completion"), ("system", "user", "assistant"))
# The templates of a task; other tasks' rows have columns that no text can stand for.
_TASK_TEMPLATES: Mapping[str, tuple[tuple[str, ...], ...]] = MappingProxyType(
    {"CAUSAL_LM": (("text",), *TEMPLATE_PARTS), "SEQ_2_SEQ_LM": TEMPLATE_PARTS[:1], "SEQ_CLS": (("text",),)}
)
NO_COLUMN = "names no {column}, so that every row would teach the same"
_MAX_NAME = 256
_MAX_TEMPLATE = 4096


@lru_cache(maxsize=256)
def template_parts(text: str) -> tuple[tuple[str, str | None], ...]:
    """Return a template as pairs of literal text and the column that follows it; None after the last literal.

    Only columns can be named: no attribute, no item, no conversion and no format, so that a template reads a row's
    texts and nothing else. `{{` and `}}` stand for braces.

    Raises:
        ValueError: it is no such template.
    """
    found = []
    for literal, name, form, conversion in string.Formatter().parse(text):
        if name is not None and not name:
            raise ValueError("an empty {} names no column; write {{}} for braces")
        if form or conversion:
            raise ValueError(f"{{{name}}} stands for a column as it is: no '!' and no ':'")
        if name is not None and any(mark in name for mark in ".[]"):
            raise ValueError(f"{{{name}}} is no column: nothing inside of one can be named (rename it with columns)")
        found.append((literal, name))
    return tuple(found)


def template_columns(text: str) -> tuple[str, ...]:
    """Return the columns a template names, each once, in order."""
    return tuple(dict.fromkeys(name for _, name in template_parts(text) if name is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """One file of rows, or one part of a data set; what is None is taken from the `data` part, or the file's name.

    path: relative to the recipe; empty where there is a data set. type: of FILE_TYPES. sample_by: what one row of a
    text file is. weight: how often each row is seen in one pass over the data; a fraction takes that share of them.
    columns: our word to the file's column. template: texts with {column} by what they become: `text`, or one of
    TEMPLATE_PARTS. dataset: `org/name` on the Hub, or `./folder`; name, split, revision: of it, by the datasets
    library's own words; without a split it is `train`, or what a folder of a single one holds.
    """

    path: str = ""
    dataset: str | None = None
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    type: str | None = None
    sample_by: str = SAMPLE_BY[0]
    weight: float = 1.0
    format: str | None = None
    columns: Mapping[str, str] | None = None
    template: Mapping[str, str] | None = None

    @property
    def file_type(self) -> str:
        """How the file is read; a name that tells nothing is JSONL."""
        suffix = PurePosixPath(self.path).suffix.lower()
        return self.type or next((name for name, ends in FILE_TYPES.items() if suffix in ends), "jsonl")

    @property
    def folder(self) -> str | None:
        """The folder of a data set that lies on this disk, relative to the recipe."""
        local = self.dataset is not None and self.dataset.startswith("./")
        return self.dataset[2:] if local and self.dataset else None

    @property
    def title(self) -> str:
        """What people call it: the path, or `org/name[train]`, with the data set's configuration as a last part."""
        if self.dataset is None:
            return self.path
        whole = "/".join(part for part in (self.dataset, self.name) if part)
        split = self.split or ("" if self.folder is not None else DEFAULT_SPLIT)
        return f"{whole}[{split}]" if split else whole

    @property
    def source_name(self) -> str:
        """The title, and which revision where one is told."""
        return self.title if self.revision is None else f"{self.title}@{self.revision}"

    @classmethod
    def read(cls, r: Reader, *, weighted: bool, task: str = "CAUSAL_LM") -> SourceSpec:
        """Read the mapping of one source; `weighted`: it is for training."""
        value = cls(
            path="" if "dataset" in r else r.parse("path", check_relative_path),
            **read_dataset_keys(r),
            type=r.string("type", choices=FILE_TYPES) if "type" in r else None,
            sample_by=r.string("sample_by", SAMPLE_BY[0], choices=SAMPLE_BY),
            weight=r.number("weight", 1.0, minimum=0.0, maximum=1000.0) if weighted else 1.0,
            **_row_keys(r, task),
        )
        if r.clean and value.weight == 0:
            r.fault("weight", "must be above 0; leave the source out to train on none of it")
        if r.clean and "sample_by" in r and value.file_type != "text":
            r.fault("sample_by", f"is for text files; this one is {value.file_type}")
        r.finish(known=(*FILE_KEYS, "dataset"))
        return value

    def to_data(self) -> str | dict[str, object]:
        """Return plain JSON data; a path where nothing else is said."""
        data: dict[str, object] = {"path": self.path} if self.dataset is None else {}
        for name in (*DATASET_KEYS, "type", "format"):
            data |= {name: getattr(self, name)} if getattr(self, name) is not None else {}
        data |= {"sample_by": self.sample_by} if self.sample_by != SAMPLE_BY[0] else {}
        data |= {"weight": self.weight} if self.weight != 1.0 else {}
        data |= row_keys_to_data(self)
        return data if len(data) > 1 or self.dataset is not None else self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """Which rows to train on and how to read them.

    train, eval: a file relative to the recipe, or several. eval_split: the share of the training rows held out when no
    eval file is given, 0 for none; split_seed: which ones, training.seed where None. format: what a row looks like;
    `auto` reads its columns. columns, template: as of SourceSpec, for all that say nothing of their own. train_on:
    which tokens carry labels, the assistant's (its turn's end included) or all. max_length: tokens a row is cut at.
    labels: what a classifier tells apart, in the order of its head; None for what the rows have.
    """

    train: str | tuple[SourceSpec, ...]
    eval: str | tuple[SourceSpec, ...] | None = None
    eval_split: float = 0.1
    split_seed: int | None = None
    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    template: Mapping[str, str] | None = None
    train_on: str = "assistant"
    max_length: int = 1024
    labels: tuple[str, ...] | None = None

    @classmethod
    def read(cls, r: Reader, task: str = "CAUSAL_LM") -> DataSpec:
        """Read the mapping of a recipe for a task; one that is not known may have rows of any."""
        shared = _row_keys(r, task)
        value = cls(
            train=_read_sources(r, "train", weighted=True, task=task),
            eval=None if r.raw("eval", None) is None else _read_sources(r, "eval", weighted=False, task=task),
            eval_split=r.number("eval_split", 0.1, minimum=0.0, maximum=0.9),
            split_seed=r.optional_integer("split_seed", maximum=2**32 - 1),
            format=shared["format"] or "auto",
            columns=shared["columns"] or MappingProxyType({}),
            template=shared["template"],
            train_on=r.string("train_on", "assistant", choices=TRAIN_ON),
            max_length=r.integer("max_length", 1024, minimum=8, maximum=1 << 20),
            labels=_read_labels(r, task),
        )
        if "eval_split" in r and value.eval is not None:
            r.fault("eval_split", "is for when data.eval is not given; leave one of the two out")
        if r.clean and value.split_seed is not None and value.eval is not None:
            r.fault("split_seed", "is for when data.eval is not given; leave one of the two out")
        if r.clean and value.train_on != "assistant" and task in TASK_SHAPES and task != "CAUSAL_LM":
            r.fault("train_on", f"is for CAUSAL_LM; the task is {task}")
        if r.clean:
            value._check_columns(r, task)
        r.finish()
        return value

    def _check_columns(self, r: Reader, task: str) -> None:
        """Refuse a renaming to a column that nobody reads; one that a template reads may have any name."""
        shapes = TASK_SHAPES.get(task, tuple(SHAPES))
        columns_read = {name for shape in shapes for name in (*SHAPES[shape], *OPTIONAL_COLUMNS.get(shape, ()))}
        renamed: dict[str, tuple[Mapping[str, str], set[str]]] = {"columns": (self.columns, set())}
        for key, given in (("train", self.train), ("eval", self.eval)):
            for index, source in enumerate(self.sources(given)):
                read = {name for text in (source.template or {}).values() for name in template_columns(text)}
                if isinstance(given, tuple) and given[index].columns is not None:
                    renamed[f"{key}[{index}].columns"] = (source.columns or {}, read)
                else:
                    renamed["columns"][1].update(read)
        for where, (columns, read) in renamed.items():
            for name in columns:
                if name not in read and name not in columns_read:
                    known = sorted({*read, *columns_read})
                    near = suggest(name, known)
                    tail = f"did you mean {near!r}?" if near else f"known: {', '.join(known)}"
                    r.fault(f"{where}.{name}", f"no column of this name is read; {tail}")

    def sources(self, given: str | tuple[SourceSpec, ...] | None) -> tuple[SourceSpec, ...]:
        """Return the sources of `train` or `eval`, each with everything that it takes from this part.

        A source that says a format or a template of its own takes neither of the two from here.
        """
        found = (SourceSpec(path=given),) if isinstance(given, str) else given or ()
        return tuple(
            replace(
                source,
                format=source.format or ("auto" if source.template else self.format),
                template=source.template or (None if source.format else self.template),
                columns=self.columns if source.columns is None else source.columns,
            )
            for source in found
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data; what only newer formats know is left out where it says nothing."""
        data: dict[str, object] = {
            "train": _sources_to_data(self.train),
            "eval": _sources_to_data(self.eval),
            "format": self.format,
            "train_on": self.train_on,
            "max_length": self.max_length,
            **row_keys_to_data(self),
        }
        data |= {"eval_split": self.eval_split} if self.eval is None else {}
        data |= {"split_seed": self.split_seed} if self.split_seed is not None else {}
        data |= {"labels": list(self.labels)} if self.labels is not None else {}
        return data

    @property
    def is_first_form(self) -> bool:
        """True where nothing is said that format 1.0 could not say."""
        names = [name for name in (self.train, self.eval) if name is not None]
        return (
            all(isinstance(name, str) and SourceSpec(path=name).file_type in ("jsonl", "json") for name in names)
            and self.format in ("auto", "messages", "prompt_completion", "text")
            and not self.columns
            and self.template is None
            and self.split_seed is None
            and self.labels is None
        )


def row_keys_to_data(value: SourceSpec | DataSpec) -> dict[str, object]:
    """Return what is said of columns and templates as plain data."""
    data: dict[str, object] = {}
    if value.columns:
        data["columns"] = dict(value.columns)
    if value.template:
        data["template"] = value.template["text"] if "text" in value.template else dict(value.template)
    return data


def _sources_to_data(given: str | tuple[SourceSpec, ...] | None) -> object:
    return [source.to_data() for source in given] if isinstance(given, tuple) else given


def _read_sources(r: Reader, key: str, *, weighted: bool, task: str) -> str | tuple[SourceSpec, ...]:
    """Read one path, one mapping of a file or a data set, or a list of either."""
    given = r.raw(key)
    if isinstance(given, Mapping):
        return _plainest((SourceSpec.read(r.below(key, given), weighted=weighted, task=task),))
    if not isinstance(given, list | tuple):
        return r.parse(key, check_relative_path)
    found = []
    for index, item in enumerate(given):
        place = f"{key}[{index}]"
        if isinstance(item, Mapping):
            found.append(SourceSpec.read(r.below(place, item), weighted=weighted, task=task))
        elif not isinstance(item, str):
            r.fault(place, f"expected a file, or a mapping with path or dataset, found {kind_of(item)}")
        else:
            try:
                found.append(SourceSpec(path=check_relative_path(item)))
            except ValueError as error:
                r.fault(place, str(error))
    if not given:
        r.fault(key, "is an empty list")
    return _plainest(tuple(found))


def _plainest(sources: tuple[SourceSpec, ...]) -> str | tuple[SourceSpec, ...]:
    """Return one file of which nothing is said as its path: the recipe means the same, and so must its digest."""
    plain = len(sources) == 1 and sources[0] == SourceSpec(path=sources[0].path)
    return sources[0].path if plain else sources


class _RowKeys(TypedDict):
    format: str | None
    columns: Mapping[str, str] | None
    template: Mapping[str, str] | None


def _row_keys(r: Reader, task: str) -> _RowKeys:
    """Read what a source and the whole part both may say: format, columns, template."""
    form = r.string("format", "auto", choices=DATA_FORMATS) if "format" in r else None
    shapes = TASK_SHAPES.get(task, tuple(SHAPES))
    if r.clean and form not in (None, "auto", *shapes):
        r.fault("format", f"{form!r} is no format of rows for {task}: auto, {', '.join(shapes)}")
    template = _read_template(r)
    if r.clean and template is not None and task in TASK_SHAPES:
        groups = _TASK_TEMPLATES.get(task, ())
        if not any(set(template) <= set(group) for group in groups):
            known = " or ".join("with ".join(f"{part} " for part in group).strip() for group in groups)
            r.fault("template", f"of {task} is {known}, and nothing else" if known else f"is not for {task}")
    if r.clean and template is not None and form is not None:
        r.fault("format", "is for rows without a template; leave one of the two out")
    return {"format": form, "columns": _read_columns(r), "template": template}


def _read_labels(r: Reader, task: str) -> tuple[str, ...] | None:
    if r.raw("labels", None) is None:
        return None
    labels = r.strings("labels")
    if r.clean and task in TASK_SHAPES and task not in LABELLED_TASKS:
        r.fault("labels", f"is for {' and '.join(LABELLED_TASKS)}; the task is {task}")
    if r.clean and any(not label.strip() for label in labels):
        r.fault("labels", "has an empty name")
    if r.clean and (twice := repeated(labels)):
        r.fault("labels", f"has {twice[0]!r} twice")
    if r.clean and len(labels) < 2:
        r.fault("labels", "needs at least two: there is nothing to tell apart")
    return labels


def _read_columns(r: Reader) -> Mapping[str, str] | None:
    if "columns" not in r:
        return None
    columns = r.below("columns", r.raw("columns"))
    return MappingProxyType({name: _name(columns, name) for name in columns.names()})


def _name(r: Reader, key: str) -> str:
    value = r.string(key, max_length=_MAX_NAME)
    if not value and r.clean:
        r.fault(key, "is empty: name a column of the file")
    return value


def _read_template(r: Reader) -> Mapping[str, str] | None:
    given = r.raw("template", None)
    if given is None:
        return None
    if isinstance(given, str):
        text = _template_text(r, "template", given)
        if r.clean and not template_columns(text):
            r.fault("template", NO_COLUMN)
        return MappingProxyType({"text": text})
    parts = r.below("template", given)
    known = tuple(name for group in TEMPLATE_PARTS for name in group)
    found = {name: _template_text(parts, name, parts.raw(name)) for name in known if name in parts}
    group = next((group for group in TEMPLATE_PARTS if set(found) <= {*group}), None)
    if r.clean and (group is None or not {group[-2], group[-1]} <= set(found)):
        r.fault("template", "expected text, or texts for prompt and completion, or for user and assistant")
    elif r.clean and group is not None and not template_columns(found[group[-1]]):
        r.fault(f"template.{group[-1]}", NO_COLUMN)
    parts.finish(known=known)
    return MappingProxyType(found)


def _template_text(r: Reader, key: str, value: object) -> str:
    text = r.string(key, max_length=_MAX_TEMPLATE)
    if isinstance(value, str) and r.clean:
        try:
            template_parts(text)
        except ValueError as error:
            r.fault(key, f"is not a template: {error}")
    return text
