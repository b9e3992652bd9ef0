"""A proposed recipe as commented YAML."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from adapterhub.catalog.families import default_targets
from adapterhub.catalog.tasks import TASKS
from adapterhub.ops._guess import Guess
from adapterhub.spec.data import SAMPLE_BY, SourceSpec
from adapterhub.spec.recipe import RECIPE_VERSION

SEED = 42
# Heads that are made anew, and T5, learn at higher rates than texts are gone on with.
_RATES = {"SEQ_CLS": "1e-3", "TOKEN_CLS": "1e-3", "QUESTION_ANS": "5e-4", "SEQ_2_SEQ_LM": "1e-3"}
_WORDS = frozenset(["true", "false", "null", "yes", "no", "on", "off", "y", "n"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What a recipe is made of. median, most, longest: tokens of the measured rows; cut: how many of them are cut.

    trained_rows: what is left of the rows after the split. accumulation: batches a step.
    """

    source: SourceSpec
    guess: Guess
    base: str
    model_type: str | None
    rows: int
    trained_rows: int
    measured: int
    median: int
    most: int
    longest: int
    cut: int
    max_length: int
    batch: int
    accumulation: int
    epochs: int
    eval_split: float
    task: str = "CAUSAL_LM"
    method: str = "lora"


def recipe_text(name: str, found: Proposal) -> str:
    """Return the recipe file."""
    lengths = f"half of the rows have up to {found.median} tokens, 99 % up to {found.most}, the longest {found.longest}"
    sample = "" if found.measured == found.rows else f" ({found.measured:,} rows measured)"
    cut = f"; {found.cut} of the measured are cut" if found.cut else ""
    lines = [
        f"# How to build {name}: `adapt build` trains it, `adapt build --dry-run` tells what that would take.",
        f"recipe_version: {json.dumps(RECIPE_VERSION)}",
        f"name: {_scalar(name)}",
        'version: "0.1.0"',
        'summary: ""                     # one line: what the adapter is for',
        "# license: apache-2.0           # of the adapter; the data's licence counts",
        "# languages: [en]",
        "",
        f"base_model: {_scalar(found.base)}",
        *_method_lines(found),
        f"task: {found.task:<26} # {TASKS[found.task].title}",
        "",
        f"# {found.rows:,} rows: {_comment(found.guess.says)}. `adapt data inspect` shows what is learned of them.",
        "data:",
        *_source_lines(found.source),
        *_split_lines(found),
        f"  # {lengths}{sample}{cut}.",
        f"  max_length: {found.max_length}",
        "",
        "training:                       # transformers' own names",
        f"  learning_rate: {_RATES.get(found.task, '2e-4'):<15} # of the adapter; lower it where the loss jumps",
        f"  num_train_epochs: {found.epochs}           # small data is learned by heart soon: watch the held-out loss",
        f"  per_device_train_batch_size: {found.batch}",
        f"  gradient_accumulation_steps: {found.accumulation}   # {found.batch * found.accumulation} rows a step",
        "  lr_scheduler_type: cosine     # falls to nothing at the end",
        "  warmup_steps: 0.05            # below 1: a share of all steps",
        f"  seed: {SEED}                      # of the adapter's start, the split and the order of rows",
    ]
    return "\n".join(lines) + "\n"


def _method_lines(found: Proposal) -> list[str]:
    if found.method not in ("lora", "dora"):
        return [f"method: {found.method}", "hyperparameters: {}           # the defaults of docs/methods.md"]
    targets = default_targets(found.model_type)
    modules = targets if isinstance(targets, str) else ", ".join(targets)
    return [
        f"method: {found.method:<24} # how it is adapted: docs/methods.md",
        "hyperparameters:",
        "  r: 16                         # the rank: 8 to 16, more for much new knowledge",
        "  lora_alpha: 32                # the update is scaled by lora_alpha / r",
        f"  # target_modules: left out, the default of this base: {modules}",
    ]


def _source_lines(source: SourceSpec) -> list[str]:
    """Return the keys of one source, said of the whole data where they can be."""
    lines = [f"  train: {_scalar(source.path)}"]
    if source.sample_by != SAMPLE_BY[0]:
        lines = ["  train:", f"    path: {_scalar(source.path)}", f"    sample_by: {source.sample_by}"]
    if source.format is not None:
        lines.append(f"  format: {source.format}")
    for key, value in (("columns", source.columns), ("template", source.template)):
        if value:
            lines += [f"  {key}:", *(f"    {_scalar(name)}: {_scalar(text)}" for name, text in value.items())]
    return lines


def _split_lines(found: Proposal) -> list[str]:
    if not found.eval_split:
        return ["  # All rows ask the same question, so that none can be held out of training.", "  eval_split: 0"]
    held_out = found.rows - found.trained_rows
    return [f"  eval_split: {found.eval_split}               # {held_out:,} rows are held out, to measure by"]


def _scalar(text: str) -> str:
    """Return text as YAML, plain where every reader takes it for text."""
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", text) and text.lower() not in _WORDS:
        return text
    return json.dumps(text, ensure_ascii=False)


def _comment(text: str) -> str:
    """Return text for a comment: one line, no control characters."""
    return "".join(character if character.isprintable() else "?" for character in text)
