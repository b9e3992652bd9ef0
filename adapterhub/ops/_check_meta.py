"""The checks that only the built model can answer, made on a model of shapes: every method, every task, any base."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from adapterhub.bases import BaseRecord
from adapterhub.catalog.methods import Method, method_of_config
from adapterhub.catalog.tasks import TASKS
from adapterhub.errors import AdapterHubError
from adapterhub.ops._base_view import MADE
from adapterhub.ops._check_base import Missing
from adapterhub.ops._check_config import Contents
from adapterhub.ops._check_weights import PREFIX
from adapterhub.ops._checklist import Checklist, count, some
from adapterhub.spec.manifest import CONFIG_FILE, WEIGHTS_FILE

# What the built model answers, whatever headers and tables said of it.
ANSWERED = ("ADP301", "ADP302", "ADP303", "ADP304", "ADP305", "ADP314", "ADP403", "ADP404")
_LIBRARIES = ("torch", "transformers", "peft")


def check_meta(contents: Contents, base: BaseRecord | Missing, log: Checklist) -> None:
    """Compare an adapter's tensors with those that PEFT would make on its base, built on the meta device.

    What headers answered otherwise is taken back, and what they left open is answered; where the model cannot be built
    so, that is said and nothing else changes.
    """
    if contents.header is None or contents.config is None or (method := method_of_config(contents.config)) is None:
        return  # which has its own findings
    absent = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if absent:
        hint = f"pip install {' '.join(absent)}"
        log.skip("ADP403", WEIGHTS_FILE, f"--meta needs {', '.join(absent)}, not installed here", hint=hint)
        return
    if isinstance(base, Missing):
        log.skip("ADP403", WEIGHTS_FILE, f"--meta needs the base: {base.reason}", hint=base.hint)
        return
    _compare(contents, method, base, log)


def _compare(contents: Contents, method: Method, base: BaseRecord, log: Checklist) -> None:
    from adapterhub.engine.meta_model import view_on_meta

    assert contents.header is not None and contents.config is not None
    tensors = {name: tuple(info.shape) for name, info in contents.header.tensors.items()}
    try:
        view = view_on_meta(base.path, contents.config, method, tensors, labels=_labels(contents))
    except AdapterHubError as error:
        log.skip("ADP403", WEIGHTS_FILE, f"the model cannot be built on the meta device: {error.message}")
        return
    log.look("ADP104")
    for key in view.unknown if method.peft_type != "LORA" else ():
        log.fault("ADP104", f"{CONFIG_FILE}: {key}", f"is no setting of {method.name} that the PEFT here knows")
    if view.refused is not None:
        log.retract("ADP403", "ADP404")
        log.fault("ADP314", CONFIG_FILE, f"PEFT cannot put it on the base: {view.refused}")
        return
    faults: dict[str, list[tuple[str, str]]] = {code: [] for code in (*ANSWERED, "ADP208")}
    heads = set(_heads(contents))
    total = count(len(tensors), "tensor")
    leftover = [name for name in view.leftover if not _is_of(name, heads)]
    if leftover:
        faults["ADP301"].append(
            (WEIGHTS_FILE, f"the base has no place for {len(leftover)} of {total}: {some(leftover)}")
        )
    missing = [name for name in view.missing if not (_is_of(name, heads) and ".lora_" not in name)]
    if missing:
        faults["ADP302"].append(
            (WEIGHTS_FILE, f"PEFT would make {count(len(missing), 'tensor')} anew: {some(missing)}")
        )
    if view.untargeted:
        message = f"does not cover {count(len(view.untargeted), 'tensor')} of {WEIGHTS_FILE}: {some(view.untargeted)}"
        faults["ADP303"].append((CONFIG_FILE, message))
    if view.idle:
        where = f"{CONFIG_FILE}: target_modules"
        faults["ADP304"].append((where, f"nothing in the base matches {some(view.idle)}"))
    for name, have, want in view.shapes:
        rows = have[1:] == want[1:] and _is_vocabulary(name)
        faults["ADP208" if rows else "ADP305"].append(
            (f"{WEIGHTS_FILE}: {name}", f"is {list(have)}, on the base {list(want)}")
        )
    if not view.met:
        faults["ADP314"].append((WEIGHTS_FILE, f"the base has a place for none of {total}"))
    _settle(faults, log, prefixed=all(name.startswith(PREFIX) for name in tensors), met=bool(view.met))
    _check_made(contents, view.parameters, base, log)


def _settle(faults: dict[str, list[tuple[str, str]]], log: Checklist, *, prefixed: bool, met: bool) -> None:
    """Put what the built model says in the place of what headers said, whose words are kept where both agree."""
    for code, found in faults.items():
        if found and log.found(code):
            log.retract(code, faults=False)
            continue
        # A vocabulary's size is told by a tokenizer too, and by the words of headers.
        log.retract(code, faults=code != "ADP208")
        for where, message in found[:8]:
            log.fault(code, where, message)
        if len(found) > 8:
            log.fault(code, WEIGHTS_FILE, f"and {len(found) - 8} more")
    log.retract("ADP307", faults=met and prefixed)
    log.retract("ADP310", faults=False)


def _check_made(contents: Contents, parameters: Iterable[str], base: BaseRecord, log: Checklist) -> None:
    """Check that what the task's model has and the base does not store came along: it would be made at random."""
    from adapterhub.ops._base_view import read_base_files

    task = TASKS.get(str((contents.config or {}).get("task_type")))
    if task is None or not task.head_modules or contents.header is None:
        return
    try:
        stored = tuple(read_base_files(base.path).tensors)
    except AdapterHubError:
        return
    saved = {name.removeprefix(PREFIX).replace(".base_layer.", ".") for name in contents.header.tensors}
    made = sorted(
        {
            name.rpartition(".")[0]
            for name in parameters
            if _is_of(name, {*_heads(contents)}) and name not in saved and not _stores(stored, name)
        }
    )
    log.retract("ADP308", faults=False)
    if made and not log.found("ADP308"):
        message = f"the base does not store {some(made)}, and none was saved: it is random at each load"
        log.fault("ADP308", WEIGHTS_FILE, message)


def _stores(stored: tuple[str, ...], name: str) -> bool:
    """Say whether a checkpoint has a tensor, under the name of this class or of the one that saved it."""
    parts = name.split(".")
    start = next(index for index, part in enumerate(parts) if part in MADE or index == len(parts) - 1)
    ending = ".".join(parts[start:])
    return any(item == ending or item.endswith(f".{ending}") for item in stored)


def _heads(contents: Contents) -> tuple[str, ...]:
    task = TASKS.get(str((contents.config or {}).get("task_type")))
    return (*task.head_modules, *sorted(MADE)) if task and task.head_modules else ()


def _is_of(name: str, modules: set[str]) -> bool:
    return any(part in modules for part in name.split("."))


def _is_vocabulary(name: str) -> bool:
    module = name.removesuffix(".weight").rpartition(".")[2]
    return module in ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings", "shared")


def _labels(contents: Contents) -> int | None:
    """Return how many outputs the head has: by its weight, else by the labels that the manifest names."""
    task = TASKS.get(str((contents.config or {}).get("task_type")))
    if task is None or not task.labels or contents.header is None:
        return None
    for name, info in contents.header.tensors.items():
        parts = name.split(".")
        is_head = any(part in (*task.head_modules, "classification_head") for part in parts)
        if is_head and parts[-1] == "weight" and parts[-2] != "dense" and ".lora_" not in name and len(info.shape) == 2:
            return info.shape[0]
    return len(contents.manifest.labels) or None if contents.manifest is not None else None
