"""A recipe as it will be built: read, overridden from the command line, refused where it asks for what is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from adapterhub.bases import BaseRecord, BaseStore
from adapterhub.catalog.method_targets import with_default_modules
from adapterhub.catalog.methods import check_hyperparameters, method_named, require_buildable
from adapterhub.catalog.own_methods import BASELINE
from adapterhub.catalog.packed_bases import why_not_over
from adapterhub.catalog.tasks import TASKS, task_named
from adapterhub.documents import parse_yaml, read_yaml
from adapterhub.errors import IncompatibleError, InvalidFileError, UnsatisfiedError, UsageError
from adapterhub.ops._base_hub import is_at_revision
from adapterhub.ops._quantized import quantized_by
from adapterhub.settings import Settings
from adapterhub.spec._decode import Frozen, kind_of
from adapterhub.spec.recipe import Recipe


def read_recipe_with(path: Path, overrides: Sequence[str]) -> Recipe:
    """Read a recipe, with `field.below=value` overrides applied; values are read as YAML scalars and lists.

    Raises:
        InvalidFileError: every fault of the recipe as overridden. UsageError: an override has no such form.
    """
    data = read_yaml(path)
    if isinstance(data, dict):
        for text in overrides:
            _override(data, text)
    return Recipe.from_data(data, where=str(path))


def _override(data: dict[str, object], text: str) -> None:
    key, mark, raw = text.partition("=")
    parts = key.strip().split(".")
    if not mark or not all(parts):
        raise UsageError(f"--set {text!r} is not of the form FIELD=VALUE", hint="--set training.max_steps=5")
    try:
        value = parse_yaml(raw.encode(), where=f"--set {key}") if raw.strip() else None
    except InvalidFileError as error:
        raise UsageError(error.message, where=error.where) from error
    for part in parts[:-1]:
        inner = data.get(part)
        if inner is None:
            inner = data[part] = {}
        if not isinstance(inner, dict):
            raise UsageError(f"{part} is {kind_of(inner)}, not a mapping", where=f"--set {key}")
        data = inner
    data[parts[-1]] = value


def refuse_unsupported(recipe: Recipe, where: str, *, baselines: bool = False) -> None:
    """Refuse what the format can say and this adapterhub cannot build yet.

    baselines: training of the base itself will do, as nothing is packaged.

    Raises:
        UsageError: it names the field, and what can be built.
    """
    try:
        method = method_named(recipe.method)
        if not (baselines and method.group == BASELINE):
            require_buildable(method)
    except UsageError as error:
        raise UsageError(error.message, where=f"{where}: method", hint=error.hint) from error
    try:
        task = task_named(recipe.task)
    except UsageError as error:
        raise UsageError(error.message, where=f"{where}: task", hint=error.hint) from error
    if not task.buildable:
        known = ", ".join(row.name for row in TASKS.values() if row.buildable)
        raise UsageError(f"{task.name} cannot be built yet", where=f"{where}: task", hint=f"buildable: {known}")
    if recipe.quantization is not None:
        bits = recipe.quantization.bits
        if (fault := why_not_over(bits, recipe.method, recipe.hyperparameters)) is not None:
            field, reason = fault
            raise UsageError(
                reason, where=f"{where}: {field}", hint="remove quantization to train on the 16- or 32-bit base"
            )


def find_base(recipe: Recipe, settings: Settings, *, where: str) -> BaseRecord:
    """Return the record of a recipe's base model, at the revision that it names.

    Raises:
        UnsatisfiedError: it is not here (MissingBaseError where the Hub may have it), or of another revision.
        IntegrityError: its folder changed. IncompatibleError: it is stored quantized.
    """
    record = BaseStore(settings).get(recipe.base_model, revision=recipe.base_revision)
    if recipe.base_revision is not None and not is_at_revision(record, recipe.base_revision):
        raise UnsatisfiedError(
            f"the recipe wants revision {recipe.base_revision} of {recipe.base_model}, "
            f"here is {record.ref.revision or 'one that names no revision'}",
            where=f"{where}: base_model",
            hint=f"`adapt base remove {recipe.base_model}`, then `adapt base add {recipe.base_model}"
            f"#{recipe.base_revision}`; or write base_model: {recipe.base_model}",
        )
    if quantized_by(record) is not None:
        raise IncompatibleError(
            f"the weights of {record.ref.id} are stored quantized: an adapter is trained on the original, which can be "
            "quantized as it is loaded",
            where=f"{where}: base_model",
            hint="name the 16-bit original, and write quantization: {load_in_4bit: true}",
        )
    return record


def fill_hyperparameters(recipe: Recipe, *, model_type: str | None, where: str) -> Mapping[str, Frozen]:
    """Return the method's hyperparameters with every default, target modules by the base's family.

    Raises:
        InvalidFileError: every fault. IncompatibleError: the method has no default modules for the base's family.
    """
    method, where = method_named(recipe.method), f"{where}: hyperparameters"
    filled = check_hyperparameters(method, recipe.hyperparameters, where=where)
    return with_default_modules(method, filled, model_type, where=where)
