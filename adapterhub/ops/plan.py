"""`adapt plan`: what a recipe's training will take in memory and time, and what would fit, before anything is fetched.

The base's config and the headers of its weights are all that is read of it: from its folder, or from the Hub by ranged
requests where it is not here. torch is never imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.bases import BaseStore, MissingBaseError
from adapterhub.catalog.methods import method_named
from adapterhub.catalog.own_methods import BASELINE
from adapterhub.errors import AdapterHubError, IncompatibleError
from adapterhub.ops import _plan_cost as cost
from adapterhub.ops._devices import Target, choose_target
from adapterhub.ops._estimate import AdapterShape, BaseShape, Training, base_shape, read_base_shape
from adapterhub.ops._method_fit import room_for_text
from adapterhub.ops._plan_cost import Cost, Setting
from adapterhub.ops._recipes import fill_hyperparameters, read_recipe_with, refuse_unsupported
from adapterhub.ops._trained import MEASURED_METHODS, PLANNED_METHODS, trained_shape
from adapterhub.settings import Settings, read_settings
from adapterhub.spec.plans import Plan
from adapterhub.spec.quantization import Quantization
from adapterhub.spec.recipe import Recipe

if TYPE_CHECKING:
    from adapterhub.engine.data import Example

QLORA = Quantization(load_in_4bit=True, bnb_4bit_use_double_quant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to train the same thing. changes: the `--set` words that ask for it; buildable: `adapt build` has it."""

    title: str
    changes: tuple[str, ...]
    cost: Cost
    fits: bool | None
    buildable: bool

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "title": self.title,
            "set": list(self.changes),
            "fits": self.fits,
            "buildable": self.buildable,
            **self.cost.to_data(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan(Plan):
    """What a training will take on a device. options: the recipe as written first, then what needs less memory.

    base: id and revision, with where its shape was read. counted: tokens come from the base's own tokenizer, and are
    not guessed from the rows' length. trainable: parameters.
    """

    recipe: Recipe
    base: str
    base_source: str
    base_parameters: int
    trainable: int
    target: Target
    speed: cost.Speed
    rows: int
    held_out: int
    counted: bool
    options: tuple[Option, ...]

    @property
    def written(self) -> Option:
        """The recipe as it is written."""
        return self.options[0]

    @property
    def advised(self) -> Option | None:
        """What to do: the recipe as it is where it fits, else the fastest that fits and can be built."""
        fitting = [option for option in self.options if option.fits and option.buildable]
        if self.written.fits is None or not fitting:
            return None
        if self.written in fitting:
            return self.written
        return min(fitting, key=lambda option: option.cost.seconds or 0.0)

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what a person reads first."""
        written, memory = self.written.cost, self.target.memory
        needed = written.memory.total
        counted = "counted with the base's tokenizer" if self.counted else cost.GUESSED
        share = f" ({needed / memory:.0%} of {memory / 1e9:.1f} GB)" if memory else ""
        return (
            ("package", f"{self.recipe.name} {self.recipe.version}"),
            ("base model", f"{self.base}, {self.base_parameters:,} parameters ({self.base_source})"),
            ("trains", f"{self.recipe.method} for {self.recipe.task}"),
            ("trainable", f"{self.trainable:,} parameters ({self.trainable / max(1, self.base_parameters):.2%})"),
            ("rows", f"{self.rows:,} to train on, {self.held_out:,} held out"),
            ("tokens", f"{written.tokens:,} in {written.steps:,} steps, {counted}"),
            ("largest batch", f"{written.batch} rows of up to {written.width} tokens"),
            ("device", f"{self.target.title}, {written.dtype}"),
            ("speed", str(self.speed)),
            ("memory", f"about {needed / 1e9:.2f} GB{share}"),
            ("time", _duration(written)),
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        memory = self.target.memory
        return {
            **Plan.to_data(self),
            "recipe": self.recipe.to_data(),
            "base_model": self.base,
            "base_source": self.base_source,
            "base_parameters": self.base_parameters,
            "trainable_parameters": self.trainable,
            "device": {
                "title": self.target.title,
                "kind": self.target.kind,
                "memory_bytes": memory,
                "name": self.target.row.name if self.target.row else None,
                "source": self.target.row.source if self.target.row else None,
            },
            "speed": self.speed.to_data(),
            "rows": self.rows,
            "held_out_rows": self.held_out,
            "tokens_counted": self.counted,
            "options": [option.to_data() for option in self.options],
            "advised": None if self.advised is None else self.advised.title,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """A base's shape, how it is called, where it was read, and its folder where it is here."""

    shape: BaseShape
    label: str
    source: str
    model_type: str | None
    folder: Path | None


def plan_training(
    recipe: Path,
    *,
    device: str | None = None,
    overrides: Sequence[str] = (),
    settings: Settings | None = None,
) -> TrainingPlan:
    """Say what training a recipe takes in memory and time, and what would fit; fetches no weight, writes nothing.

    device: a row of catalog/devices.py, `cpu`, or None for the best of this machine.

    Raises:
        InvalidFileError: the recipe or rows have faults, all of them named. UsageError: no such device, or what is
        asked for cannot be planned. IncompatibleError: a target module is not in the base.
        UnsatisfiedError, NetworkError, AuthorizationError: the base is neither here nor to be looked at on the Hub.
    """
    settings = settings or read_settings()
    read, where = read_recipe_with(recipe, overrides), str(recipe)
    target = choose_target(device)
    # What trains the base itself is planned as well, to compare with, and told to be no package.
    refuse_unsupported(read, where, baselines=True)
    base = _find_base(read, settings)
    _refuse_base(base, read)
    hyperparameters = fill_hyperparameters(read, model_type=base.model_type, where=where)
    rows = cost.read_examples(recipe.parent, read, base.folder, room_for_text(base.shape, hyperparameters), where=where)
    base = replace(base, shape=cost.with_labels(base.shape, rows.labels))
    adapter = trained_shape(base.shape, read, hyperparameters, labels=len(rows.labels), where=where)
    if adapter is None:
        raise _unknown(read, base, where)
    threads = settings.threads or cost.default_threads()
    speed = cost.speed_of(target, threads=threads, shape=base.shape)
    options = _options(read, base, adapter, target, speed, rows.train, rows.held_out)
    plan = TrainingPlan(
        verb="plan",
        recipe=read,
        base=base.label,
        base_source=base.source,
        base_parameters=base.shape.parameters,
        trainable=adapter.parameters,
        target=target,
        speed=speed,
        rows=len(rows.train),
        held_out=len(rows.held_out),
        counted=rows.counted,
        options=options,
    )
    return replace(plan, warnings=(*_doubts(read), *_fit_warnings(plan)))


def _unknown(recipe: Recipe, base: _Base, where: str) -> IncompatibleError:
    """Say why what is trained cannot be told from headers."""
    if base.shape.all_linear is None:
        return IncompatibleError(
            f"what is adapted in a base of the type {base.model_type} is known when it is built",
            where=f"{where}: base_model",
            hint="name target_modules, or take a base of a known family (docs/methods.md)",
        )
    if recipe.method in PLANNED_METHODS:
        return IncompatibleError(
            f"what {recipe.method} trains here for {recipe.task} is known when it is built",
            where=f"{where}: method",
            hint="`adapt build --dry-run` prints an estimate",
        )
    return IncompatibleError(
        f"{recipe.method} cannot be planned yet: how much it trains is known when it is built",
        where=f"{where}: method",
        hint=f"plannable: {', '.join(PLANNED_METHODS)}",
    )


def _find_base(recipe: Recipe, settings: Settings) -> _Base:
    """Read a base's shape where it lies: on this machine, in the Hub's cache, or on the Hub."""
    try:
        record = BaseStore(settings).read(recipe.base_model, revision=recipe.base_revision)
    except MissingBaseError as error:
        return _find_remote(error, settings, recipe.task)
    revision = record.ref.revision
    if recipe.base_revision is not None and revision is not None and recipe.base_revision != revision:
        return _find_remote(
            MissingBaseError("another revision is here", id=recipe.base_model, revision=recipe.base_revision),
            settings,
            recipe.task,
        )
    model_type = record.ref.model_type
    shape = read_base_shape(record.path, model_type, task=recipe.task)
    return _Base(shape=shape, label=record.ref.id, source="on this machine", model_type=model_type, folder=record.path)


def _find_remote(missing: MissingBaseError, settings: Settings, task: str) -> _Base:
    """Read the config and the headers of a model on the Hub by ranged requests, or of one that its cache holds."""
    from adapterhub.ops._base_hub import find_in_cache, look_up, parse_hub_base
    from adapterhub.ops._remote_headers import read_remote_tensors

    wanted = missing.id if missing.revision is None else f"{missing.id}#{missing.revision}"
    id, revision = parse_hub_base(wanted, where="base_model")
    cached = find_in_cache(id, revision)
    model = cached or look_up(id, revision, offline=settings.offline)
    word = model.config.get("model_type")
    model_type = word if isinstance(word, str) else None
    label = f"{id}#{model.commit[:12]}"
    if cached is not None:
        shape = read_base_shape(cached.snapshot, model_type, task=task)
        return _Base(
            shape=shape, label=label, source="in the Hub's cache", model_type=model_type, folder=cached.snapshot
        )
    shape = base_shape(model.config, read_remote_tensors(model), model_type, task=task)
    size = sum(file.size for file in model.files)
    source = f"on the Hub, {size / 1e9:.2f} GB not downloaded"
    return _Base(shape=shape, label=label, source=source, model_type=model_type, folder=None)


def _refuse_base(base: _Base, recipe: Recipe) -> None:
    """Refuse a base whose headers do not say what a training keeps of it.

    Raises:
        IncompatibleError: it is stored quantized, has experts, or its layers are not to be found.
    """
    shape = base.shape
    what = None
    if shape.config.get("quantization_config") is not None:
        what = "its weights are stored quantized, so that their shapes say nothing"
    elif shape.experts:
        what = "it has experts, of which a token uses a few"
    elif shape.family is not None and shape.family.name == "albert":
        what = "its layers are passed more than once"
    elif _has_decoder(shape) and recipe.task != "SEQ_2_SEQ_LM":
        what = f"it is an encoder with a decoder, of which {recipe.task} is not counted"
    elif _has_decoder(shape) and recipe.quantization is not None:
        what = "which of the weights of an encoder with a decoder are packed is known when it is loaded"
    elif not shape.layers or not (shape.hidden and shape.heads and shape.vocabulary):
        what = "its config does not say what its layers are"
    if what is not None:
        raise IncompatibleError(
            f"training on {recipe.base_model} cannot be planned yet: {what}",
            where="base_model",
            hint="name a dense encoder or decoder whose weights are stored in 16 or 32 bits",
        )


def _has_decoder(shape: BaseShape) -> bool:
    return shape.family is not None and shape.family.encoder_decoder


def _options(
    recipe: Recipe,
    base: _Base,
    adapter: AdapterShape,
    target: Target,
    speed: cost.Speed,
    train: Sequence[Example],
    held_out: Sequence[Example],
) -> tuple[Option, ...]:
    """Return the recipe as it is written, and what takes less memory, each with what it costs."""
    dtype = cost.dtype_for(recipe.training.dtype, target)
    found: list[Option] = []
    for setting in _settings(recipe, dtype, packed=not _has_decoder(base.shape)):
        training = Training(
            dtype=setting.dtype,
            device=target.kind,
            gradient_checkpointing=setting.recipe.training.gradient_checkpointing,
            quantization=setting.recipe.quantization,
        )
        estimate = cost.estimate(setting.recipe, base.shape, adapter, training, speed, train, held_out)
        found.append(
            Option(
                title=setting.title,
                changes=setting.changes,
                cost=estimate,
                fits=cost.fits(estimate.memory, target),
                buildable=_buildable(setting.recipe),
            )
        )
    return tuple(found)


def _settings(recipe: Recipe, dtype: str, *, packed: bool) -> list[Setting]:
    """Return the ways to train that are looked at, each once; packed: with weights in 4 bits too."""
    training = recipe.training
    found = [Setting(title="as written", recipe=recipe, dtype=dtype)]
    if not training.gradient_checkpointing:
        found.append(found[0].with_checkpointing())
    size = training.per_device_train_batch_size
    # Divisors alone, so that a step sees as many rows as before.
    half = max((number for number in range(1, size // 2 + 1) if size % number == 0), default=1)
    for start in tuple(found):
        found += [start.with_batch(smaller) for smaller in sorted({half, 1}, reverse=True) if smaller < size]
    if packed and recipe.quantization is None and method_named(recipe.method).group != BASELINE:
        found += [setting.with_quantization(QLORA) for setting in tuple(found)]
    return found


def _buildable(recipe: Recipe) -> bool:
    try:
        refuse_unsupported(recipe, "recipe")
    except AdapterHubError:
        return False
    return True


def _doubts(recipe: Recipe) -> tuple[str, ...]:
    if recipe.method in MEASURED_METHODS:
        return ()
    return (f"what {recipe.method} keeps for the backward pass, and its time, are approximate (docs/planning.md)",)


def _fit_warnings(plan: TrainingPlan) -> tuple[str, ...]:
    if plan.written.fits is not False:
        return ()
    advised = plan.advised
    if advised is not None:
        words = " ".join(f"--set {change}" for change in advised.changes)
        return (f"as written it does not fit; this does: {words}",)
    if any(option.fits for option in plan.options):
        return ("as written it does not fit, and what would fit cannot be built with these settings",)
    return ("nothing of this fits: take a smaller base model or a larger device",)


def _duration(written: Cost) -> str:
    if written.seconds is None:
        return "unknown: the table of devices has no speed for this one"
    evaluation = f", {human_time(written.evaluation_seconds or 0.0)} of it for the held-out rows"
    return f"about {human_time(written.seconds)} for {written.steps:,} steps{evaluation}"


def human_time(seconds: float) -> str:
    """Return a duration as people say it: 42 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36 * 3600 else f"{seconds / 86400:.1f} days"
