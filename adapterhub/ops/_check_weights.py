"""Checks of LoRA weights against their own config, from the header alone; the base model is not looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from adapterhub.catalog.methods import method_of_config
from adapterhub.catalog.own_methods import OWN_TYPES
from adapterhub.catalog.tasks import TASKS
from adapterhub.ops._check_config import Contents
from adapterhub.ops._checklist import Checklist, count, some
from adapterhub.spec.lora import ALL_LINEAR, LoraSpec
from adapterhub.spec.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.weights import Header, TensorInfo

PREFIX = "base_model.model."
META_HINT = "adapt validate PACKAGE --meta"
_UNREAD = "the weights were not read (--deep reads them)"
_PARTS: Mapping[str, str] = MappingProxyType(
    {
        ".lora_A.weight": "A",
        ".lora_B.weight": "B",
        ".lora_B.bias": "bias",
        ".lora_embedding_A": "A",
        ".lora_embedding_B": "B",
        ".lora_magnitude_vector": "magnitude",
        # How peft before 0.12 wrote the same.
        ".lora_magnitude_vector.weight": "magnitude",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraWeights:
    """An adapter's tensors by what they are.

    factors: by module path, its A, B, bias (of B) and magnitude. embeddings: the modules whose factors are those of an
    embedding, A (r, rows) and B (width, r). saved: whole parameters saved along, by their path in the base model.
    """

    factors: Mapping[str, Mapping[str, TensorInfo]]
    embeddings: frozenset[str]
    saved: Mapping[str, TensorInfo]


def check_weights(contents: Contents, log: Checklist) -> LoraWeights | None:
    """Check names, pairs, ranks and dtypes; return the weights sorted by what they are, None where there are none."""
    if contents.header is None or contents.config is None:
        return None
    log.skip("ADP401", WEIGHTS_FILE, _UNREAD)
    if method_of_config(contents.config) is not None:
        log.skip("ADP402", WEIGHTS_FILE, _UNREAD)
    if contents.lora is None:
        # LoRA's that is broken, and those of _check_own.py, are not left out here.
        looked_at = contents.config.get("peft_type") in ("LORA", *OWN_TYPES)
        if not looked_at and not log.found("ADP102") and not log.found("ADP103"):
            log.skip("ADP404", WEIGHTS_FILE, f"{contents.config.get('peft_type')} is not LoRA", hint=META_HINT)
        return None
    weights = _sort(contents.header, contents.lora, log)
    _check_dtypes(contents.header, log)
    _check_pairs(weights, log)
    _check_ranks(weights, contents.lora, log)
    _check_dora(weights, contents.lora, log)
    _check_bias(weights, contents.lora, log)
    _check_cover(weights, contents.lora, log, ties=contents.config.get("ensure_weight_tying") is True)
    _check_special(contents.lora, log)
    return weights


def _sort(header: Header, lora: LoraSpec, log: Checklist) -> LoraWeights:
    log.look("ADP307", "ADP310")
    factors: dict[str, dict[str, TensorInfo]] = {}
    embeddings: set[str] = set()
    saved: dict[str, TensorInfo] = {}
    unprefixed, stray = [], []
    for key, info in header.tensors.items():
        if not key.startswith(PREFIX):
            unprefixed.append(key)
            continue
        name = key.removeprefix(PREFIX)
        suffix = next((end for end in _PARTS if name.endswith(end)), None)
        if suffix is not None:
            module = name.removesuffix(suffix)
            factors.setdefault(module, {})[_PARTS[suffix]] = info
            if "embedding" in suffix:
                embeddings.add(module)
        elif any(part.startswith("lora_") for part in name.split(".")):
            stray.append(key)
        else:
            saved[name] = info
    if unprefixed:
        log.fault("ADP307", WEIGHTS_FILE, f"{count(len(unprefixed), 'key')} without {PREFIX!r}: {some(unprefixed)}")
    if stray and lora.variants:
        log.skip("ADP310", WEIGHTS_FILE, f"{' and '.join(lora.variants)} may add weights of its own: {some(stray)}")
    elif stray:
        log.fault("ADP310", WEIGHTS_FILE, f"{count(len(stray), 'key')} of no parameter of LoRA: {some(stray)}")
    return LoraWeights(factors=factors, embeddings=frozenset(embeddings), saved=saved)


def _check_dtypes(header: Header, log: Checklist) -> None:
    log.look("ADP315")
    wrong = [name for name, info in header.tensors.items() if not info.dtype.startswith(("F", "BF"))]
    if wrong:
        kinds = sorted({header.tensors[name].dtype for name in wrong})
        log.fault("ADP315", WEIGHTS_FILE, f"{count(len(wrong), 'tensor')} of {', '.join(kinds)}: {some(wrong)}")


def _check_pairs(weights: LoraWeights, log: Checklist) -> None:
    log.look("ADP311")
    alone = [name for name, parts in weights.factors.items() if not {"A", "B"} <= parts.keys()]
    if alone:
        log.fault("ADP311", WEIGHTS_FILE, f"{count(len(alone), 'module')} with only one of A and B: {some(alone)}")
    for module, parts in weights.factors.items():
        if module in alone:
            continue
        a, b = parts["A"].shape, parts["B"].shape
        if len(a) < 2 or len(b) < 2 or 0 in a or 0 in b:
            # PEFT's own warning on such files: shards of ZeRO-3 or FSDP that were not gathered before saving.
            log.fault("ADP311", f"{WEIGHTS_FILE}: {module}", f"A is {list(a)}, B {list(b)}: not gathered when saved")
        elif a[0] != b[1]:
            log.fault("ADP311", f"{WEIGHTS_FILE}: {module}", f"A {list(a)} and B {list(b)} have no rank in common")


def _check_ranks(weights: LoraWeights, lora: LoraSpec, log: Checklist) -> None:
    log.look("ADP306")
    wrong: dict[tuple[int, int], list[str]] = {}
    for module, parts in weights.factors.items():
        if "A" not in parts or not parts["A"].shape or is_parameter(module, lora):
            continue
        have, said = parts["A"].shape[0], lora.rank_of(module)
        if have != said:
            wrong.setdefault((have, said), []).append(module)
    for (have, said), modules in sorted(wrong.items()):
        where = f"{CONFIG_FILE}: {'rank_pattern' if lora.rank_pattern else 'r'}"
        log.fault(
            "ADP306", where, f"says {said}, the weights of {count(len(modules), 'module')} have {have}: {some(modules)}"
        )


def _check_dora(weights: LoraWeights, lora: LoraSpec, log: Checklist) -> None:
    log.look("ADP312")
    having = [name for name, parts in weights.factors.items() if "magnitude" in parts]
    lacking = [name for name, parts in weights.factors.items() if "magnitude" not in parts]
    if lora.use_dora and lacking:
        log.fault("ADP312", WEIGHTS_FILE, f"use_dora is set, {count(len(lacking), 'module')} without: {some(lacking)}")
    elif not lora.use_dora and having:
        log.fault("ADP312", f"{CONFIG_FILE}: use_dora", f"is not set, and there are magnitudes: {some(having)}")


def _check_bias(weights: LoraWeights, lora: LoraSpec, log: Checklist) -> None:
    log.look("ADP313")
    having = [name for name, parts in weights.factors.items() if "bias" in parts]
    lacking = [name for name in weights.factors if name not in having and name not in weights.embeddings]
    if lora.lora_bias and lacking:
        log.fault("ADP313", WEIGHTS_FILE, f"lora_bias is set, {count(len(lacking), 'module')} without: {some(lacking)}")
    elif not lora.lora_bias and having:
        log.fault("ADP313", f"{CONFIG_FILE}: lora_bias", f"is not set, and B has biases: {some(having)}")


def _check_cover(weights: LoraWeights, lora: LoraSpec, log: Checklist, *, ties: bool) -> None:
    """Check that the config targets what has weights; `all-linear` and null need the base to answer."""
    targets = lora.target_modules
    if targets is None or (isinstance(targets, str) and targets.lower() == ALL_LINEAR):
        return
    log.look("ADP303")
    # With ensure_weight_tying PEFT adapts the partner of a targeted embedding or head too.
    partners = {name for name in weights.factors if name in weights.embeddings or _is_head(name)} if ties else set()
    outside = [
        name
        for name in weights.factors
        if not lora.matches(name) and not is_parameter(name, lora) and name not in partners
    ]
    if outside:
        log.fault(
            "ADP303",
            f"{CONFIG_FILE}: target_modules",
            f"does not cover {count(len(outside), 'module')} that {WEIGHTS_FILE} has weights of: {some(outside)}",
        )


def _check_special(lora: LoraSpec, log: Checklist) -> None:
    """Say which settings make modules that only the built model has."""
    reasons = []
    if lora.target_parameters:
        reasons.append(f"target_parameters names bare parameters ({some(lora.target_parameters)})")
    if lora.layer_replication:
        reasons.append("layer_replication makes layers that the base does not store")
    if lora.variants:
        reasons.append(f"{' and '.join(lora.variants)} changes the layers")
    if reasons:
        log.skip("ADP403", CONFIG_FILE, "; ".join(reasons), hint=META_HINT)
    else:
        log.look("ADP403")


def is_parameter(module: str, lora: LoraSpec) -> bool:
    """Say whether a module's factors may be those of a bare parameter in it, whose ranks count experts too."""
    owners = {name.rpartition(".")[0] for name in lora.target_parameters}
    # Several parameters of one module are wrapped in each other: `experts`, then `experts.base_layer`.
    bare = module.replace(".base_layer", "")
    return any(not owner or bare == owner or bare.endswith(f".{owner}") for owner in owners)


def check_head(contents: Contents, weights: LoraWeights, stored: frozenset[str] | None, log: Checklist) -> None:
    """Check that a classifier's head came along, or that the base brings one.

    stored: names of the base's tensors, None where there is no base to ask.
    """
    task = TASKS.get(str((contents.config or {}).get("task_type")))
    if task is None or not task.head_modules:
        return
    log.look("ADP308")
    # PEFT sees to the first two itself; encoder-decoders call theirs by another name, which a recipe has to save.
    heads = [name for name in weights.saved if _module_in(name, (*task.head_modules, "classification_head"))]
    words = " or ".join(task.head_modules)
    if not heads and stored is None:
        log.skip("ADP308", WEIGHTS_FILE, f"no head ({words}) was saved, and there is no base here that may bring one")
    elif stored is not None and not heads and not any(_module_in(name, task.head_modules) for name in stored):
        log.fault("ADP308", WEIGHTS_FILE, f"{task.name} needs a head ({words}), and none was saved")
    labels = contents.manifest.labels if contents.manifest is not None else ()
    for name in heads:
        info = weights.saved[name]
        if labels and task.labels and name.endswith(".weight") and _is_output(name) and info.shape[0] != len(labels):
            message = f"has {count(info.shape[0], 'output')} for {count(len(labels), 'label')}"
            log.fault("ADP308", f"{WEIGHTS_FILE}: {name}", message)


def _module_in(name: str, modules: tuple[str, ...]) -> bool:
    return any(part in modules for part in name.split("."))


def _is_head(module: str) -> bool:
    return module.rpartition(".")[2] == "lm_head"


def _is_output(name: str) -> bool:
    """RoBERTa's classifier is two layers, `dense` and `out_proj`; the last one has the labels."""
    return not name.endswith(".dense.weight")
