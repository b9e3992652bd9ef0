"""`adapt init`: a recipe out of a file of rows: its columns recognised, its lengths measured, the rest proposed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapterhub.bases import BaseRecord, BaseStore
from adapterhub.catalog.families import family_of
from adapterhub.catalog.methods import method_named, require_buildable
from adapterhub.catalog.tasks import task_named
from adapterhub.documents import parse_yaml
from adapterhub.engine.rows import Row, choose_rows, read_row_files
from adapterhub.errors import IncompatibleError, InvalidFileError, LocalIOError, UnsatisfiedError, UsageError
from adapterhub.files import write_atomic
from adapterhub.ops._estimate import read_base_shape
from adapterhub.ops._guess import Guess, guess_source, guess_task
from adapterhub.ops._method_fit import fit_method
from adapterhub.ops._recipe_text import SEED, Proposal, recipe_text
from adapterhub.ops._recipes import fill_hyperparameters
from adapterhub.ops.data import percentile, spread
from adapterhub.settings import Settings, read_settings
from adapterhub.spec.data import DataSpec, SourceSpec
from adapterhub.spec.digest import check_relative_path
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.recipe import Recipe
from adapterhub.spec.refs import check_part

RECIPE_FILE = "recipe.yaml"
# Rows whose lengths are measured, spread over all: enough for a 99th percentile.
MEASURED_ROWS = 2000
EVAL_SPLIT = 0.1
_STEP_ROWS = 8
# Tokens that one batch may hold before its rows are spread over several: what a 16 GB device trains a small base on.
_BATCH_TOKENS = 8192
_LENGTH_UNIT = 64
_PLAIN_NAMES = ("train", "training", "data", "dataset", "rows", "examples")
_CAUSAL = ("ForCausalLM", "LMHeadModel")
_TEXT_TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
# No row is as long; the tokenizers library takes no more than 32 bits.
_ANY_LENGTH = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class InitPlan(Plan):
    """What would be written. text: the recipe; proposal: what it was made of."""

    path: Path
    text: str
    proposal: Proposal

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what a person wants to know first."""
        found = self.proposal
        return (
            ("rows", f"{found.rows:,} of {found.source.path}: {found.guess.says}"),
            ("task", found.task),
            ("base model", found.base),
            ("lengths", f"half up to {found.median} tokens, 99 % up to {found.most}, the longest {found.longest}"),
            ("max_length", str(found.max_length)),
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {**Plan.to_data(self), "path": str(self.path), "recipe": self.text}


Choose = Callable[[tuple[str, ...]], str]


def plan_init(
    data: Path,
    *,
    base: str | None = None,
    task: str | None = None,
    method: str = "lora",
    out: Path = Path(RECIPE_FILE),
    settings: Settings | None = None,
    choose: Choose | None = None,
) -> InitPlan:
    """Read a file of rows and propose a recipe for it; writes nothing.

    base: of the base store; None takes the only one that fits, or what `choose` names of several. task: None for what
    the columns and the base say.

    Raises:
        InvalidFileError: rows are malformed, all of them named. LocalIOError: there is such a recipe already.
        UnsatisfiedError: the file or the base is not here. UsageError: the columns say nothing, the base is not named
        and there are several, or the data does not lie below the recipe's folder.
        IncompatibleError: the base cannot do the task, or the method does not work on it.
    """
    settings = settings or read_settings()
    _require_free(out)
    folder, name = _place(data, out)
    require_buildable(method_named(method))
    wanted = None if task is None else task_named(task).name
    told = guess_task(folder, name) if wanted not in _TEXT_TASKS else None
    if wanted is not None and wanted not in _TEXT_TASKS and (told is None or told.task != wanted):
        told = Guess(source=SourceSpec(path=name), says="", task=wanted)  # the rows' faults say what is missing
    record = _choose_base(base, told.task if told else wanted, settings, choose)
    if told is None:
        text = wanted or ("SEQ_2_SEQ_LM" if _kind(record) == "encoder-decoder" else "CAUSAL_LM")
        chats = record.ref.fingerprints.chat_template is not None and text == "CAUSAL_LM"
        told = replace(guess_source(folder, name, chats=chats), task=text)
    guess = told
    spec = DataSpec(train=(guess.source,), eval_split=EVAL_SPLIT)
    rows, _ = read_row_files(folder, spec, task=guess.task)
    split = EVAL_SPLIT
    try:
        train, held_out = choose_rows(rows, None, spec, seed=SEED)
    except InvalidFileError:  # all ask the same question
        train, held_out, split = rows.rows, (), 0.0
    proposal = _propose(record, guess, spec, rows.rows, trained=len(train), split=split, method=method)
    text = recipe_text(_name_of(data), proposal)
    # What is written must be read again, whatever the names of files and columns are.
    recipe = Recipe.from_data(parse_yaml(text.encode(), where=str(out)), where=str(out))
    shape = read_base_shape(record.path, record.ref.model_type, task=guess.task)
    filled = fill_hyperparameters(recipe, model_type=record.ref.model_type, where=str(out))
    fit_method(shape, recipe, filled, where=str(out))
    warnings = guess.warnings
    if guess.task not in _TEXT_TASKS and _kind(record) == "decoder":
        warnings += (f"{record.ref.id} writes text; an encoder learns {guess.task} as well, and is quicker",)
    if split and len(held_out) < 20:
        warnings += (f"only {len(held_out)} rows are held out: what they measure will be unsure",)
    return InitPlan(
        verb="init",
        steps=(Step(action="write", subject=str(out), detail="the recipe", size=len(text.encode())),),
        warnings=warnings,
        path=out,
        text=text,
        proposal=proposal,
    )


def init(plan: InitPlan) -> Path:
    """Write a planned recipe; return its path.

    Raises:
        LocalIOError: there is such a file by now, or the disk said no.
    """
    _require_free(plan.path)
    write_atomic(plan.path, plan.text.encode())
    return plan.path


def _require_free(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise LocalIOError("already exists", where=str(out), hint="choose another file with --out, or remove it")


def _place(data: Path, out: Path) -> tuple[Path, str]:
    """Return the recipe's folder, and where the data lies in it."""
    if not data.exists():
        raise UnsatisfiedError("no such file of rows", where=str(data))
    folder = out.parent.resolve()
    try:
        return folder, check_relative_path(data.resolve().relative_to(folder).as_posix())
    except ValueError as error:
        if data.resolve().is_relative_to(folder):
            raise UsageError(str(error), where=str(data), hint="rename the file") from error
        raise UsageError(
            "a recipe names its data relative to itself, and this file does not lie below its folder",
            where=str(data),
            hint=f"--out {data.parent / RECIPE_FILE}",
        ) from error


def _kind(record: BaseRecord) -> str:
    """Return `decoder`, `encoder` or `encoder-decoder`."""
    family = family_of(record.ref.model_type)
    architecture = record.ref.architecture
    if architecture is not None and architecture.endswith(_CAUSAL):
        return "decoder"
    if family is not None and (family.kind != "decoder" or architecture is None):
        return family.kind
    return "decoder" if architecture is None else "encoder"


def _fits(record: BaseRecord, task: str | None) -> bool:
    if task is None:
        return _kind(record) in ("decoder", "encoder-decoder")
    kinds = {"CAUSAL_LM": ("decoder",), "SEQ_2_SEQ_LM": ("encoder-decoder",)}
    return _kind(record) in kinds.get(task, ("encoder", "decoder"))


def bases_for(task: str | None, settings: Settings) -> tuple[str, ...]:
    """Return the names of the base models here that fit a task best: encoders before decoders; None for texts."""
    found = [record for record in BaseStore(settings).list() if _fits(record, task)]
    first = "encoder" if task is not None else "decoder"
    best = [record for record in found if _kind(record) == first]
    return tuple(record.ref.id for record in best or found)


def _choose_base(name: str | None, task: str | None, settings: Settings, choose: Choose | None) -> BaseRecord:
    if name is None:
        known = bases_for(task, settings)
        if not known and BaseStore(settings).list():
            raise UnsatisfiedError(
                f"no base model here can do {task or 'what texts are for'}",
                hint="adapt base add NAME, then --base NAME",
            )
        if not known:
            raise UnsatisfiedError(
                "there is no base model here to train on", hint="adapt base add HuggingFaceTB/SmolLM2-135M-Instruct"
            )
        if len(known) > 1 and choose is not None:
            known = (choose(known),)
        if len(known) > 1:
            raise UsageError(
                "there are several base models: say which", hint=f"--base {known[0]}; here are {', '.join(known)}"
            )
        name = known[0]
    record = BaseStore(settings).get(name)
    if not _fits(record, task):
        raise IncompatibleError(
            f"{name} ({record.ref.architecture or record.ref.model_type}) cannot do {task or 'CAUSAL_LM'}, "
            "which the columns or --task ask for",
            hint="choose another with --base, or another --task",
        )
    return record


def _name_of(data: Path) -> str:
    """Return a package name made of the file's, or of its folder's where the file is called as all are."""
    stem = data.resolve().stem
    word = data.resolve().parent.name if stem.lower() in _PLAIN_NAMES else stem
    slug = re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")[:80].strip("-")
    try:
        return check_part(f"{slug}-lora" if slug else "", "a package's name")
    except ValueError:
        return "my-lora"


def _propose(
    record: BaseRecord,
    guess: Guess,
    spec: DataSpec,
    rows: Sequence[Row],
    *,
    trained: int,
    split: float,
    method: str,
) -> Proposal:
    from adapterhub.engine.base import load_tokenizer
    from adapterhub.engine.batches import text_lengths
    from adapterhub.engine.tasks import task_engine

    tokenizer = load_tokenizer(record)
    sample = [rows[i] for i in spread(len(rows), MEASURED_ROWS)]
    task = task_engine(guess.task)
    examples = task.encode(sample, tokenizer, spec, max_length=_ANY_LENGTH, labels=task.labels(sample)).items
    sizes = sorted(max(text_lengths(example)) for example in examples)
    context = read_base_shape(record.path, record.ref.model_type).context
    median, most, longest = (percentile(sizes, share) for share in (50, 99, 100))
    # A few rows that are far longer than all others would cost every batch they are in.
    wanted = longest if longest <= 2 * most else most
    max_length = -(-wanted // _LENGTH_UNIT) * _LENGTH_UNIT
    max_length = min(max_length, context or max_length)
    batch = _STEP_ROWS
    while batch > 1 and batch * max_length > _BATCH_TOKENS:
        batch //= 2
    return Proposal(
        source=guess.source,
        guess=guess,
        base=record.ref.id,
        model_type=record.ref.model_type,
        rows=len(rows),
        trained_rows=trained,
        measured=len(sample),
        median=median,
        most=most,
        longest=longest,
        cut=sum(size > max_length for size in sizes),
        max_length=max_length,
        batch=batch,
        accumulation=_STEP_ROWS // batch,
        epochs=1 if trained >= 20_000 else 2 if trained >= 2_000 else 3,
        eval_split=split,
        task=guess.task,
        method=method,
    )
