"""Checks of packages whose method PEFT has not: settings, names and shapes, and those against the base's headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapterhub.catalog.adapter_places import hidden_width, places
from adapterhub.catalog.methods import Method
from adapterhub.catalog.own_methods import BITFIT_TYPE
from adapterhub.catalog.own_settings import own_method, own_settings, unknown_settings
from adapterhub.catalog.tasks import TASKS
from adapterhub.errors import AdapterHubError
from adapterhub.ops._base_view import OPTIONAL_MODULES, BaseFiles, BaseView
from adapterhub.ops._check_config import Contents
from adapterhub.ops._check_weights import PREFIX, LoraWeights, check_head
from adapterhub.ops._checklist import Checklist, count, some
from adapterhub.spec._decode import Frozen
from adapterhub.spec.bitfit import DELTA, choose_biases
from adapterhub.spec.bottleneck import SLOTS, BottleneckSpec
from adapterhub.spec.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.weights import TensorInfo

FIT = ("ADP301", "ADP302", "ADP305", "ADP314")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnWeights:
    """An adapter's tensors by what they are: those of its method, and parameters saved whole, by their path."""

    method: Method
    settings: Mapping[str, Frozen]
    own: Mapping[str, TensorInfo]
    saved: Mapping[str, TensorInfo]


def check_own_weights(contents: Contents, log: Checklist) -> OwnWeights | None:
    """Check settings, names and shapes among themselves; None where the package is none of ours, or is broken."""
    if contents.config is None or contents.header is None or (method := own_method(contents.config)) is None:
        return None
    log.look("ADP102", "ADP104", "ADP307", "ADP310", "ADP315")
    for text in unknown_settings(contents.config, method):
        log.fault("ADP104", f"{CONFIG_FILE}: {text.partition(':')[0]}", f"is no setting of {method.name} known here")
    known = {row.name: contents.config[row.name] for row in method.hyperparameters if row.name in contents.config}
    try:
        settings = own_settings(known, method, where=CONFIG_FILE)
    except AdapterHubError as error:
        log.error("ADP102", CONFIG_FILE, error)
        return None
    tensors = contents.header.tensors
    unprefixed = [name for name in tensors if not name.startswith(PREFIX)]
    if unprefixed:
        log.fault("ADP307", WEIGHTS_FILE, f"{count(len(unprefixed), 'key')} without {PREFIX!r}: {some(unprefixed)}")
    wrong = [name for name, info in tensors.items() if not info.dtype.startswith(("F", "BF"))]
    if wrong:
        log.fault("ADP315", WEIGHTS_FILE, f"{count(len(wrong), 'tensor')} are no floating-point numbers: {some(wrong)}")
    named = {name.removeprefix(PREFIX): info for name, info in tensors.items() if name.startswith(PREFIX)}
    own = {name: info for name, info in named.items() if _is_own(name, method)}
    saved = {name: info for name, info in named.items() if name not in own}
    strange = [name for name in own if not _is_known(name, method, settings)]
    if strange:
        log.fault(
            "ADP310", WEIGHTS_FILE, f"{count(len(strange), 'key')} of no parameter of the adapter: {some(strange)}"
        )
    return OwnWeights(method=method, settings=settings, own=own, saved=saved)


def _is_own(name: str, method: Method) -> bool:
    if method.peft_type == BITFIT_TYPE:
        return name.endswith(DELTA)
    return any(part in SLOTS for part in name.split("."))


def _is_known(name: str, method: Method, settings: Mapping[str, Frozen]) -> bool:
    if method.peft_type == BITFIT_TYPE:
        return name.endswith(f"bias{DELTA}")
    spec = BottleneckSpec.from_hyperparameters(settings)
    known = spec.tensors(1)
    return any(name.endswith(f".{slot}.{end}") for slot in spec.slots for end in known)


def skip_own_fit(contents: Contents, weights: OwnWeights, reason: str, log: Checklist, *, hint: str | None) -> None:
    """Say that nothing was checked against a base, and why."""
    for index, code in enumerate(FIT):
        log.skip(code, WEIGHTS_FILE, reason, hint=hint if index == 0 else None)
    check_head(contents, _as_saved(weights), None, log)


def check_own_fit(contents: Contents, weights: OwnWeights, files: BaseFiles, log: Checklist) -> None:
    """Check an adapter of ours against the headers of a base."""
    task = TASKS.get(str((contents.config or {}).get("task_type")))
    view = files.view(bare=task is not None and task.bare)
    check_head(contents, _as_saved(weights), frozenset(view.parameters), log)
    log.look(*FIT)
    try:
        expected = _expected(weights, view, files)
    except AdapterHubError as error:
        log.error("ADP314", WEIGHTS_FILE, error)
        return
    met = weights.own.keys() & expected.keys()
    if not met and not view.known:
        for code in FIT:
            log.skip(code, WEIGHTS_FILE, "what the built model calls its modules is not known")
        return
    if not met:
        log.fault("ADP314", WEIGHTS_FILE, f"the base has no place for any of {count(len(weights.own), 'tensor')}")
    heads = OPTIONAL_MODULES | set(task.head_modules if task is not None else ())
    whole = tuple(str(name) for name in _names(weights.settings.get("modules_to_save")))
    leftover = [name for name in weights.own if name not in expected]
    leftover += [name for name in weights.saved if name not in view.parameters and not _is_of(name, heads, whole)]
    if leftover:
        log.fault("ADP301", WEIGHTS_FILE, f"the base has no place for {some(leftover)}")
    missing = [name for name in expected if name not in weights.own and not _is_of(name, OPTIONAL_MODULES, whole)]
    if missing:
        log.fault("ADP302", WEIGHTS_FILE, f"{count(len(missing), 'tensor')} of the adapter missing: {some(missing)}")
    shapes = {name: tuple(expected[name]) for name in met}
    shapes |= {name: view.parameters[name].shape for name in weights.saved if name in view.parameters}
    all_tensors = {**weights.own, **weights.saved}
    wrong = [
        f"{name} ({list(all_tensors[name].shape)}, {list(shape)} on the base)"
        for name, shape in sorted(shapes.items())
        if tuple(all_tensors[name].shape) != tuple(shape)
    ]
    if wrong:
        log.fault("ADP305", WEIGHTS_FILE, f"{count(len(wrong), 'shape')} that do not fit: {some(wrong)}")


def _expected(weights: OwnWeights, view: BaseView, files: BaseFiles) -> dict[str, tuple[int, ...]]:
    """Return the tensors that the adapter has on a base, by name."""
    kind = files.config.get("model_type")
    model_type = kind if isinstance(kind, str) else None
    if weights.method.peft_type == BITFIT_TYPE:
        stored = {
            name: tuple(info.shape)
            for name, info in view.parameters.items()
            if name.rpartition(".")[2] == "bias" and len(info.shape) == 1
        }
        chosen = choose_biases(stored, weights.settings["target_modules"], model=model_type)
        return {name + DELTA: stored[name] for name in chosen}
    spec = BottleneckSpec.from_hyperparameters(weights.settings)
    one = spec.tensors(hidden_width(files.config) or 0)
    found = places(model_type, view.parameters, spec.slots, spec.leave_out)
    return {f"{place.path}.{name}": shape for place in found for name, shape in one.items()}


def _is_of(name: str, modules: frozenset[str] | set[str], whole: tuple[str, ...]) -> bool:
    """Say whether a tensor is of a module that the base need not have, or of one that is trained whole."""
    parts = name.split(".")
    if any(part in modules for part in parts):
        return True
    paths = [".".join(parts[: index + 1]) for index in range(len(parts))]
    return any(path == end or path.endswith(f".{end}") for path in paths for end in whole)


def _names(value: Frozen) -> tuple[Frozen, ...]:
    return value if isinstance(value, tuple) else (value,) if isinstance(value, str) else ()


def _as_saved(weights: OwnWeights) -> LoraWeights:
    return LoraWeights(factors={}, embeddings=frozenset(), saved=weights.saved)
