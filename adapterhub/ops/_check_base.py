"""Checks of a package against its base model: whether it is the right one, and whether the weights meet it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adapterhub.catalog.tasks import TASKS
from adapterhub.documents import read_json
from adapterhub.errors import AdapterHubError
from adapterhub.fingerprints import Verdict, compare, differing_parts
from adapterhub.ops._base_view import MADE, OPTIONAL_MODULES, BaseFiles, BaseView, read_base_files
from adapterhub.ops._check_config import Contents
from adapterhub.ops._check_own import OwnWeights, check_own_fit, check_own_weights, skip_own_fit
from adapterhub.ops._check_weights import META_HINT, LoraWeights, check_head, is_parameter
from adapterhub.ops._checklist import Checklist, count, some
from adapterhub.package import base_of_config, regular_file
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.lora import ALL_LINEAR, LoraSpec
from adapterhub.spec.manifest import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from adapterhub.bases import BaseRecord

_IDENTITY = ("ADP201", "ADP206", "ADP207")
_FIT = ("ADP208", "ADP301", "ADP302", "ADP304", "ADP305", "ADP309", "ADP314")
_TOKENIZER = "tokenizer.json"
# Tasks whose class holds the headless model as its `transformer` (transformers' modeling_t5.py and those made of it).
_PARTS_OF = dict.fromkeys(("t5", "mt5", "umt5"), ("SEQ_CLS", "TOKEN_CLS"))
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """There is no base model to check against: why, and what to do about it."""

    reason: str
    hint: str | None = None


def check_base(contents: Contents, weights: LoraWeights | None, base: BaseRecord | Missing, log: Checklist) -> None:
    """Check identity and fit; without a base every one of these checks reads `not checked`, with the reason."""
    own = check_own_weights(contents, log)
    if isinstance(base, Missing):
        _skip_all(contents, weights, own, base, log)
        return
    recorded = _recorded(contents)
    if recorded is None:
        log.skip("ADP201", CONFIG_FILE, "the package names no base model")
    else:
        _check_identity(recorded, base, log)
    if weights is None and own is None:
        return
    try:
        files = read_base_files(base.path)
    except AdapterHubError as error:
        missing = Missing(reason=f"the base's files cannot be read ({error})", hint=error.hint)
        _skip_fits(contents, weights, own, missing, log)
        return
    if own is not None:
        check_own_fit(contents, own, files, log)
    elif weights is not None and contents.lora is not None:
        _check_fit(contents, contents.lora, weights, files, log)


def _skip_all(
    contents: Contents, weights: LoraWeights | None, own: OwnWeights | None, missing: Missing, log: Checklist
) -> None:
    for index, code in enumerate(_IDENTITY):
        log.skip(code, MANIFEST_FILE, missing.reason, hint=missing.hint if index == 0 else None)
    _skip_fits(contents, weights, own, replace(missing, hint=None), log)


def _skip_fits(
    contents: Contents, weights: LoraWeights | None, own: OwnWeights | None, missing: Missing, log: Checklist
) -> None:
    if own is not None:
        skip_own_fit(contents, own, missing.reason, log, hint=missing.hint)
    elif weights is not None:
        _skip_fit(weights, contents, missing, log)


def _skip_fit(weights: LoraWeights, contents: Contents, missing: Missing, log: Checklist) -> None:
    for index, code in enumerate(_FIT):
        log.skip(code, WEIGHTS_FILE, missing.reason, hint=missing.hint if index == 0 else None)
    check_head(contents, weights, None, log)


def _recorded(contents: Contents) -> BaseModelRef | None:
    """Return the base that the package says it was trained on."""
    if contents.manifest is not None:
        return contents.manifest.base_model
    try:
        return base_of_config(contents.config or {})[0]
    except AdapterHubError:
        return None


def _check_identity(recorded: BaseModelRef, base: BaseRecord, log: Checklist) -> None:
    log.look("ADP201", "ADP202", "ADP203", "ADP204")
    actual, where = base.ref, f"{MANIFEST_FILE}: base_model"
    verdict = compare(recorded, actual)
    parts = differing_parts(recorded.fingerprints, actual.fingerprints)
    names = f"trained on {_told(recorded)}, checked against {_told(actual)}"
    if verdict is Verdict.DIFFERENT:
        apart = f" ({', '.join(parts)} differ)" if parts else ""
        hint = None if recorded.id == actual.id else f"adapt base add {recorded.id} --from FOLDER"
        log.fault("ADP201", where, names + apart, hint=hint)
    elif verdict is Verdict.REVISION:
        log.fault("ADP202", where, names)
    elif verdict is Verdict.SIBLING:
        log.fault("ADP203", where, names)
    elif verdict is Verdict.UNKNOWN:
        log.fault("ADP204", where, f"{names}; no fingerprint of the weights was recorded on both sides")
    elif "config" in parts and verdict is not Verdict.UNPACKED:
        log.fault("ADP202", where, f"{names}: the same weights under another config")
    for code, part, label in (("ADP206", "tokenizer", "tokenizer"), ("ADP207", "chat_template", "chat template")):
        ours, theirs = getattr(recorded.fingerprints, part), getattr(actual.fingerprints, part)
        if part in parts:
            log.fault(code, f"{where}.fingerprints.{part}", f"the base here has another {label}")
        elif ours is not None and theirs is not None:
            log.look(code)
        elif ours is None and theirs is None and not recorded.fingerprints.empty:
            log.look(code)  # recorded as having none, and it has none
        else:
            side = "the package recorded none" if ours is None else "the base here has none"
            log.skip(code, f"{where}.fingerprints.{part}", side)


def _told(ref: BaseModelRef) -> str:
    weights = ref.fingerprints.weights
    known = "".join(f", {word} {value}" for word, value in (("revision", ref.revision),) if value)
    return f"{ref.id}{known}" + (f" (weights {weights.short}…)" if weights else "")


def _check_fit(contents: Contents, lora: LoraSpec, weights: LoraWeights, files: BaseFiles, log: Checklist) -> None:
    view = _view_for(contents, weights, files)
    check_head(contents, weights, frozenset(view.parameters), log)
    _check_ties(contents, lora, weights, view, log)
    if view.quantized:
        for code in _FIT:
            if code != "ADP309":
                reason = "the base is stored quantized, so its headers do not tell shapes"
                log.skip(code, WEIGHTS_FILE, reason, hint=META_HINT if code == "ADP301" else None)
        return
    if _meets(weights, view, log):
        _check_modules(contents, weights, view, log)
        _check_targets(contents, lora, weights, view, log)
    _check_shapes(lora, weights, view, log)
    _check_saved(contents, weights, view, log)
    _check_tokens(contents, weights, view, log)


def _view_for(contents: Contents, weights: LoraWeights, files: BaseFiles) -> BaseView:
    """Return the base by the names of the class that the adapter was trained with; untold, by those that fit better."""
    task = TASKS.get(str((contents.config or {}).get("task_type")))
    if task is not None and task.name in _PARTS_OF.get(str(files.config.get("model_type")), ()):
        return files.view(bare=True).under("transformer.")
    if task is not None:
        return files.view(bare=task.bare)
    views = (files.view(bare=False), files.view(bare=True))
    return max(views, key=lambda view: len(weights.factors.keys() & view.modules.keys()))


def _meets(weights: LoraWeights, view: BaseView, log: Checklist) -> bool:
    """Check that at least one weight meets a module; where none does, say whether a prefix is all that differs."""
    log.look("ADP314")
    if not weights.factors or weights.factors.keys() & view.modules.keys():
        if not weights.factors:
            log.fault("ADP314", WEIGHTS_FILE, "there is not one pair of A and B")
        return bool(weights.factors)
    example = next(iter(weights.factors))
    moved = _prefixes(weights, view)
    if moved is not None and not view.known:
        reason = f"what the built model calls its modules is not known ({moved[0]!r} or {moved[1]!r})"
        for code in _FIT:
            if code not in ("ADP208", "ADP309"):
                log.skip(code, WEIGHTS_FILE, reason)
        log.findings = [finding for finding in log.findings if finding.code != "ADP307"]
        log.skip("ADP307", WEIGHTS_FILE, reason)
        return False
    if moved is not None:
        message = f"modules begin with {moved[0]!r}, the base's with {moved[1]!r} ({example})"
        log.fault("ADP307", WEIGHTS_FILE, message)
    log.fault("ADP314", WEIGHTS_FILE, f"the base has none of its {count(len(weights.factors), 'module')}: {example}")
    if moved is None:
        _check_leftover(weights, view, log)
    return False


def _prefixes(weights: LoraWeights, view: BaseView) -> tuple[str, str] | None:
    """Return the beginnings of the adapter's and the base's paths that all else being equal differ, if that is all."""
    module = next(iter(weights.factors))
    parts = module.split(".")
    for index in range(len(parts) - 1):
        ending = ".".join(parts[index:])
        if not any(part.isdigit() for part in parts[index:]):
            break
        for found in view.modules:
            if found == ending or found.endswith(f".{ending}"):
                ours, theirs = module.removesuffix(ending), found.removesuffix(ending)
                if all(name.startswith(ours) and theirs + name.removeprefix(ours) in view.modules
                       for name in weights.factors):  # fmt: skip
                    return ours, theirs
    return None


def _check_modules(contents: Contents, weights: LoraWeights, view: BaseView, log: Checklist) -> None:
    lora = contents.lora
    assert lora is not None
    if lora.layer_replication:
        for code in ("ADP301", "ADP302"):
            log.skip(code, CONFIG_FILE, "layer_replication makes layers that the base does not store")
        return
    _check_leftover(weights, view, log, classifies=bool(_new_heads(contents)))
    expected = _expected(lora, weights, view)
    if expected is None:
        log.skip(
            "ADP302", CONFIG_FILE, "target_modules is not set, and PEFT's default for the family is not known here"
        )
        return
    log.look("ADP302")
    missing = [name for name in expected if name not in weights.factors]
    if missing:
        log.fault(
            "ADP302",
            WEIGHTS_FILE,
            f"{CONFIG_FILE} targets {count(len(expected), 'module')}, {len(missing)} have no weights: {some(missing)}",
        )
    if isinstance(lora.target_modules, str) and lora.target_modules.lower() == ALL_LINEAR:
        log.look("ADP303")
        outside = [name for name in weights.factors if name in view.modules and name not in expected]
        if outside:
            where = f"{CONFIG_FILE}: target_modules"
            log.fault("ADP303", where, f"all-linear does not cover {some(outside)}")


def _check_leftover(weights: LoraWeights, view: BaseView, log: Checklist, *, classifies: bool = False) -> None:
    log.look("ADP301")
    leftover = [name for name in weights.factors if name not in view.modules]
    made = [name for name in leftover if classifies and MADE & set(name.split("."))]
    if made:
        # PEFT adapts a layer that no file holds: it has other numbers each time it is loaded.
        hint = "train again with it in modules_to_save, or left out of target_modules"
        log.fault("ADP308", WEIGHTS_FILE, f"adapts {some(made)}, which was made anew and not saved", hint=hint)
        leftover = [name for name in leftover if name not in made]
    experts = [name for name in leftover if "experts" in name.split(".")]
    if experts and (view.experts or not view.known):
        log.skip("ADP403", WEIGHTS_FILE, f"the built model fuses experts: {some(experts)}", hint=META_HINT)
        leftover = [name for name in leftover if name not in experts]
    if leftover:
        counts = f"{len(leftover)} of {count(len(weights.factors), 'module')}"
        log.fault(
            "ADP301", WEIGHTS_FILE, f"the base has no module for {counts}: {some(leftover)}{_layers(leftover, view)}"
        )


def _layers(leftover: list[str], view: BaseView) -> str:
    """Say so where the adapter simply has more layers than the base."""
    theirs = [int(match[1]) for name in view.modules if (match := _LAYER.search(name))]
    ours = [int(match[1]) for name in leftover if (match := _LAYER.search(name))]
    if theirs and len(ours) == len(leftover) and min(ours) > max(theirs):
        return f" (layers up to {max(ours)}, the base has {max(theirs) + 1})"
    return ""


def _expected(lora: LoraSpec, weights: LoraWeights, view: BaseView) -> tuple[str, ...] | None:
    """Return the modules that PEFT would adapt on this base; None where the config leaves it to PEFT's tables."""
    if lora.target_modules is None:
        return () if lora.target_parameters else None
    if isinstance(lora.target_modules, str) and lora.target_modules.lower() == ALL_LINEAR:
        # A checkpoint may hold the head or pooler of another class than the adapter's.
        certain = [
            name for name in view.linear if name in weights.factors or not OPTIONAL_MODULES & set(name.split("."))
        ]
        return lora.targets(certain, head=view.head)
    # PEFT writes all-linear out as names, and one of these (`dense`) may be a pooler's too.
    return lora.targets(name for name in view.modules if name in weights.factors or "pooler" not in name.split("."))


def _check_targets(contents: Contents, lora: LoraSpec, weights: LoraWeights, view: BaseView, log: Checklist) -> None:
    """Check that each name in target_modules matches a module of the base, whatever layers it is narrowed to."""
    targets = lora.target_modules
    log.look("ADP304")
    if not isinstance(targets, tuple):
        return
    saved = [name.rpartition(".")[0] for name in weights.saved]
    known = [*view.modules, *weights.factors, *saved, *_new_heads(contents)]
    idle = [name for name in targets if not any(m == name or m.endswith(f".{name}") for m in known)]
    if idle:
        log.fault("ADP304", f"{CONFIG_FILE}: target_modules", f"nothing in the base matches {some(idle)}")


def _new_heads(contents: Contents) -> tuple[str, ...]:
    task = TASKS.get(str((contents.config or {}).get("task_type")))
    return task.head_modules if task is not None else ()


def _check_shapes(lora: LoraSpec, weights: LoraWeights, view: BaseView, log: Checklist) -> None:
    log.look("ADP305", "ADP208")
    if "use_qalora" in lora.variants:
        log.skip("ADP305", CONFIG_FILE, "use_qalora pools the inputs of A")
        return
    wrong = []
    for module, parts in weights.factors.items():
        if module not in view.modules or is_parameter(module, lora) or not {"A", "B"} <= parts.keys():
            continue
        a, b = parts["A"].shape, parts["B"].shape
        inputs, outputs = view.in_out(module)
        if module in weights.embeddings:
            # An embedding's A runs over its rows, which are the vocabulary; its B over the width.
            if a[-1] != outputs:
                log.fault("ADP208", f"{WEIGHTS_FILE}: {module}", f"has {a[-1]} rows, the base {outputs}")
            if b[0] != inputs:
                wrong.append(f"{module} (B {list(b)}, the base's width is {inputs})")
        elif module == view.head and b[0] != outputs and len(a) > 1 and a[1] == inputs:
            log.fault("ADP208", f"{WEIGHTS_FILE}: {module}", f"has {b[0]} outputs, the base {outputs}")
        elif len(a) < 2 or a[1] != inputs or b[0] != outputs:
            wrong.append(f"{module} (A {list(a)}, B {list(b)}, the base is {inputs} → {outputs})")
        for part in ("bias", "magnitude"):
            if part in parts and module not in weights.embeddings and parts[part].elements != outputs:
                wrong.append(f"{module} ({part} {list(parts[part].shape)}, the base has {outputs} outputs)")
    if wrong:
        log.fault("ADP305", WEIGHTS_FILE, f"{count(len(wrong), 'shape')} that do not fit: {some(wrong)}")


def _check_saved(contents: Contents, weights: LoraWeights, view: BaseView, log: Checklist) -> None:
    """Check the parameters that were saved whole: embeddings and heads, biases, modules_to_save."""
    heads = _new_heads(contents)
    leftover = []
    for name, info in weights.saved.items():
        stored = name.replace(".base_layer.", ".")
        module = stored.removesuffix(".weight")
        tensor = view.modules.get(module) if stored.endswith(".weight") else view.parameters.get(stored)
        tensor = tensor or view.parameters.get(stored)
        if name.endswith((".trainable_tokens_delta", ".trainable_tokens_original")):
            continue
        if tensor is None:
            # A bias that a base without biases does not store, or a head that is new.
            if not set(name.split(".")) & set(heads) and not _is_saved(module, contents.lora):
                leftover.append(name)
        elif tensor.shape != info.shape:
            rows = module in view.embeddings or module == view.head
            if rows and tensor.shape[1:] == info.shape[1:]:
                message = f"has {info.shape[0]} rows, the base {tensor.shape[0]}"
                log.fault("ADP208", f"{WEIGHTS_FILE}: {name}", message)
            else:
                message = f"is {list(info.shape)}, the base's {list(tensor.shape)}"
                log.fault("ADP305", f"{WEIGHTS_FILE}: {name}", message)
    if leftover and view.known:
        log.fault("ADP301", WEIGHTS_FILE, f"the base has no parameter for {some(leftover)}")
    elif leftover:
        log.skip("ADP301", WEIGHTS_FILE, f"what the built model calls its modules is not known: {some(leftover)}")


def _is_saved(module: str, lora: LoraSpec | None) -> bool:
    """Say whether a parameter's module is one of modules_to_save, which PEFT matches by the end of a path."""
    names = lora.modules_to_save if lora is not None else ()
    parts = module.split(".")
    paths = [".".join(parts[: index + 1]) for index in range(len(parts))]
    return any(path.endswith(name) for path in paths for name in names)


def _check_ties(contents: Contents, lora: LoraSpec, weights: LoraWeights, view: BaseView, log: Checklist) -> None:
    log.look("ADP309")
    if not view.tied:
        return
    ends = {*view.embeddings, view.head} - {None}
    touched = [name for name in weights.factors if name in ends]
    touched += [name for name in weights.saved if name.removesuffix(".weight") in ends and _is_saved(name, lora)]
    if touched and (contents.config or {}).get("ensure_weight_tying") is not True:
        log.fault("ADP309", WEIGHTS_FILE, f"the base ties embeddings and lm_head, and the adapter has {some(touched)}")


def _check_tokens(contents: Contents, weights: LoraWeights, view: BaseView, log: Checklist) -> None:
    """Check the tokenizer that comes with the package against the embedding it will index."""
    if not (contents.folder / _TOKENIZER).exists() or view.rows is None:
        return
    try:
        highest = _highest_token(read_json(regular_file(contents.folder, _TOKENIZER)))
    except AdapterHubError as error:
        log.error("ADP102", _TOKENIZER, error)
        return
    saved = [
        info.shape[0]
        for name, info in weights.saved.items()
        if name.replace(".base_layer.", ".").removesuffix(".weight") in view.embeddings
    ]
    rows = max([view.rows, *saved])
    log.look("ADP209")
    if highest is None:
        log.skip("ADP208", _TOKENIZER, "its vocabulary is of a form that is not known here")
    elif highest >= rows:
        log.fault("ADP208", _TOKENIZER, f"has ids up to {highest}, the embedding has {rows} rows")
    elif highest + 1 < rows:
        log.fault("ADP209", _TOKENIZER, f"has {highest + 1} tokens, the embedding {rows} rows")


def _highest_token(tokenizer: object) -> int | None:
    """Return the highest id of a tokenizer.json, None where its vocabulary cannot be told."""
    if not isinstance(tokenizer, Mapping) or not isinstance(model := tokenizer.get("model"), Mapping):
        return None
    vocab = model.get("vocab")
    ids = list(vocab.values()) if isinstance(vocab, Mapping) else [len(vocab) - 1] if isinstance(vocab, list) else []
    ids += [row.get("id") for row in tokenizer.get("added_tokens") or () if isinstance(row, Mapping)]
    whole = [item for item in ids if isinstance(item, int)]
    return max(whole) if whole else None
